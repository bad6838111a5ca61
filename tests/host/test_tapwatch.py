# SPDX-License-Identifier: Apache-2.0
"""Taps that a VM gets while it is protected: shut as soon as they are there, and until somebody opens or gates them."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from remusdb.net.tapgate import TapGate
from remusdb.net.tc import Tc
from remusdb.worker.tapwatch import TapWatch, open_taps, shut_taps
from tests.host.netlab import QUIET_S, Lab, Port, frame, index_of, lab, sh, silence

log = logging.getLogger(__name__)

NEW_MAC = "fe:54:00:12:34:57"
SOON_S = 2.0  # 2 to 5 ms when nothing else runs


@pytest.fixture
def net() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture
def told(net: Lab) -> Iterator[list[str]]:
    """A watch over this process, which plays QEMU; what it told."""
    found: list[str] = []
    watch = TapWatch(os.getpid(), [net.vm.name, net.wire.name], found.append)
    watch.start()
    yield found
    watch.close()


def shut(tap: str) -> bool:
    with Tc() as tc:
        return tc.is_shut(index_of(tap))


def wait(what: Iterator[bool]) -> float:
    """How long it takes until `what` yields True, in ms."""
    began = time.monotonic()
    while not next(what):
        assert time.monotonic() - began < SOON_S
    return 1000 * (time.monotonic() - began)


def test_a_new_tap_is_shut_and_told_of(net: Lab, told: list[str]) -> None:
    new = Port("vnet1", NEW_MAC)
    log.info("shut %.1f ms after it was on its bridge", wait(shut("vnet1") for _ in iter(int, 1)))
    for number in range(5):
        new.send(frame(number))
        new.send(frame(number, 0x0806))
    assert net.wire.silent()
    net.vm.send(frame(7))  # the gated one is none of its business
    assert len(net.wire.receive(1)) == 1
    wait(bool(told) for _ in iter(int, 1))
    assert told == ["QEMU has a new interface, vnet1"]
    new.close()


def test_a_macvtap_is_shut_where_it_sends(net: Lab) -> None:
    """An interface of type `direct`: the preflight refuses it, but before that it must not speak."""
    sh("ip link add link br0 name mv0 type macvtap mode bridge; ip link set mv0 up")
    silence("mv0")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender, Tc() as tc:  # the way of what its VM sends
        sender.bind(("mv0", 0))
        sender.send(frame(1))
        assert frame(1) in net.wire.receive(20, QUIET_S)
        tc.shut(index_of("mv0"), as_sent=True)
        with pytest.raises(OSError, match="No buffer space"):  # how the kernel says that it was dropped
            sender.send(frame(2))
        assert frame(2) not in net.wire.receive(20, QUIET_S) and tc.is_shut(index_of("mv0"))
        tc.open(index_of("mv0"))
        sender.send(frame(3))
        assert frame(3) in net.wire.receive(20, QUIET_S)


def test_a_tap_of_somebody_else_is_left_alone(net: Lab, told: list[str]) -> None:
    """Another VM of this host starts: its tap is not this VM's."""
    hold = "from remusdb.net.tuntap import open_tap; open_tap('vnet2', persist=False); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        time.sleep(0.3)
        assert not shut("vnet2") and not told
        other.kill()


def test_what_is_shut_stays_so_until_it_is_opened_and_then_is_as_found(net: Lab) -> None:
    new = Port("vnet1", NEW_MAC)
    before = sh("tc qdisc show; tc filter show dev vnet1 ingress")
    watch = TapWatch(os.getpid(), [net.vm.name, net.wire.name], lambda _what: None)
    watch.start()  # what is there already is shut before it returns
    assert shut("vnet1")
    watch.close()
    new.send(frame(1))
    assert net.wire.silent()
    open_taps(os.getpid())
    new.send(frame(2))
    assert len(net.wire.receive(1)) == 1
    assert sh("tc qdisc show; tc filter show dev vnet1 ingress") == before
    new.close()


def test_where_nobody_watches_what_came_meanwhile_can_be_shut(net: Lab) -> None:
    new = Port("vnet1", NEW_MAC)
    shut_taps(os.getpid(), [net.vm.name, net.wire.name])
    assert shut("vnet1") and not shut(net.vm.name)
    open_taps(os.getpid())
    assert not shut("vnet1")
    new.close()


def test_the_next_workers_gate_takes_the_place_of_what_a_dead_one_shut(net: Lab) -> None:
    new = Port("vnet1", NEW_MAC)
    before = sh("tc qdisc show dev vnet1; tc filter show dev vnet1 ingress")
    watch = TapWatch(os.getpid(), [net.vm.name, net.wire.name], lambda _what: None)
    watch.start()
    watch.close()
    gate = TapGate("vnet1", 64 << 20)
    gate.adopt()
    new.send(frame(1))
    gate.mark(1)
    assert net.wire.silent()
    gate.release(1)
    assert len(net.wire.receive(1)) == 1
    gate.open_all()
    gate.remove()
    assert sh("tc qdisc show dev vnet1; tc filter show dev vnet1 ingress") == before
    new.close()


def test_a_limit_on_what_it_sends_does_not_keep_a_tap_from_being_shut(net: Lab) -> None:
    """libvirt's <bandwidth> makes an ingress qdisc of the old kind."""
    new = Port("vnet1", NEW_MAC)
    sh("tc qdisc add dev vnet1 ingress")
    before = sh("tc qdisc show dev vnet1")
    with Tc() as tc:
        index = index_of("vnet1")
        tc.shut(index)
        new.send(frame(1))
        assert tc.is_shut(index) and net.wire.silent()
        tc.open(index)
    new.send(frame(2))
    assert len(net.wire.receive(1)) == 1 and sh("tc qdisc show dev vnet1") == before
    new.close()


def test_a_gated_tap_that_moves_or_goes_is_told_of(net: Lab, told: list[str]) -> None:
    sh("ip link add br1 type bridge; ip link set vnet0 master br1")
    sh("ip link set vnet0 mtu 1400")
    wait("interface vnet0 was put on another bridge" in told for _ in iter(int, 1))
    net.vm.close()
    wait("interface vnet0 is gone" in told for _ in iter(int, 1))
