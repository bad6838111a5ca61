# SPDX-License-Identifier: Apache-2.0
"""The standby is proven: a copy of it takes the last epoch's device state, once, and is thrown away unrun.

    copy started, empty ─▶ replica frozen ─▶ its memory lent ─▶ device state loaded ─▶ thawed, told, thrown away

What QEMU refuses it would refuse at the takeover, and the VM would be booted from its disks. A takeover, or the
session's end, does not wait for a proof: it breaks the freeze, and that kills the copy.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote

from remusdb import safexml
from remusdb.core.messages import Hello, Proof
from remusdb.errors import RefusedForSafety, RemusError, VmError
from remusdb.log import VmLog
from remusdb_agents.backup.applier import Applier
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.rehearsal.copy import Copy
from remusdb_agents.backup.rehearsal.run import Rehearsals
from remusdb_agents.backup.standby.borrowed_memory import BorrowedMemory
from remusdb_agents.backup.standby.qemu import SMALL_BLOCK_BYTES, StandbyQemu, StateRefused

log = logging.getLogger(__name__)

GONE_S = 1.0  # a QEMU that is killed, with the memory that it had

# A word of QEMU's refusal, and what can be done about it.
HINTS = (
    ("savevm section", "the backup's QEMU lacks a device that the VM has: give both hosts the same QEMU and libvirt"),
    (
        "unsupported. Allowed",
        "the guest uses virtio features that the backup's kernel or QEMU lacks: bring it up to date",
    ),
    ("saved image requires", "the guest uses virtio features that the backup's kernel lacks: bring it up to date"),
    ("MSR", "the backup's CPU or kernel lacks what the VM's CPU model has: choose a model that both hosts have"),
    ("kvm", "the backup's CPU or kernel lacks what the VM's CPU model has: choose a model that both hosts have"),
)
HINT = (
    "the backup would have to boot the VM from its disks: give both hosts the same QEMU, kernel and firmware packages"
)


class Prover:
    """Proves one session's standby."""

    def __init__(
        self,
        context: Context,
        hello: Hello,
        standby: StandbyQemu,
        applier: Applier,
        images: Mapping[str, Path],
        rehearsals: Rehearsals,
    ) -> None:
        self._context = context
        self._hello = hello
        self._standby = standby
        self._applier = applier
        self._images = images
        self._rehearsals = rehearsals

    def prove(self, tell: Callable[[Proof], None]) -> None:
        """One proof; `tell` gets what came of it once the copy's memory is free; to throw it away takes longer."""
        began = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._rehearsals.alone("proof"))
                room = stack.enter_context(self._room())
                copy = stack.enter_context(contextlib.closing(self._copy()))
                proof = self._load(copy, began)
                copy.domain.kill()
                copy.domain.ends_within(GONE_S)
                room.close()
                tell(proof)
        except RemusError as exc:
            tell(Proof("unable", time.time_ns(), reason=str(exc), hint=exc.hint))

    def _copy(self) -> Copy:
        if self._applier.over:
            raise RefusedForSafety(self._applier.over)
        return Copy(self._context.config, self._hello, self._images)

    def _room(self) -> contextlib.ExitStack:
        """Memory for a second QEMU, whose guest's memory stays where it is; until it is closed."""
        name = f"{self._hello.vm}-rehearsal"
        sizes = [block.size for block in self._hello.blocks]
        self._context.admission.admit(name, sum(size for size in sizes if size <= SMALL_BLOCK_BYTES))
        room = contextlib.ExitStack()
        room.callback(self._context.admission.release, name)
        return room

    def _require_seen(self, memory: BorrowedMemory) -> None:
        """KVM itself writes the pages of Hyper-V's features while it takes a vCPU's state, and would be refused."""
        hyperv = safexml.parse(self._hello.domain_xml).find("./features/hyperv") is not None
        if hyperv and not memory.kernel_too:
            raise VmError(
                "it has Hyper-V features, and its QEMU may not ask for page faults that KVM takes",
                hint=f"have all of its memory copied instead: remusdb rehearse {quote(self._hello.vm)}",
            )

    def _load(self, copy: Copy, began: float) -> Proof:
        backlog = self._context.config.limits.rehearsal_backlog_max_bytes
        with contextlib.closing(copy.borrow(self._standby)) as memory, self._applier.freeze(backlog) as frozen:
            self._require_seen(memory)
            froze = time.monotonic()
            frozen.on_broken(copy.domain.kill)
            try:
                with memory.lend():
                    copy.load(frozen.devices, frozen.catch_up)
            except StateRefused as exc:
                frozen.require()
                VmLog(log, self._hello.vm).error("the standby is refused: %s", exc)
                return Proof("refused", time.time_ns(), frozen.epoch, reason=str(exc), hint=hint_of(str(exc)))
            ended = time.monotonic()
        took_ms = 1000 * (ended - began)
        log.info(
            "%s: the standby is proven at epoch %d: %.0f ms, of which it stood still for %.0f; %d pages were touched",
            self._hello.vm, frozen.epoch, took_ms, 1000 * (ended - froze), memory.given,
        )  # fmt: skip
        return Proof("proven", time.time_ns(), frozen.epoch, round(took_ms, 1))


def hint_of(reason: str) -> str:
    """What can be done about this refusal of QEMU's."""
    return next((hint for word, hint in HINTS if word.lower() in reason.lower()), HINT)
