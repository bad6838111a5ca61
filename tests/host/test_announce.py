# SPDX-License-Identifier: Apache-2.0
"""An announcement reaches the LAN, and the local bridge finds the VM behind its tap."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest

from remusdb.errors import GateError
from remusdb.net.announce import announce, frames
from tests.host.netlab import VM_MAC, Lab, inbound_frame, lab, mac_bytes, sh

ADDRESSES = ("10.0.0.2", "fd00::2")


@pytest.fixture
def net() -> Iterator[Lab]:
    with lab() as made:
        yield made


def learned_port() -> str:
    rows = [line for line in sh("bridge fdb show br br0").splitlines() if line.startswith(VM_MAC)]
    return rows[0].split()[2] if rows else ""


def speak_from_the_lan(net: Lab) -> None:
    """What the backup's bridge saw while the primary lived: the VM's frames come in from the LAN."""
    net.wire.send(b"\xff" * 6 + mac_bytes(VM_MAC) + b"\x88\xb5" + bytes(46))
    net.vm.receive(1, 0.5)
    assert learned_port() == "lan0"


def announced(where: str, mac: str, addresses: Sequence[str], at_ms: Sequence[int]) -> None:
    """All rounds of it."""
    repeats = announce(where, mac, addresses, repeat_at_ms=at_ms)
    assert repeats is not None
    repeats.join(2)


def test_the_lan_hears_it_and_the_bridge_learns_the_tap(net: Lab) -> None:
    speak_from_the_lan(net)
    announced("vnet0", VM_MAC, ADDRESSES, at_ms=(0,))
    assert net.wire.receive(3) == frames(VM_MAC, ADDRESSES)
    assert learned_port() == "vnet0"


def test_frames_from_the_lan_reach_the_vm_before_it_has_spoken(net: Lab) -> None:
    """Without the entry the bridge would drop them: it believes that the VM is where they come from."""
    speak_from_the_lan(net)
    net.wire.send(inbound_frame(1))
    assert net.vm.silent()
    announced("vnet0", VM_MAC, (), at_ms=(0,))
    net.vm.receive(1, 0.3)  # the announcement itself, flooded
    net.wire.send(inbound_frame(2))
    assert net.vm.receive(1) == [inbound_frame(2)]


def test_the_entry_moves_on_when_the_vm_does(net: Lab) -> None:
    """It is an entry like a learned one: a frame from elsewhere replaces it."""
    announced("vnet0", VM_MAC, (), at_ms=(0,))
    assert learned_port() == "vnet0"
    speak_from_the_lan(net)


def test_it_is_repeated(net: Lab) -> None:
    announced("vnet0", VM_MAC, (), at_ms=(0, 20, 60))
    assert net.wire.receive(3) == frames(VM_MAC, ()) * 3
    assert net.wire.silent()


def test_on_a_bridge(net: Lab) -> None:
    announced("br0", VM_MAC, ADDRESSES[:1], at_ms=(0,))
    assert net.wire.receive(2) == frames(VM_MAC, ADDRESSES[:1])
    assert learned_port() == ""


def test_nowhere_to_send(net: Lab) -> None:
    with pytest.raises(GateError):
        announce("nothere", VM_MAC, ())
    assert socket.if_nameindex()  # still in the lab's namespace
