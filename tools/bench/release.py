# SPDX-License-Identifier: Apache-2.0
"""What commit protection's rule costs a gate's process: `python -m tools.bench.release [FILE]`, JSON to FILE or stdout.

By protocol, in one process and by its CPU time: small frames a second (an answer of one row, or an acknowledgement),
and bytes a second of a large result in unsegmented frames of 64 KiB and in frames of 1500 bytes, rows of 100 bytes. And
`copy`, the same frames copied once, in the same run: what the memory of the machine gives.
"""

from __future__ import annotations

import itertools
import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from remusdb.core.release.frames import ACK, SYN
from remusdb.core.release.rule import CommitRule
from remusdb.core.release.settings import ReleaseSettings

PORTS = {"postgresql": 5432, "mysql": 3306}
ROW = b"x" * 89
BULK_BYTES = 256 << 20
SMALL_FRAMES = 100_000
ROUNDS = 3


def frame(port: int, seq: int, payload: bytes, flags: int = ACK) -> bytes:
    """As a tap hands it out."""
    tcp = struct.pack("!HHIIBBHHH", port, 40000, seq % 2**32, 1, 0x50, flags, 1000, 0, 0) + payload
    head = struct.pack("!BBHHHBBH8s", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, bytes(8))
    return bytes(22) + b"\x08\x00" + head + tcp


def _pg(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


def _my(number: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([number % 256]) + body


def _mysql_greeting() -> bytes:
    return b"\x0a5.5.5-10.11\0" + bytes(13) + b"\xfe\xf7\x08\2\0\xff\x81" + bytes(30)


OPENING = {
    "postgresql": b"N" + _pg(b"R", bytes(4)) + _pg(b"C", b"BEGIN\0") + _pg(b"Z", b"T"),
    "mysql": _my(0, _mysql_greeting()) + _my(2, b"\0\0\0\2\0\0\0") + _my(1, b"\0\0\0\1\0\0\0"),
}
_COLUMN = b"\3def" + bytes(20)
SMALL = {
    "postgresql": _pg(b"T", b"\0\1a" + bytes(18)) + _pg(b"D", b"\0\1\0\0\0\x09" + b"1" * 9)
    + _pg(b"C", b"SELECT 1\0") + _pg(b"Z", b"T"),
    "mysql": _my(1, b"\1") + _my(2, _COLUMN) + _my(3, b"\xfe\0\0\1\0") + _my(4, b"\x091" + b"1" * 8)
    + _my(5, b"\xfe\0\0\1\0"),
}  # fmt: skip


def bulk(protocol: str) -> Iterator[bytes]:
    """The rows of a result that has no end."""
    if protocol == "postgresql":
        yield from itertools.repeat(_pg(b"D", b"\0\1" + struct.pack("!I", len(ROW)) + ROW))
    yield _my(1, b"\1") + _my(2, _COLUMN) + _my(3, b"\xfe\0\0\1\0")
    rows = [_my(number, bytes([len(ROW)]) + ROW) for number in range(256)]
    for number in itertools.count(4):
        yield rows[number % 256]


def frames(protocol: str, payloads: Iterator[bytes], count: int) -> list[bytes]:
    """So many of them in a connection that is in a transaction, behind those that open it."""
    port, seq = PORTS[protocol], 101
    made = [frame(port, 100, b"", SYN | ACK), frame(port, seq, OPENING[protocol])]
    seq += len(OPENING[protocol])
    for payload in itertools.islice(payloads, count):
        made.append(frame(port, seq, payload))
        seq += len(payload)
    return made


def segments(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of `size`."""
    kept = bytearray()
    for piece in pieces:
        kept += piece
        if len(kept) >= size:
            yield bytes(kept[:size])
            del kept[:size]


def judged(made: list[bytes]) -> tuple[float, int]:
    """Seconds of a CPU that it took to judge them, and how many were early."""
    rule = CommitRule(ReleaseSettings(postgresql_ports=(5432,), mysql_ports=(3306,)))
    for one in made[:2]:
        flow, _early = rule.judge(one, 0.0)
        if flow is not None:
            rule.left(flow)
    began = time.process_time()
    early = 0
    for one in made[2:]:
        flow, passes = rule.judge(one, 0.0)
        if passes:
            early += 1
        elif flow is not None:
            rule.left(flow)
    return time.process_time() - began, early


def copied(made: list[bytes]) -> tuple[float, int]:
    """Seconds of a CPU that it takes to copy them."""
    began = time.process_time()
    for one in made:
        bytearray(one)
    return time.process_time() - began, 0


def best(what: Callable[[list[bytes]], tuple[float, int]], made: list[bytes]) -> tuple[float, int]:
    """Of some rounds the fastest: others use the machine, too."""
    return min(what(made) for _ in range(ROUNDS))


def main() -> None:
    """Measure and tell."""
    found: dict[str, dict[str, float]] = {}
    for protocol in PORTS:
        answer = SMALL[protocol]
        made = frames(protocol, itertools.cycle((answer, b"")), SMALL_FRAMES)
        took, early = best(judged, made)
        found[protocol] = {"small_frames_per_s": round(SMALL_FRAMES / took), "small_early_share": early / SMALL_FRAMES}
        for name, size in (("gso", 65_000), ("mtu", 1448)):
            made = frames(protocol, segments(bulk(protocol), size), BULK_BYTES // size)
            took, early = best(judged, made)
            copy, _ = best(copied, made)
            found[protocol][f"{name}_mb_per_s"] = round(BULK_BYTES / took / 1e6)
            found[protocol][f"{name}_early_share"] = round(early / len(made), 3)
            found[protocol][f"{name}_of_copy"] = round(copy / took, 3)
    text = json.dumps(found, indent=2) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
