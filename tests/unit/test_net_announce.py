# SPDX-License-Identifier: Apache-2.0
"""The frames of an announcement, byte by byte."""

from __future__ import annotations

import struct

import pytest

from remusdb.net.announce import frames, gratuitous_arp, rarp, unsolicited_na

MAC = "52:54:00:12:34:56"
RAW = bytes.fromhex("525400123456")


def test_rarp() -> None:
    expected = b"\xff" * 6 + RAW + bytes.fromhex("8035 0001 0800 06 04 0003") + RAW + bytes(4) + RAW + bytes(4)
    assert rarp(MAC) == expected + bytes(18)


def test_gratuitous_arp() -> None:
    ip = bytes((192, 168, 7, 9))
    expected = b"\xff" * 6 + RAW + bytes.fromhex("0806 0001 0800 06 04 0001") + RAW + ip + bytes(6) + ip
    assert gratuitous_arp(MAC, "192.168.7.9") == expected + bytes(18)


def test_unsolicited_na() -> None:
    said = unsolicited_na(MAC, "fd00::2")
    ip = bytes.fromhex("fd000000000000000000000000000002")
    assert said[:14] == bytes.fromhex("333300000001") + RAW + b"\x86\xdd"
    assert said[14:22] == bytes.fromhex("60000000 0020 3a ff")  # 32 bytes of ICMPv6, hop limit 255
    assert said[22:38] == ip
    assert said[38:54] == bytes.fromhex("ff020000000000000000000000000001")
    assert said[54:56] == bytes((136, 0))
    assert said[58:62] == bytes.fromhex("20000000")  # override; neither router nor solicited
    assert said[62:78] == ip
    assert said[78:] == bytes((2, 1)) + RAW
    assert len(said) == 86


def test_the_checksum_of_an_advertisement_adds_up() -> None:
    said = unsolicited_na(MAC, "fd00::2")
    summed = said[22:54] + struct.pack("!II", 32, 58) + said[54:]
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def test_one_frame_an_address_and_one_for_switches() -> None:
    assert frames(MAC, ["10.0.0.2", "fd00::2"]) == [
        rarp(MAC),
        gratuitous_arp(MAC, "10.0.0.2"),
        unsolicited_na(MAC, "fd00::2"),
    ]


def test_no_address_no_frame() -> None:
    with pytest.raises(ValueError, match="not an address"):
        frames(MAC, ["not an address"])
