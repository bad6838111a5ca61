# SPDX-License-Identifier: Apache-2.0
"""Frames of a guest, and recorded answers of real servers, for the tests of commit protection."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from typing import Any

from remusdb.core.release.frames import ACK, SYN

DATA = Path(__file__).parent / "data" / "release"
GUEST, CLIENT = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
GUEST_MAC, CLIENT_MAC = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")


@functools.cache
def recorded(server: str) -> dict[str, list[tuple[str, bytes]]]:
    """By scenario: what was asked, and what the server sent (tools/streams.py)."""
    made = json.loads((DATA / f"{server}.json").read_text())
    return {name: [(asked, bytes.fromhex(answer)) for asked, answer in steps] for name, steps in made.items()}


def frame(
    seq: int,
    payload: bytes = b"",
    *,
    flags: int = ACK,
    port: int = 5432,
    client_port: int = 40000,
    dscp: int = 0,
    vlan: int | None = None,
    six: bool = False,
    ack: int = 77,
) -> bytes:
    """A frame as a tap hands it out."""
    tcp = struct.pack("!HHIIBBHHH", port, client_port, seq % 2**32, ack, 0x50, flags, 1000, 0, 0) + payload
    if six:
        ends = bytes(12) + GUEST + bytes(12) + CLIENT
        packet = struct.pack("!IHBB", 6 << 28 | dscp << 22, len(tcp), 6, 64) + ends + tcp
    else:
        packet = struct.pack("!BBHHHBBH", 0x45, dscp << 2, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + GUEST + CLIENT + tcp
    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    return bytes(10) + CLIENT_MAC + GUEST_MAC + tag + (b"\x86\xdd" if six else b"\x08\x00") + packet


def hello(seq: int, **said: Any) -> bytes:
    """The SYN, ACK that begins a connection."""
    return frame(seq, flags=SYN | ACK, **said)
