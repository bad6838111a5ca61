# SPDX-License-Identifier: Apache-2.0
"""Which frames may leave at once: those in order, of a transaction that is open, whose connection holds nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from remusdb.core.release.frames import FLOWS_MAX, OpenFlow, segment_of, unpack_flows
from remusdb.core.release.rule import CommitRule, Flow
from remusdb.core.release.settings import ReleaseSettings
from tests.tcpframes import ACK, BEGIN, CLIENT_MAC, COMMIT, FIN, GREETING, GUEST_MAC, MOD, RST, SYN, UPDATE, URG, frame

MARK = 16
SETTINGS = ReleaseSettings(postgresql_ports=(5432,), mark=MARK)


class Server:
    """One connection of the guest's server; what it sends is judged, and what waits leaves by `commit`."""

    def __init__(self, rule: CommitRule, start: int = 1000, **how: Any) -> None:
        self.rule, self.seq, self.how = rule, start, how
        self.waits: list[Flow] = []
        assert not self._judge(frame(seq=start, flags=SYN | ACK, **how))
        self.seq += 1

    def say(self, payload: bytes = b"", flags: int = ACK, **how: Any) -> bool:
        early = self.again(payload, self.seq, flags, **how)
        self.seq += len(payload)
        return early

    def again(self, payload: bytes, seq: int, flags: int = ACK, **how: Any) -> bool:
        return self._judge(frame(payload, seq=seq, flags=flags, **self.how, **how))

    def commit(self) -> None:
        for flow in self.waits:
            self.rule.left(flow)
        self.waits.clear()

    def opened(self) -> Server:
        self.say(GREETING)
        self.say(BEGIN)
        self.commit()
        return self

    def _judge(self, data: bytes) -> bool:
        judged = self.rule.judge(data, 0.0)
        if judged.flow is not None and not judged.early:
            self.waits.append(judged.flow)
        return judged.early


@pytest.mark.parametrize(
    "how", [{}, {"ipv6": True}, {"vlan": 7}, {"start": MOD - 40}, {"gso": 1}, {"gso": 0x84, "ipv6": True}]
)
def test_a_transaction_passes_once_its_begin_has_left(how: dict[str, Any]) -> None:
    server = Server(CommitRule(SETTINGS), **how)
    assert not server.say(GREETING) and not server.say(BEGIN)
    assert not server.say(UPDATE)  # BEGIN's reply waits still
    server.commit()
    assert server.say(UPDATE) and server.say() and server.say(UPDATE)
    assert not server.say(COMMIT) and not server.say()
    server.commit()
    assert not server.say(UPDATE[:-1] + b"I")


def test_one_frame_that_waits_holds_those_behind_it_in_its_connection_alone() -> None:
    rule = CommitRule(SETTINGS)
    first, second = Server(rule).opened(), Server(rule, client_port=40001).opened()
    assert not first.say(UPDATE, flags=ACK | URG)
    first = Server(rule).opened()
    assert not first.say(COMMIT) and not first.say(BEGIN) and not first.say(UPDATE)
    assert second.say(UPDATE)
    first.commit()
    assert first.say(UPDATE)


def test_what_is_sent_again_or_out_of_order_waits() -> None:
    server = Server(CommitRule(ReleaseSettings(postgresql_ports=(5432,)))).opened()
    assert server.say(UPDATE)
    assert not server.again(UPDATE, server.seq - len(UPDATE))  # again
    server.commit()
    assert not server.again(b"x" + UPDATE, server.seq - 1)  # overlapping: read, but it waits
    server.seq += len(UPDATE)
    server.commit()
    assert server.say(UPDATE)
    server.seq += len(UPDATE)  # lost before the gate
    assert not server.say(UPDATE) and not server.rule.open_flows()
    server.commit()
    assert not server.say(UPDATE)
    server.commit()
    assert not server.again(UPDATE * 3, server.seq - 3 * len(UPDATE))  # what was missing, and what came behind it
    server.commit()
    assert server.rule.open_flows() and server.say(UPDATE)
    assert not server.again(b"\0", server.seq - 1)  # a keep-alive


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK])
def test_nothing_is_known_behind_an_end(flags: int) -> None:
    server = Server(CommitRule(SETTINGS)).opened()
    assert not server.say(flags=flags)
    server.commit()
    assert not server.say(UPDATE) and not server.rule.open_flows()


def test_a_connection_that_is_older_than_the_protection_waits() -> None:
    rule = CommitRule(SETTINGS)
    assert not rule.judge(frame(GREETING, seq=1), 0.0).early
    assert not rule.judge(frame(BEGIN, seq=1 + len(GREETING)), 0.0).early
    assert not rule.judge(frame(UPDATE, seq=1 + len(GREETING) + len(BEGIN)), 0.0).early


def test_other_ports_and_connections_of_the_guest_as_a_client_wait() -> None:
    assert not Server(CommitRule(SETTINGS), port=80).opened().say(UPDATE)
    rule = CommitRule(SETTINGS)
    rule.judge(frame(seq=9, flags=SYN), 0.0)
    assert not rule.judge(frame(GREETING + BEGIN, seq=10), 0.0).early and not rule.open_flows()


