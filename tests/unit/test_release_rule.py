# SPDX-License-Identifier: Apache-2.0
"""The rule of commit protection, frame by frame: what passes, what is held, and what a cut's list names."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remusdb import native
from remusdb.core.release.frames import ACK, FIN, FLOWS_MAX, RST, SYN, URG, OpenFlow, segment_of, unpack_flows
from remusdb.core.release.rule import CommitRule
from remusdb.core.release.settings import ReleaseSettings
from remusdb.core.release.skip import skip_messages, skip_messages_slowly, skip_rows, skip_rows_slowly
from tests.unit.release_frames import CLIENT, CLIENT_MAC, GUEST, GUEST_MAC, frame, hello

SETTINGS = ReleaseSettings(postgresql_ports=(5432,), mysql_ports=(3306,))
START = 2**32 - 20


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


OPENS = b"N" + message(b"R", bytes(4)) + message(b"C", b"BEGIN\0") + message(b"Z", b"T")
ROW = message(b"D", b"\0\1\0\0\0\1x")
COMMIT = message(b"C", b"COMMIT\0") + message(b"Z", b"I")


class Guest:
    """One connection of a guest's, through the rule."""

    def __init__(self, rule: CommitRule, seq: int = START, **said: Any) -> None:
        self.rule, self.seq, self.said = rule, seq + 1, said
        self.passes(hello(seq, **said), leaves=True)

    def passes(self, raw: bytes, *, leaves: bool = False) -> bool:
        flow, early = self.rule.judge(raw, 0.0)
        if leaves and flow is not None and not early:
            self.rule.left(flow)
        return early

    def sends(self, data: bytes, *, leaves: bool = False, **said: Any) -> bool:
        raw = frame(self.seq, data, **(self.said | said))
        self.seq += len(data)
        return self.passes(raw, leaves=leaves)


def inside(rule: CommitRule | None = None, **said: Any) -> Guest:
    guest = Guest(rule or CommitRule(SETTINGS), **said)
    assert not guest.sends(OPENS, leaves=True)
    return guest


@pytest.mark.parametrize("said", [{}, {"vlan": 7}, {"six": True}, {"six": True, "vlan": 7}])
def test_rows_and_acknowledgements_of_an_open_transaction_pass_and_its_end_does_not(said: dict[str, Any]) -> None:
    guest = inside(**said)
    assert guest.sends(ROW) and guest.sends(b"") and guest.sends(ROW * 9)
    assert not guest.sends(COMMIT, leaves=True) and not guest.sends(b"")
    counted = guest.rule.counters()
    assert (counted.early, counted.flows, counted.open) == (3, 1, 0)


def test_nothing_passes_while_something_of_its_flow_is_held() -> None:
    guest = Guest(CommitRule(SETTINGS))
    flow, _early = guest.rule.judge(frame(guest.seq, OPENS), 0.0)
    guest.seq += len(OPENS)
    assert flow is not None and not guest.sends(ROW)
    guest.rule.left(flow)
    assert not guest.sends(ROW)
    guest.rule.left(flow, 2)
    assert guest.sends(ROW)


def test_the_list_names_what_breaks_a_connection() -> None:
    guest = inside(vlan=7)
    guest.sends(ROW)
    (named,) = guest.rule.open_flows()
    assert (named.key.guest, named.key.client) == (GUEST, CLIENT)
    assert (named.guest_mac, named.client_mac, named.vlan) == (GUEST_MAC, CLIENT_MAC, 7)
    assert (named.next_seq, named.last_ack) == (guest.seq % 2**32, 77)
    assert unpack_flows(named.pack() * 2) == [named, named]


@pytest.mark.parametrize("flags", [SYN, FIN | ACK, RST, RST | ACK, URG | ACK, 0, SYN | ACK | FIN])
def test_what_begins_or_ends_a_connection_waits_and_nothing_of_it_passes_after(flags: int) -> None:
    guest = inside()
    assert not guest.passes(frame(guest.seq, flags=flags), leaves=True)
    assert not guest.sends(ROW, leaves=True) and not guest.sends(ROW)
    assert guest.rule.open_flows() == []


