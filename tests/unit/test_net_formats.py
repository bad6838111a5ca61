# SPDX-License-Identifier: Apache-2.0
"""Names, control messages and learned addresses of the gates."""

from __future__ import annotations

import pytest

from remusdb.errors import GateError
from remusdb.net.addresses import own_address
from remusdb.net.announce import gratuitous_arp, rarp, unsolicited_na
from remusdb.net.gatewire import Op, Reply, Request, Status
from remusdb.net.links import short_name
from remusdb.net.tc import PlugAction

MAC = "52:54:00:12:34:56"


@pytest.mark.parametrize("tap", ["vnet0", "vnet10", "a-name-of-15-by"])
def test_device_names_fit_and_differ(tap: str) -> None:
    names = {short_name(prefix, tap) for prefix in ("rg", "ri", "ro", "rp0", "rp1", "rp2", "rp3")}
    assert len(names) == 7
    assert all(len(name) <= 15 for name in names)


def test_long_taps_with_one_beginning_get_different_devices() -> None:
    assert short_name("rg", "tap-of-vm-aaaa1") != short_name("rg", "tap-of-vm-aaaa2")


def test_messages_survive_the_socket() -> None:
    request, reply = Request(Op.MARK, 7, 1 << 40), Reply(Status.EPOCH_ORDER, 7, 1, 2, 3, 4)
    assert Request.unpack(request.pack()) == request
    assert Reply.unpack(reply.pack()) == reply


def test_an_unknown_request_is_refused() -> None:
    with pytest.raises(GateError):
        Request.unpack(bytes(16))


def test_plug_actions_are_the_kernels() -> None:
    assert [action.value for action in PlugAction] == [0, 1, 2, 3]


def test_addresses_from_arp_and_neighbour_messages() -> None:
    assert own_address(gratuitous_arp(MAC, "10.0.0.2")) == "10.0.0.2"
    assert own_address(unsolicited_na(MAC, "fd00::2")) == "fd00::2"
    assert own_address(rarp(MAC)) is None


def test_nothing_is_learned_from_a_lie_or_a_stub() -> None:
    lie = bytearray(gratuitous_arp(MAC, "10.0.0.2"))
    lie[22:28] = b"\x52\x54\0\0\0\1"
    assert own_address(bytes(lie)) is None
    assert own_address(gratuitous_arp(MAC, "0.0.0.0")) is None
    assert own_address(b"") is None
    assert own_address(gratuitous_arp(MAC, "10.0.0.2")[:30]) is None
