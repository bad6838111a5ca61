# SPDX-License-Identifier: Apache-2.0
"""A few kilobytes do not become gigabytes: every compressed field, every way to claim a size."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable

import pytest
import zstandard

from remusdb.core.devices import HEAD, WHOLE
from remusdb.core.wire import FrameType
from remusdb.errors import RemusError
from tests.hostile.measure import MIB
from tests.hostile.rig import Rig, eventually
from tests.hostile.sayings import frame, honest, restated, zeros_frame

BOMB = 1 << 30
# What the largest payload that is allowed may cost while it is applied: 64 MiB of device state, XORed and copied.
PEAK = 256 * MIB

GIB = zeros_frame(BOMB, stated=BOMB)
SMALL = zeros_frame(4096, stated=4096)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 1 << 20) + bytes(1 << 20)
# name: (frame, the length that the field beside it claims, where there is one)
BOMBS: dict[str, tuple[bytes, int]] = {
    "1 GiB, stated, 4096 claimed": (GIB, 4096),
    "1 GiB, stated and claimed": (GIB, BOMB),
    "1 GiB, 64 MiB claimed": (GIB, 64 * MIB),
    "1 GiB, its size not stated": (zeros_frame(BOMB), 4096),
    "1 GiB, stated as 4096": (restated(GIB, 4096), 4096),
    "2^62 stated": (restated(GIB, 1 << 62), 4096),
    "2^64-1 stated": (restated(GIB, (1 << 64) - 1), 4096),
    "stated as nothing": (restated(GIB, 0), 0),
    "a good frame, then a bomb": (SMALL + GIB, 4096),
    "1000 good frames": (SMALL * 1000, 4096),
    "a frame to skip, then a bomb": (SKIPPABLE + GIB, 4096),
    "a good frame, then other bytes": (SMALL + b"x" * 1000, 4096),
    "a good frame, then a frame to skip": (SMALL + SKIPPABLE, 4096),
    "no frame": (b"", 4096),
    "half a frame": (SMALL[: len(SMALL) // 2], 4096),
    "noise": (b"\x28\xb5\x2f\xfd" + b"\xff" * 64, 4096),
    "a frame of nothing": (zstandard.ZstdCompressor().compress(b""), 0),
    "a window of 2 GiB": (b"\x28\xb5\x2f\xfd" + bytes([0x00, 21 << 3]) + GIB[6:], 4096),
}


def devices(bomb: bytes, claimed: int) -> bytes:
    """As device state."""
    return HEAD.pack(WHOLE, min(claimed, (1 << 32) - 1)) + bomb


def writes(bomb: bytes, _claimed: int) -> bytes:
    """As a write log."""
    return bomb


def pages(bomb: bytes, claimed: int) -> bytes:
    """As pages: one, or as many as there may be."""
    return struct.pack("<BBHIII", 1, 0, 0, 0, 1 if claimed <= 4096 else 2048, 0) + bomb


KINDS: dict[FrameType, Callable[[bytes, int], bytes]] = {
    FrameType.DEVICES: devices,
    FrameType.WRITES: writes,
    FrameType.PAGES: pages,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.name))
def test_bombs(rig: Rig, kind: FrameType) -> None:
    rig.start(made_up=True)
    took = {}
    with rig.unchanged(files=False, peak=PEAK):
        for name, (bomb, claimed) in BOMBS.items():
            for epoch in (0, 1):
                caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
                began = rig.size().cpu_s
                caller.commit(welcome.term, epoch, (kind, KINDS[kind](bomb, claimed))) if epoch else caller.say(
                    kind, KINDS[kind](bomb, claimed), welcome.term
                )
                told = caller.hear(FrameType.RENOUNCE, FrameType.TAKEN)
                assert told is None or told.type is FrameType.RENOUNCE, f"{name} was taken"
                took[name, epoch] = rig.size().cpu_s - began
                caller.close()
    assert max(took.values()) < 2.0, took
    assert "Traceback" not in rig.told()


def test_frames_that_carry_nothing(rig: Rig) -> None:
    """An epoch of empty frames that never ends: its session does, long before it is a burden."""

    rig.start(made_up=True, settings="[limits]\nepoch_max_bytes = 16777216\n")
    for kind in KINDS:
        with rig.unchanged(files=False, peak=PEAK):
            caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
            many = frame(kind, welcome.term, 1) * 5000
            end, sent = time.monotonic() + 15, 0
            with contextlib.suppress(RemusError):
                while time.monotonic() < end and sent < 500_000:
                    caller.link.write([many])
                    sent += 5000
            told = caller.hear(FrameType.RENOUNCE)
            assert told is not None, f"after {sent} empty {kind.name} frames of one epoch the session goes on"


def test_a_primary_that_does_not_wait_for_acknowledgements(rig: Rig) -> None:
    """What waits to be applied is bounded, whatever is sent; and it goes with the session."""

    rig.start(made_up=True, slow_ms=300, settings="[limits]\nepoch_max_bytes = 16777216\n")
    full = struct.pack("<BBHIII", 2, 0, 0, 0, 2048, 0) + b"\x01" * (2048 * 4096) + struct.pack("<I", 1) * 2048
    with rig.unchanged(files=False, peak=PEAK):
        caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")

        def flood() -> None:
            with contextlib.suppress(RemusError):
                for epoch in range(1, 100):
                    caller.commit(welcome.term, epoch, (FrameType.PAGES, full))

        sender = threading.Thread(target=flood, daemon=True)
        sender.start()
        sender.join(12)  # it may be held up by a full connection, which is well
        caller.close()
        sender.join(20)
        eventually(lambda: not sender.is_alive(), "the sender does not end")


def test_a_hello_that_is_too_large(agent: Rig) -> None:
    """It is not even read: 20 of 15 MiB each, all at once, one byte of them withheld."""
    with agent.unchanged(peak=128 * MIB):
        callers = []

        head = frame(FrameType.HELLO, payload=b"", claims=16 * MIB - 1)[:40]
        for _ in range(20):
            with contextlib.suppress(RemusError, OSError, AssertionError):
                caller = agent.call("alpha")
                callers.append(caller)
                caller.link.write([head, bytes(15 * MIB)])
        agent_size = agent.size()
        assert agent_size.resident < agent_size.peak + 1
        assert agent.serves()