def test_the_first_mark_opens_and_waits() -> None:
    rule = CommitRule(SETTINGS)
    server = Server(rule, port=5000)
    assert not server.say(b"BEGIN's reply")
    assert not server.say(b"encrypted", dscp=MARK) and len(rule.open_flows()) == 1
    assert not server.say(b"encrypted", dscp=MARK)
    server.commit()
    assert server.say(b"encrypted", dscp=MARK) and server.say(dscp=MARK)
    assert not server.say(b"COMMIT's reply") and not rule.open_flows()
    server.commit()
    assert not server.say(b"encrypted", dscp=MARK)


def test_an_older_connection_is_known_by_its_marks() -> None:
    rule = CommitRule(SETTINGS)
    first = rule.judge(frame(b"abc", seq=50, dscp=MARK), 0.0)
    assert first.flow is not None and not first.early
    rule.left(first.flow)
    assert rule.judge(frame(b"abc", seq=53, dscp=MARK), 0.0).early


def test_an_open_connection_is_named_with_all_that_breaks_it() -> None:
    rule = CommitRule(SETTINGS)
    server = Server(rule, vlan=5).opened()
    server.say(UPDATE, ack=4711)
    (flow,) = rule.open_flows()
    assert flow.key.guest == bytes([10, 0, 0, 1]) and flow.key.client == bytes([10, 0, 0, 2])
    assert (flow.key.guest_port, flow.key.client_port, flow.vlan) == (5432, 40000, 5)
    assert (flow.guest_mac, flow.client_mac) == (GUEST_MAC, CLIENT_MAC)
    assert (flow.next_seq, flow.last_ack) == (server.seq, 4711)
    six = Server(rule, ipv6=True, client_port=2).opened()
    six.say(UPDATE)
    assert unpack_flows(b"".join(one.pack() for one in rule.open_flows())) == rule.open_flows()


@pytest.mark.parametrize("spoil", ["short", "long", "size", "padding", "group"])
def test_a_list_of_connections_that_cannot_be_is_refused(spoil: str) -> None:
    rule = CommitRule(SETTINGS)
    Server(rule).opened().say(UPDATE)
    packed = bytearray(rule.open_flows()[0].pack())
    match spoil:
        case "short":
            del packed[-1]
        case "long":
            packed *= FLOWS_MAX + 1
        case "size":
            packed[0] = 5
        case "padding":
            packed[4 + 4] = 1
        case "group":
            packed[packed.index(GUEST_MAC)] |= 1
    with pytest.raises(ValueError, match="connection"):
        unpack_flows(bytes(packed))


def test_more_connections_than_are_known_wait_and_open_ones_are_kept() -> None:
    rule = CommitRule(ReleaseSettings(postgresql_ports=(5432,), flows_max=3))
    opened = [Server(rule, client_port=port).opened() for port in (1, 2)]
    Server(rule, client_port=3).say(GREETING)
    assert Server(rule, client_port=4).opened().say(UPDATE)  # instead of the third
    assert not Server(rule, client_port=5).opened().say(UPDATE)
    assert all(server.say(UPDATE) for server in opened)
    assert len(rule.open_flows()) == 3 and rule.counters().flows == 3


def test_a_gate_that_was_opened_knows_nothing() -> None:
    server = Server(CommitRule(SETTINGS)).opened()
    server.rule.forget_all()
    assert not server.say(UPDATE) and not server.rule.open_flows()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (1, 3),  # unsegmented UDP
        (24, 0x46),  # IP options
        (24 + 6, 0x20),  # more fragments
        (24 + 7, 1),  # an offset
        (24 + 9, 17),  # UDP
        (24 + 3, 0xFF),  # longer than the frame
        (24 + 20 + 12, 0x40),  # a TCP header of 16 bytes
        (24 + 20 + 12, 0xF0),  # one that is longer than the packet
        (22, 0x12),  # another EtherType
    ],
)
def test_what_is_not_plain_is_not_told_apart(at: int, value: int) -> None:
    whole = frame(b"abc")
    assert segment_of(whole) is not None
    assert segment_of(whole[:at] + bytes([value]) + whole[at + 1 :]) is None


def test_a_frame_that_ends_early_is_none_and_padding_is_not_payload() -> None:
    whole = frame(b"abc", vlan=3)
    assert all(segment_of(whole[:end]) is None for end in range(len(whole)))
    padded = segment_of(frame(padding=6))
    assert padded is not None and padded.size == 0
    assert OpenFlow.unpack(OpenFlow.unpack(_flow().pack()).pack()) == _flow()


def _flow() -> OpenFlow:
    rule = CommitRule(SETTINGS)
    Server(rule).opened().say(UPDATE)
    return rule.open_flows()[0]


def test_settings_survive_the_way_to_the_gates_process() -> None:
    assert ReleaseSettings.unpack(SETTINGS.pack()) == SETTINGS


def test_a_gates_process_needs_nothing_but_python() -> None:
    """It starts while a VM waits for protection, and in a guest that has no library of ours (test_plug_gate.py)."""
    code = "import sys; sys.modules['msgspec'] = sys.modules['numpy'] = None; import remusdb.net.tapgate_process"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
