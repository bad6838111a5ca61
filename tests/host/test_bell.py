# SPDX-License-Identifier: Apache-2.0
"""The bell rings for what the VM says, behind a gate too, and for nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from remusdb.net.bell import Bell
from remusdb.net.gate import Gate
from remusdb.net.tapgate import TapGate
from tests.host.netlab import Lab, frame, inbound_frame, lab, number_of

SOON_S, NEVER_S = 2.0, 0.1
HELD_MAX_BYTES = 1 << 20


@pytest.fixture
def net() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture
def bell(net: Lab) -> Iterator[Bell]:
    made = Bell([net.vm.name])
    yield made
    made.close()


@pytest.fixture
def gate(net: Lab) -> Iterator[Gate]:
    made = TapGate(net.vm.name, HELD_MAX_BYTES)
    made.install()
    yield made
    made.remove()


def test_it_rings_for_what_the_vm_says_until_it_is_reset(net: Lab, bell: Bell) -> None:
    assert not bell.wait(NEVER_S)
    net.vm.send(frame(1))
    assert bell.wait(SOON_S)
    assert bell.wait(0)
    bell.reset()
    assert not bell.wait(NEVER_S)
    net.vm.send(frame(2))
    assert bell.wait(SOON_S)


def test_what_the_vm_is_sent_does_not_ring(net: Lab, bell: Bell) -> None:
    net.wire.send(inbound_frame(1))
    assert net.vm.receive(1)
    assert not bell.wait(NEVER_S)


def test_what_a_gate_lets_go_does_not_ring_again(net: Lab, bell: Bell, gate: Gate) -> None:
    gate.hold()
    net.vm.send(frame(1))
    assert bell.wait(SOON_S)
    gate.mark(1)
    bell.reset()
    gate.release(1)
    assert [number_of(one) for one in net.wire.receive(1)] == [1]
    assert not bell.wait(NEVER_S)


def test_a_flood_is_forgotten_at_once_and_costs_nothing_more(net: Lab, bell: Bell) -> None:
    for number in range(2000):
        net.vm.send(frame(number))
    assert bell.wait(SOON_S)
    began = time.monotonic()
    bell.reset()
    assert time.monotonic() - began < 0.1  # a few frames were kept, not 2000
    assert not bell.wait(NEVER_S)


def test_a_wait_is_ended_by_any_thread(bell: Bell) -> None:
    waker = threading.Timer(NEVER_S, bell.wake)
    began = time.monotonic()
    waker.start()
    assert not bell.wait(30.0)
    assert time.monotonic() - began < 10.0
    waker.join()


def test_a_vm_whose_tap_is_gone_says_nothing(net: Lab, bell: Bell) -> None:
    net.vm.close()
    bell.wait(NEVER_S)
    bell.reset()
    assert not bell.wait(NEVER_S)
