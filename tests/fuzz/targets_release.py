# SPDX-License-Identifier: Apache-2.0
"""Targets: what a guest sends through its gate, as commit protection reads it (`core/release`)."""

from __future__ import annotations

import contextlib

from remusdb.core.release.frames import ACK, SYN, unpack_flows
from remusdb.core.release.mysql import MySqlReader
from remusdb.core.release.postgresql import PostgresReader
from remusdb.core.release.rule import CommitRule
from remusdb.core.release.settings import ReleaseSettings
from remusdb.core.release.skip import skip_messages, skip_messages_slowly, skip_rows, skip_rows_slowly
from tests.fuzz.target import Target
from tests.unit.release_frames import frame, recorded

SETTINGS = ReleaseSettings(postgresql_ports=(5432,), mysql_ports=(3306,), mark=9, flows_max=8)


def _read(reader: PostgresReader | MySqlReader, other: PostgresReader | MySqlReader, data: bytes) -> None:
    """The first byte says where the bytes are cut in two for `other`, which ends as the one that had them whole."""
    stream = data[1:]
    cut = len(stream) * data[0] // 255 if data else 0
    inside = reader.read(stream, 0)
    other.read(stream[:cut], 0)
    other.read(stream[cut:], 0)
    assert not (inside and not reader.open) and not (reader.open and reader.lost)
    assert (reader.open, reader.lost) == (other.open, other.lost)


def postgresql(data: bytes) -> None:
    assert skip_messages(data, 1) == skip_messages_slowly(data, 1)
    _read(PostgresReader(), PostgresReader(), data)


def mysql(data: bytes) -> None:
    assert skip_rows(data, 2, data[1] if data[1:] else 0) == skip_rows_slowly(data, 2, data[1] if data[1:] else 0)
    _read(MySqlReader(), MySqlReader(), data)


def frames(data: bytes) -> None:
    """Frames of one connection, and what stands between them: each with a length of two bytes before it."""
    rule = CommitRule(SETTINGS)
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        flow, early = rule.judge(data[at + 2 : at + 2 + size], 0.0)
        at += 2 + size
        assert not early or flow is not None
        if early and flow is not None:
            assert flow.held == 0 and flow.open
        elif flow is not None and size % 2:
            rule.left(flow)
        named = rule.open_flows()
        assert len(named) <= SETTINGS.flows_max
        assert unpack_flows(b"".join(one.pack() for one in named)) == named


def open_flows(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        found = unpack_flows(data)
        assert unpack_flows(b"".join(flow.pack() for flow in found)) == found


def _streams(server: str) -> list[bytes]:
    made = [b"\x80" + b"".join(answer for _asked, answer in steps) for steps in recorded(server).values()]
    return [one for one in made if len(one) < 4096]


def _frame_samples() -> list[bytes]:
    made = []
    for port, server in ((5432, "postgresql15"), (3306, "mariadb1011"), (99, "postgresql15")):
        seq, sent = 100, [frame(99, flags=SYN | ACK, port=port)]
        for _asked, answer in recorded(server)["plain"]:
            sent.append(frame(seq, answer, port=port, dscp=9 * (port == 99)))
            seq += len(answer)
        made.append(b"".join(len(one).to_bytes(2, "big") + one for one in sent))
    return made


TARGETS = {
    "release-postgresql": Target(postgresql, lambda: _streams("postgresql15")),
    "release-mysql": Target(mysql, lambda: _streams("mariadb1011")),
    "release-frames": Target(frames, _frame_samples),
    "release-flows": Target(open_flows, lambda: [b"\4" + bytes(59)]),
}
