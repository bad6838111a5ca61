# SPDX-License-Identifier: Apache-2.0
"""The output gate: what a backend must do.

Owns the way out of one network interface of one VM. Invariant: a frame the VM sent after `mark(n)` and
before `mark(n + 1)` leaves only after `release(n + 1)`. A gate is closed when it is made, and nothing leaves
when its process dies.

    install() ─▶ passing ──hold()──▶ holding ◀─mark/release─┐   remove() from any state
                    ▲                    │                   │
                    └────open_all()──────┴───────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class GateMetrics:
    """What a gate holds and did: frames, bytes, and the guest's own addresses seen in its output."""

    held_frames: int = 0
    held_bytes: int = 0
    released_frames: int = 0
    dropped_frames: int = 0
    early_frames: int = 0  # of the released ones: by the rule of commit protection, before their epoch was committed
    addresses: tuple[str, ...] = field(default=())


class Gate(Protocol):
    """One interface's gate. One call at a time (`GateGroup` sees to it); every call returns once it took effect."""

    def install(self) -> None:
        """Wire the gate in under the live VM, letting everything pass (nothing is held yet)."""

    def adopt(self) -> None:
        """Take over a wiring that a dead process left behind, closed."""

    def hold(self) -> None:
        """From now on nothing leaves but by `release`. Epochs count from 1 again, unless it was holding already."""

    def mark(self, epoch: int) -> None:
        """Everything sent so far and not yet marked belongs to `epoch`. Called while the VM is stopped.

        The same as `mark_begin` and `mark_wait` in a row.
        """

    def mark_begin(self, epoch: int) -> None:
        """Ask for the mark; the VM must stay stopped until `mark_wait` returned. No other call in between."""

    def mark_wait(self) -> None:
        """Wait until the mark asked for is made."""

    def release(self, epoch: int, early_until: float = 0.0) -> None:
        """Let go, in order, everything marked with `epoch` or an earlier one.

        With commit protection: also what the rule lets go early, until then by the monotonic clock, in seconds.
        """

    def open_flows(self) -> bytes:
        """The flows that were open at the last mark (`core/release`), packed; empty without commit protection."""

    def open_all(self) -> None:
        """Let go everything held and pass from now on (protection ended in good order)."""

    def drop_held(self) -> None:
        """Throw away everything held; stay closed (this side was fenced). Epochs count from 1 again."""

    def remove(self) -> None:
        """Take the wiring out; the interface is left as `install` found it."""

    def metrics(self) -> GateMetrics:
        """Counters, for status."""
