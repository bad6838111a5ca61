# SPDX-License-Identifier: Apache-2.0
"""Commit protection at a real gate: what the DBMS marks leaves at once while the lease runs; all else waits."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator

import pytest

from remusdb.core.release.frames import OpenFlow, unpack_flows
from remusdb.core.release.settings import ReleaseSettings
from remusdb.core.segments import ACK, End, build, checksum
from remusdb.net.bell import Bell
from remusdb.net.tapgate import TapGate
from tests.host.netlab import PEER_MAC, VM_MAC, Lab, frame, lab, mac_bytes

MARK = 10
HELD_MAX_BYTES = 1 << 20
SOON_S, NEVER_S = 5.0, 0.2
GUEST = End(mac_bytes(VM_MAC), bytes((10, 0, 0, 1)), 5432)
CLIENT = End(mac_bytes(PEER_MAC), bytes((10, 0, 0, 2)), 40000)
DATA = b"a row"


@pytest.fixture
def net() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture
def bell() -> Iterator[int]:
    made = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield made
    os.close(made)


@pytest.fixture
def gate(net: Lab, bell: int) -> Iterator[TapGate]:
    made = TapGate(net.vm.name, HELD_MAX_BYTES, release=ReleaseSettings(mark=MARK), bell_fd=bell)
    made.install()
    made.hold()
    yield made
    made.remove()


def says(number: int, *, marked: bool) -> bytes:
    """The guest's packet of this number, in one connection, in order."""
    made = build(GUEST, CLIENT, None, 1000 + number * len(DATA), 77, ACK, DATA)
    if not marked:
        return made
    head = bytearray(made[14:34])
    head[1], head[10:12] = MARK << 2, bytes(2)
    head[10:12] = struct.pack("!H", checksum(bytes(head)))
    return made[:14] + bytes(head) + made[34:]


def numbers(frames: list[bytes]) -> list[int]:
    return [(struct.unpack_from("!I", got, 38)[0] - 1000) // len(DATA) for got in frames]


def open_it(net: Lab, gate: TapGate, lease_s: float = 60.0) -> None:
    """The first packet of a transaction, which waits for its epoch, and that epoch's commit."""
    net.vm.send(says(0, marked=True))
    assert net.wire.silent(NEVER_S)
    gate.mark(1)
    gate.release(1, time.monotonic() + lease_s)
    assert numbers(net.wire.receive(1, SOON_S)) == [0]


def test_what_is_marked_leaves_at_once_after_the_first_of_it_was_committed(net: Lab, gate: TapGate) -> None:
    open_it(net, gate)
    for number in (1, 2, 3):
        net.vm.send(says(number, marked=True))
    assert numbers(net.wire.receive(3, SOON_S)) == [1, 2, 3]
    assert gate.metrics().early_frames == 3


def test_what_is_not_marked_waits_and_all_that_follows_it(net: Lab, gate: TapGate) -> None:
    open_it(net, gate)
    net.vm.send(says(1, marked=False))
    net.vm.send(says(2, marked=True))
    net.vm.send(says(3, marked=True))
    net.vm.send(frame(1))
    assert net.wire.silent(NEVER_S)
    gate.mark(2)
    gate.release(2, time.monotonic() + 60)
    assert numbers(net.wire.receive(4, SOON_S)[:3]) == [1, 2, 3]


@pytest.mark.parametrize("lease_s", [0.0, -1.0])
def test_without_a_lease_everything_waits(net: Lab, gate: TapGate, lease_s: float) -> None:
    open_it(net, gate, lease_s)
    net.vm.send(says(1, marked=True))
    assert net.wire.silent(NEVER_S)
    gate.mark(2)
    gate.release(2, time.monotonic() + 60)
    assert numbers(net.wire.receive(1, SOON_S)) == [1]


def test_a_gate_that_stood_still_until_the_lease_was_over_lets_nothing_out_early(net: Lab, gate: TapGate) -> None:
    open_it(net, gate, lease_s=1.0)
    os.kill(gate.process_id, signal.SIGSTOP)
    net.vm.send(says(1, marked=True))
    time.sleep(1.1)
    os.kill(gate.process_id, signal.SIGCONT)
    assert net.wire.silent(NEVER_S)


def test_a_cut_names_the_connections_that_are_open(net: Lab, gate: TapGate) -> None:
    gate.mark(1)
    assert gate.open_flows() == b""
    net.vm.send(says(0, marked=True))
    gate.mark(2)
    (flow,) = unpack_flows(gate.open_flows())
    found = OpenFlow(flow.key, GUEST.mac, CLIENT.mac, None, 1000 + len(DATA), 77)
    assert flow == found
    assert (flow.key.guest, flow.key.guest_port) == (GUEST.address, GUEST.port)
    assert (flow.key.client, flow.key.client_port) == (CLIENT.address, CLIENT.port)
    net.vm.send(says(1, marked=False))
    assert not net.wire.receive(1, NEVER_S)
    assert unpack_flows(gate.open_flows()) == [flow], "it is the list of the cut, whatever came since"
    gate.mark(3)
    assert gate.open_flows() == b""


def test_a_gate_that_was_adopted_knows_nothing(net: Lab, gate: TapGate) -> None:
    open_it(net, gate)
    os.kill(gate.process_id, signal.SIGKILL)
    gate.adopt()
    net.vm.send(says(1, marked=True))
    assert net.wire.silent(NEVER_S)
    gate.mark(1)
    gate.release(1, 0.0)
    assert numbers(net.wire.receive(1, SOON_S)) == [1]


def test_only_what_waits_rings(net: Lab, gate: TapGate, bell: int) -> None:
    there = Bell([], bell)
    net.vm.send(says(0, marked=True))
    assert there.wait(SOON_S)
    gate.mark(1)
    there.marked()
    gate.release(1, time.monotonic() + 60)
    assert numbers(net.wire.receive(1, SOON_S)) == [0]
    net.vm.send(says(1, marked=True))
    assert numbers(net.wire.receive(1, SOON_S)) == [1]
    assert not there.wait(NEVER_S)
    net.vm.send(says(2, marked=False))
    assert there.wait(SOON_S)
    there.close()
