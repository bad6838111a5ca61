# SPDX-License-Identifier: Apache-2.0
"""`remusdb rehearse`: the last committed state is resumed as a copy that nobody can hear, looked at, thrown away.

    copy started, empty ─▶ replica frozen ─▶ memory copied ─▶ device state, resume ─▶ checks ─▶ thrown away ─▶ thawed

The copy's disks are overlays, so the replica must stand still for as long as it runs; committed epochs wait in
memory and are acknowledged as ever. A takeover, or the session's end, never waits for a rehearsal: it breaks the
freeze, and the rehearsal ends itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from remusdb.control import Progress, ProgressFn
from remusdb.control.api import Look, Rehearsed
from remusdb.core.messages import Hello
from remusdb.errors import DiskError, RefusedForSafety, RemusError
from remusdb.log import VmLog
from remusdb_agents.backup.applier import Applier, Frozen
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.rehearsal.checks import Checks, verdict
from remusdb_agents.backup.rehearsal.copy import Copy
from remusdb_agents.backup.standby.qemu import StandbyQemu

log = logging.getLogger(__name__)

REHEARSAL_S = 900.0  # more than a rehearsal may take
PROOF_S = 60.0  # what a proof may take, with its QEMU's start and end
GONE_S = 5.0  # a session's end waits so long for the copy to go
ROOM_BYTES = 256 << 20  # what the copy must leave free where the replica's images are
TOLD_BYTES = 64 << 20


@dataclass(frozen=True)
class Wanted:
    """What is asked for: how long to look at the copy, a TCP port that must answer, the guest's known addresses."""

    seconds: float
    tcp_port: int | None
    addresses: list[str]


class Rehearsals:
    """The rehearsals of one session's replica, one at a time."""

    def __init__(
        self,
        context: Context,
        hello: Hello,
        standby: StandbyQemu,
        applier: Applier,
        images: Mapping[str, Path],
    ) -> None:
        self._context = context
        self._config = context.config
        self._hello = hello
        self._standby = standby
        self._applier = applier
        self._images = images
        self._busy = threading.Lock()
        self._what = "rehearsal"  # what `_busy` was last taken for

    def run(self, wanted: Wanted, term: int, progress: ProgressFn) -> Rehearsed:
        """One rehearsal of the replica, which is of session `term`."""
        with self.alone("rehearsal"):
            return self._run(wanted, term, progress)

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Have the one copy that there may be, for a rehearsal or a proof. RefusedForSafety when there is one.

        A proof is waited for: it is short, and nobody but remusdb knows of it. And a proof waits: nobody else asks.
        """
        patience_s = PROOF_S if self._what == "proof" else REHEARSAL_S if what == "proof" else 0.0
        if not self._busy.acquire(timeout=patience_s):
            raise RefusedForSafety(f"a {self._what} of {self._hello.vm} runs already", hint="wait for its end")
        self._what = what
        try:
            yield
        finally:
            self._busy.release()

    def await_gone(self) -> None:
        """Once the freeze is broken: wait for the copy to go, not without bound."""
        if self._busy.acquire(timeout=GONE_S):
            self._busy.release()

    def _run(self, wanted: Wanted, term: int, progress: ProgressFn) -> Rehearsed:
        began = time.monotonic()
        ram = sum(block.size for block in self._hello.blocks)
        name = f"{self._hello.vm}-rehearsal"
        self._context.admission.admit(name, ram)
        try:
            return self._rehearse(wanted, term, ram, began, progress)
        finally:
            self._context.admission.release(name)

    def _rehearse(self, wanted: Wanted, term: int, ram: int, began: float, progress: ProgressFn) -> Rehearsed:
        self._require_room()
        progress(Progress(step="start an empty copy"))
        with contextlib.closing(Copy(self._config, self._hello, self._images)) as copy:
            with self._applier.freeze(self._config.limits.rehearsal_backlog_max_bytes) as frozen:
                froze = time.monotonic()
                try:
                    self._fill(copy, frozen, ram, progress)
                    resume_ms = copy.resume(frozen.devices, frozen.catch_up)
                    checks = self._look(copy, frozen, wanted, progress)
                finally:
                    copy.close()  # while what it reads still stands still
                held_back = frozen.waiting
            thawed = time.monotonic()
        passed = verdict(checks, wanted.tcp_port is not None)
        VmLog(log, self._hello.vm).info("rehearsed epoch %d: %s", frozen.epoch, "runs" if passed else "NO SIGN OF LIFE")
        return Rehearsed(
            vm=self._hello.vm,
            term=term,
            epoch=frozen.epoch,
            ok=passed,
            checks=checks,
            resume_ms=round(resume_ms, 1),
            took_ms=round((thawed - began) * 1000, 1),
            frozen_ms=round((thawed - froze) * 1000, 1),
            held_back_epochs=held_back,
        )

    def _fill(self, copy: Copy, frozen: Frozen, ram: int, progress: ProgressFn) -> None:
        shown = -TOLD_BYTES

        def told(done: int) -> None:
            nonlocal shown
            frozen.require()
            if self._applier.crowded:
                raise RemusError(
                    f"the rehearsal was ended before the copy ran: {self._full()}",
                    hint="raise that limit in agent.toml, or rehearse when the VM writes less",
                )
            if done - shown >= TOLD_BYTES or done == ram:
                shown = done
                progress(Progress(step="copy memory", done=done, total=ram, unit="bytes"))

        copy.fill(self._standby, told)

    def _look(self, copy: Copy, frozen: Frozen, wanted: Wanted, progress: ProgressFn) -> list[Look]:
        def ended(wait_s: float) -> str:
            frozen.require(wait_s)
            if self._applier.crowded:
                return self._full()
            return "" if self._room() >= ROOM_BYTES else "the copy's writes fill the disk of the replica's images"

        def told(ran: float) -> None:
            progress(Progress(step="the copy runs", done=round(ran, 1), total=wanted.seconds, unit="s"))

        return Checks(copy, wanted.addresses, wanted.tcp_port).watch(wanted.seconds, ended, told)

    def _full(self) -> str:
        limit = self._config.limits.rehearsal_backlog_max_bytes >> 20
        return f"the epochs that wait meanwhile passed {limit} MiB (limits.rehearsal_backlog_max_bytes)"

    def _room(self) -> int:
        stats = os.statvfs(self._config.agent.image_dir)
        return stats.f_bavail * stats.f_frsize

    def _require_room(self) -> None:
        if (room := self._room()) < 2 * ROOM_BYTES:
            raise DiskError(
                f"a copy needs room for what it writes: {room >> 20} MiB are free in {self._config.agent.image_dir}, "
                f"{2 * ROOM_BYTES >> 20} MiB are wanted",
                hint="free space there",
            )
