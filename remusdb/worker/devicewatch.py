# SPDX-License-Identifier: Apache-2.0
"""Notices that a protected VM's devices changed, which ends its session: the standby was built without that change.

Owns one thread, libvirt's device events and, once output is gated, the watch over the VM's taps. Invariant: no epoch
passes `require_same` whose device state speaks of other devices than the first epoch's, or after which QEMU has memory
that is not tracked.

    what                     noticed by                                        before
    a new interface          its tap, which is shut at once (tapwatch.py)      the guest can see it
    disk, NIC, vCPU, USB ... the sections of each epoch's device state         the epoch is shipped
    memory                   QEMU's size, each epoch                           the epoch is shipped
    any of these, media      libvirt's events, and the live XML once a second  -

What it was is asked of libvirt; QEMU itself says whether there is anything where libvirt tells nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from remusdb import safexml
from remusdb.core.sections import Outline, Section, differences, outline_of
from remusdb.deadline import Deadline
from remusdb.errors import DevicesChanged, LibvirtAway, VmError
from remusdb.threads import spawn
from remusdb.vm.device_events import DeviceEvents
from remusdb.vm.domain import Domain
from remusdb.vm.endwatch import QEMU_END_S
from remusdb.vm.inventory import changes, inventory
from remusdb.vm.libvirt_link import LibvirtLink
from remusdb.vm.monitor import field_of, objects_in
from remusdb.vm.ramblocks import PAGE_BYTES, Block
from remusdb.worker.tapwatch import TapWatch

log = logging.getLogger(__name__)

LOOK_S = 1.0
EXPLAIN_S = 1.0  # libvirt's own list follows QEMU by some ms; then what QEMU told has to do
EXPLAIN_LOOK_S = 0.02
ANSWER_S = 1.0  # for a libvirtd that hangs
STATM_BYTES = 256  # seven numbers
GROWTH_BYTES = 32 << 20  # of QEMU's address space: a thread takes 8 MiB, a memory module hardly less than 128
CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")  # all that was ever added, vCPUs and memory too


class DeviceWatch:
    """Of one session: `start` in the initial sync, `arm` once the gates hold, `close` at its end."""

    def __init__(
        self,
        domain: Domain,
        blocks: list[Block],
        changed: Callable[[DevicesChanged], None],
        explain_s: float = EXPLAIN_S,
    ) -> None:
        """`changed` is told once, from a thread of this class or the one that calls `arm`."""
        self._domain = domain
        self._blocks = {(block.name, block.size) for block in blocks}
        self._changed = changed
        self._explain_s = explain_s
        self._devices = inventory(domain.tree)  # what the agent was told to build
        self._in_qemu = self._ask_qemu()
        self._statm = Path(f"/proc/{domain.pid}/statm")
        self._size = self._address_space()
        self._sections: list[Section] | None = None
        self._outline: Outline | None = None  # of the last state that was searched: it had these sections
        self._suspicion = ""
        self._hint = threading.Event()
        self._over = threading.Event()
        self._told = threading.Lock()
        self._taps: TapWatch | None = None

    def start(self, link: LibvirtLink) -> None:
        """Look once a second, and whenever libvirt says so."""
        self._events = DeviceEvents(link.connection, self._domain, self._hint.set)
        link.on_renewed(self._events.renew)
        spawn(self._watch, name="devices")

    def arm(self) -> None:
        """The gates hold from here on: any other tap of the VM is shut."""
        self._taps = TapWatch(self._domain.pid, [nic.tap for nic in self._domain.nics], self._suspect)
        self._taps.start()

    def close(self) -> None:
        """Look no more; what was shut stays shut. May be called twice."""
        if self._over.is_set():
            return
        self._over.set()
        self._hint.set()
        self._events.close()
        if self._taps is not None:
            self._taps.close()

    def require_same(self, state: bytes) -> None:
        """DevicesChanged where this epoch must not be shipped. In the ship thread, with the VM running."""
        if self._outline is None or not self._outline.fits(state):
            self._look_at(state)
        size = self._address_space()
        if size > self._size + GROWTH_BYTES:
            self._require_same_memory()
            self._size = size
        self._size = min(self._size, size)

    def _look_at(self, state: bytes) -> None:
        outline = outline_of(state)
        sections = outline.sections if outline else None
        if self._sections is None:
            self._sections = sections
            if sections is None:
                log.warning("QEMU's device state cannot be read: changes of devices are noticed by libvirt alone")
        elif sections != self._sections:
            self._judge(sections)
        self._outline = outline

    def explained(self, failure: Exception) -> Exception:
        """The change of devices that lies behind a failure, if one does: a gate fails when its tap is taken away."""
        if self._domain.ends_within(QEMU_END_S):
            return failure
        what = self._different(self._explain_s)
        return _change(what) if what else failure

    def _judge(self, sections: list[Section] | None) -> None:
        """The state speaks of other devices. A device may also begin to have state of its own: that is no change."""
        if sections is None:
            raise _change(self._different(self._explain_s) or "QEMU's device state cannot be read any more")
        came, went = differences(self._sections or (), sections)
        told = [f"QEMU's device state has {one} as well" for one in came]
        told += [f"QEMU's device state lacks {one}" for one in went]
        what = self._different(self._explain_s)
        if what or not self._same_in_qemu():
            raise _change(what or "; ".join(told) or "QEMU has other devices")
        log.warning("%s, with the same devices", "; ".join(told) or "the device state comes in another order")
        self._sections = sections

    def _require_same_memory(self) -> None:
        blocks = {(block.name, block.size) for block in self._domain.blocks()}
        if blocks != self._blocks:
            names = ", ".join(sorted(name for name, _ in blocks ^ self._blocks))
            raise _change(self._different(self._explain_s) or f"QEMU has other memory: {names}")

    def _watch(self) -> None:
        """Task boundary."""
        while not self._over.is_set():
            self._hint.wait(LOOK_S)
            self._hint.clear()
            try:
                self._look()
            except Exception:
                log.exception("looking for changes of devices failed")

    def _look(self) -> None:
        suspicion, self._suspicion = self._suspicion, ""
        what = self._different(self._explain_s if suspicion else 0) or (suspicion if self._stands(suspicion) else "")
        if what and not self._over.is_set() and self._told.acquire(blocking=False):
            self._changed(_change(what))

    def _suspect(self, what: str) -> None:
        """The kernel saw something happen to a tap; libvirt will know better in a moment."""
        self._suspicion = what
        self._hint.set()

    def _stands(self, suspicion: str) -> bool:
        """Whether a suspicion that libvirt does not confirm is one still: an attach may have failed and been undone."""
        return bool(suspicion) and (self._taps is None or self._taps.wrong())

    def _different(self, within_s: float) -> str:
        """What became different by libvirt's list, waited for so long; empty when nothing did, or nobody can say."""
        deadline = Deadline.after(within_s)
        while True:
            told = self._ask_libvirt()
            if told or deadline.over or self._over.wait(EXPLAIN_LOOK_S):
                return ", ".join(told)

    def _ask_libvirt(self) -> list[str]:
        calls = self._domain.calls
        try:
            asked = calls.start(lambda: self._domain.handle.XMLDesc(0))
            tree = safexml.parse(calls.finish(asked, "devices", ANSWER_S))
        except VmError as exc:
            log.debug("libvirt does not report the devices: %s", exc)
            return []
        # Without an id it is the definition of a VM that is off.
        return changes(self._devices, inventory(tree)) if tree.get("id") else []

    def _same_in_qemu(self) -> bool:
        try:
            return self._ask_qemu() == self._in_qemu
        except VmError:
            return False

    def _ask_qemu(self) -> set[str]:
        return {f"{container}/{name}" for container in CONTAINERS for name in self._children(container)}

    def _children(self, container: str) -> list[str]:
        try:
            children = objects_in("qom-list", self._domain.qmp("qom-list", path=container))
            return [field_of("qom-list", one, "name", str) for one in children]
        except LibvirtAway:
            raise
        except VmError:  # QEMU makes the containers when they are needed
            return []

    def _address_space(self) -> int:
        """Bytes of address space that QEMU has; 0 once it has ended."""
        try:
            with self._statm.open("rb", buffering=0) as file:  # for each epoch: no codec, no buffer
                return int(file.read(STATM_BYTES).split()[0]) * PAGE_BYTES
        except (OSError, IndexError, ValueError):
            return 0


def _change(what: str) -> DevicesChanged:
    return DevicesChanged(f"devices changed: {what}")