def test_what_is_sent_again_waits_and_what_overlaps_is_read_once() -> None:
    guest = inside()
    assert guest.sends(ROW)
    assert not guest.passes(frame(guest.seq - len(ROW), ROW), leaves=True)
    assert not guest.passes(frame(guest.seq - 3, ROW[-3:] + ROW), leaves=True)
    guest.seq += len(ROW)
    assert guest.sends(ROW)


def test_behind_a_gap_nothing_is_open_until_all_was_seen_again() -> None:
    guest = inside()
    missing = guest.seq
    guest.seq += len(ROW)
    assert not guest.sends(COMMIT, leaves=True) and guest.rule.open_flows() == []
    assert not guest.passes(frame(missing, ROW), leaves=True) and guest.rule.open_flows() == []
    assert not guest.sends(b"", leaves=True)
    assert not guest.passes(frame(missing + len(ROW), COMMIT), leaves=True)
    assert not guest.sends(OPENS[10:], leaves=True) and guest.sends(ROW)


def test_a_connection_older_than_the_rule_waits_whatever_its_rows_say() -> None:
    rule = CommitRule(SETTINGS)
    for seq in range(100, 100 + 3 * len(OPENS), len(OPENS)):
        assert rule.judge(frame(seq, OPENS), 0.0) == (None, False)
    guest = inside(rule)
    rule.forget_all()
    assert not guest.sends(ROW) and rule.open_flows() == []


def test_a_marked_flow_passes_from_its_second_mark_on_and_a_gap_closes_it() -> None:
    rule = CommitRule(ReleaseSettings(mark=9))
    sent = [(100, 9), (101, 9), (102, 0), (103, 9), (104, 9), (106, 9), (107, 9), (105, 9), (108, 9)]
    passed = []
    for seq, dscp in sent:
        flow, early = rule.judge(frame(seq, b"x", port=99, dscp=dscp), 0.0)
        passed.append(early)
        if flow is not None and not early:
            rule.left(flow)
    assert passed == [False, True, False, False, True, False, False, False, True]


def test_more_connections_than_there_is_room_for_wait() -> None:
    rule = CommitRule(ReleaseSettings(postgresql_ports=(5432,), flows_max=2))
    first, second = inside(rule), inside(rule, client_port=2)
    third = Guest(rule, client_port=3)
    assert not third.sends(OPENS, leaves=True) and not third.sends(ROW)
    assert first.sends(ROW) and second.sends(ROW) and len(rule.open_flows()) == 2


@pytest.mark.parametrize(
    ("at", "value"),
    [(1, 3), (16, 0x01), (24, 0x46), (30, 0x20), (30, 0x01), (33, 17), (26, 0xFF), (22, 0x09), (56, 0x40), (56, 0xF0)],
)
def test_what_is_not_plain_tcp_waits(at: int, value: int) -> None:
    guest = inside()
    raw = bytearray(frame(guest.seq, ROW))
    raw[at] = value
    assert not guest.passes(bytes(raw))
    assert segment_of(bytes(raw)) is None


@given(st.binary(max_size=120), st.integers(0, 12), st.integers(0, 255))
@example(b"D\xff\xff\xff\xff", 0, 0)
@example(b"\x02\0\0\0ab\x02\0\0\x01ab\x01\0\0\x02\xfe", 0, 0)
def test_both_ways_to_skip_rows_agree(data: bytes, at: int, number: int) -> None:
    assert native.kernels is not None
    data = data.replace(b"ab", b"D\0\0\0\4")
    assert skip_rows(data, at, number) == skip_rows_slowly(data, at, number)
    assert skip_messages(data, at) == skip_messages_slowly(data, at)
    assert skip_messages is native.kernels.skip_messages and skip_rows is native.kernels.skip_rows


@given(st.binary(max_size=100))
def test_a_list_that_is_none_is_refused(data: bytes) -> None:
    try:
        found = unpack_flows(data)
    except ValueError:
        return
    assert len(found) <= FLOWS_MAX
    assert all(OpenFlow.unpack(flow.pack()) == flow for flow in found)
