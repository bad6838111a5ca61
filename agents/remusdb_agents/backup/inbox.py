# SPDX-License-Identifier: Apache-2.0
"""The open epoch on the agent: frames gathered until COMMIT says that all of them are here.

Invariant: an epoch leaves the inbox whole, with the number of frames and bytes that its COMMIT announced, or not
at all. Memory is bounded by `max_bytes` an epoch, in which each frame counts for what it takes, whatever it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from remusdb.core.messages import Commit, unpack
from remusdb.core.owed import Hopeless
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame


class EpochTooLarge(Hopeless):
    """An epoch above the bound."""


# What an empty frame takes here, 780 bytes as measured (docs/facts.md), and an epoch without any; rounded up.
FRAME_COST_BYTES = 1024


@dataclass(frozen=True)
class WholeEpoch:
    """One epoch, every byte of it here."""

    term: int
    epoch: int
    frames: list[Frame]
    addresses: list[str]
    stopped_at_ns: int | None = None  # of its cut, by this host's clock (catch_up.now_ns)
    stays: bool = False
    open_flows: list[bytes] = field(default_factory=list)  # of each interface; a takeover at this epoch breaks these

    @cached_property
    def cost_bytes(self) -> int:
        """The memory that it takes."""
        flows = sum(map(len, self.open_flows))
        return FRAME_COST_BYTES * (1 + len(self.frames)) + sum(len(frame.payload) for frame in self.frames) + flows


@dataclass
class Inbox:
    """Gathers one epoch at a time."""

    max_bytes: int
    _frames: list[Frame] = field(default_factory=list)
    _bytes: int = 0  # as they came
    _held: int = 0  # as they are kept
    _devices: bool = False  # a device state came

    def clear(self) -> None:
        """Forget the open epoch: its connection broke."""
        self._frames, self._bytes, self._held, self._devices = [], 0, 0, False

    def add(self, frame: Frame, came_bytes: int | None = None) -> None:
        """A bulk frame of the open epoch; BadFrame when epochs mix or the bound is passed. `came_bytes`: of the payload
        as it came, where it was exchanged for another."""
        if self._frames and (frame.epoch, frame.term) != (self._frames[0].epoch, self._frames[0].term):
            raise BadFrame(f"a frame of epoch {frame.epoch} inside epoch {self._frames[0].epoch}")
        if frame.type is FrameType.DEVICES:
            if self._devices:  # each may be some bytes here, and core.devices.MAX_DEVICE_STATE_BYTES once it is applied
                raise Hopeless(f"epoch {frame.epoch} has two device states")
            self._devices = True
        self._bytes += len(frame.payload) if came_bytes is None else came_bytes
        self._held += len(frame.payload)
        if self._held + FRAME_COST_BYTES * len(self._frames) > self.max_bytes:
            raise EpochTooLarge(f"epoch {frame.epoch} is larger than {self.max_bytes} bytes (limits.epoch_max_bytes)")
        self._frames.append(frame)

    def close(self, frame: Frame, arrived_ns: int) -> WholeEpoch:
        """COMMIT came just now: the epoch, if it is whole."""
        commit = unpack(Commit, frame.payload)
        frames, size = self._frames, self._bytes
        self.clear()
        if len(frames) != commit.frames or size != commit.payload_bytes:
            raise BadFrame(
                f"epoch {frame.epoch}: {len(frames)} frames of {size} bytes came, "
                f"{commit.frames} of {commit.payload_bytes} were announced"
            )
        if any((part.epoch, part.term) != (frame.epoch, frame.term) for part in frames):
            raise BadFrame(f"epoch {frame.epoch} holds frames of another")
        stopped_at = None if commit.age_ns is None else arrived_ns - max(0, commit.age_ns)
        return WholeEpoch(
            frame.term, frame.epoch, frames, commit.addresses, stopped_at, commit.stays, commit.open_flows
        )
