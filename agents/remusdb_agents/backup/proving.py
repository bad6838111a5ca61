# SPDX-License-Identifier: Apache-2.0
"""When a standby is proven, and who hears of it.

Owns what is known of the present session's standby. Invariant: what is told is of the machine that would be resumed;
a proof that outlived its session is dropped.

    first epoch committed ─▶ proof ─▶ proven, refused: again after an hour ─┐
                               ▲  └─▶ unable: told, tried again sooner ──────┤
                               └────────────────────────────────────────────┘
"""

from __future__ import annotations

import contextlib
import logging
import time
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from remusdb.core.messages import Proof, pack
from remusdb.core.standby import StandbyState
from remusdb.core.wire import FrameType
from remusdb.deadline import Deadline, poll_until
from remusdb.errors import NoThread, PeerUnreachable
from remusdb.threads import spawn
from remusdb.transport.stream import FrameStream
from remusdb_agents.backup.standby.machine import Machine

if TYPE_CHECKING:
    from remusdb_agents.backup.replica import Replica

log = logging.getLogger(__name__)

RETRY_S = (30.0, 60.0, 300.0, 1800.0)  # a proof that was not possible is tried again; the last one repeats
AGAIN_S = 3600.0  # a guest that was started anew may use what it did not use before
LOOK_S = 1.0


class Proving:
    """The proofs of one replica's standby."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._of: Machine | None = None  # whose proofs these are
        self._last: Proof | None = None
        self._proven: Proof | None = None

    def begin(self, machine: Machine) -> None:
        """Prove this standby, in a thread: it is a new session's, and its first epoch was just committed."""
        self._of, self._last, self._proven = machine, None, None
        try:
            spawn(self._run, machine, name=f"prove-{self._replica.vm}")
        except NoThread as exc:
            log.error("%s: the standby is not proven: %s", self._replica.vm, exc)
            self._take(machine, Proof("unable", time.time_ns(), reason=str(exc), hint=exc.hint))

    def _run(self, machine: Machine) -> None:
        delays = chain(RETRY_S, repeat(RETRY_S[-1]))
        while self._current(machine):
            self._prove(machine)
            unable = self._last is None or self._last.verdict == "unable"
            again = Deadline.after(next(delays) if unable else AGAIN_S)
            poll_until(lambda: not self._current(machine), again, LOOK_S)

    def _prove(self, machine: Machine) -> None:
        try:
            machine.prover.prove(lambda proof: self._take(machine, proof))
        except Exception as exc:  # task boundary: whatever it was, the primary waits for a word
            log.exception("%s: the proof of the standby failed", self._replica.vm)
            self._take(machine, Proof("unable", time.time_ns(), reason=f"{type(exc).__name__}: {exc}"))

    def _current(self, machine: Machine) -> bool:
        return self._replica.machine is machine and self._replica.core.state is not StandbyState.PROMOTED

    def _take(self, machine: Machine, proof: Proof) -> None:
        replica = self._replica
        with replica.lock:
            if not self._current(machine) or (proof.verdict == "unable" and self._proven is not None):
                return  # the last one that could be tried is what counts
            before, self._last = self._last, proof
            if proof.verdict == "proven":
                self._proven = proof
            stream = replica.stream
        if proof.verdict != "proven" and (before is None or before.reason != proof.reason):
            replica.tell("unproven", replica.core.state.value, unproven(proof))
        if stream is not None:
            self.tell(stream)

    def rehearsed(self, machine: Machine, epoch: int, took_ms: float) -> None:
        """A rehearsal resumed this epoch: more than a proof."""
        self._take(machine, Proof("proven", time.time_ns(), epoch, took_ms))

    def tell(self, stream: FrameStream) -> None:
        """Tell the primary, also one whose connection was made anew, what is known."""
        last = self._last
        if last is not None and self._of is self._replica.machine:
            with contextlib.suppress(PeerUnreachable):
                stream.send(FrameType.PROOF, self._replica.session_term, last.epoch, pack(last))

    def status(self) -> dict[str, Any]:
        """The part of `Replica.status` that is about it."""
        mine = self._of is self._replica.machine
        last, proven = (self._last, self._proven) if mine else (None, None)
        return {
            "proven_at_ns": proven.at_ns if proven else None,
            "proven_epoch": proven.epoch if proven else None,
            "proven_ms": proven.took_ms if proven else None,
            "unproven": unproven(last) if last and last.verdict != "proven" else "",
        }


def unproven(proof: Proof) -> str:
    """Why a standby is not proven, in words."""
    if proof.verdict == "refused":
        return f"QEMU would refuse to resume the standby, a takeover would boot its disks: {proof.reason}"
    return f"the standby could not be proven: {proof.reason}"
