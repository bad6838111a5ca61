# SPDX-License-Identifier: Apache-2.0
"""Quarantines a fenced VM: it ends, nobody starts it again by accident, and what is worth keeping is kept.

Every step can be repeated: a crash or an error in the middle leaves a VM that does not speak, and a call that is
made again does what is left. The order: first the definition is saved, then the VM ends, then it is undefined, and
only then are its disks moved, which nobody uses by now.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import libvirt

from remusdb.deadline import Deadline
from remusdb.errors import RemusError, VmError
from remusdb.host.quarantine.files import SavedDefinition, move_aside, remove_older
from remusdb.names import file_stem
from remusdb.net.factory import make_gate
from remusdb.net.links import Links
from remusdb.state import VmState
from remusdb.vm.autostart import autostart_off
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import connect
from remusdb.vm.killing import kill_qemu

log = logging.getLogger(__name__)

CALL_S = 5.0  # each call of libvirt's
END_S = 10.0  # a QEMU that was killed, until it is gone
TAP_S = 2.0  # the tap goes a little after its QEMU

Policy = Literal["keep", "discard"]

# The TPM's state and the NVRAM stay, as disks do. A managed save image must not: it is the VM, ready to go on.
UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)


@dataclass(frozen=True)
class Quarantined:
    """What is left of the VM here. `disks` (target to path) and `formats` are what VmState should hold of it."""

    disks: dict[str, str]
    formats: dict[str, str]
    definition: Path | None
    note: str


def quarantine(libvirt_uri: str, state: VmState, policy: Policy, image_dir: Path, state_dir: Path) -> Quarantined:
    """End the VM for good: it runs in `state.term` on `state.owner`. Blocks, up to some 40 s.

    `keep`: disks in our own folder IMAGE_DIR/VM move to its `quarantine-termN` (older ones are removed), all others
    stay where they are; the result names them. `discard`: ours stay, as the base of the next resync, and are named
    nowhere; the others are named in the note alone. A disk that remusdb did not make is never deleted or moved.

    ValueError unless the VM's role here is `fenced`: in another, it may be the VM's own home, or its standby.
    VmError when libvirt does not answer: QEMU is dead by then (if not, the message says so), the rest is not done;
    call it again later. GateError never: a gate's leftovers are harmless, and are logged.
    """
    if state.role != "fenced":
        raise ValueError(f"VM {state.vm} is {state.role} here, not fenced")
    saved = SavedDefinition(state_dir, state.vm, state.term)
    _end(libvirt_uri, state.vm, saved)
    _remove_gates(state.gates)
    definition = saved.definition if saved.definition.exists() else None
    folder = image_dir / file_stem(state.vm)
    if definition is None:  # quarantined long ago, or never defined here
        disks = {target: path for target, path in state.quarantined_disks.items() if Path(path).exists()}
        return Quarantined(disks, state.quarantined_formats, None, _note(state, None, disks, [], policy))
    disks = saved.disks()
    if policy == "discard":
        disks = {target: path for target, path in disks.items() if Path(path).parent.resolve() != folder.resolve()}
        return Quarantined({}, {}, definition, _note(state, definition, disks, [], policy))
    now = {target: move_aside(path, folder, state.term) for target, path in disks.items()}
    saved.rename_disks({old: now[target] for target, old in disks.items()})
    removed = remove_older(folder, state.term)
    return Quarantined(now, saved.formats(), definition, _note(state, definition, now, removed, policy))


def _end(libvirt_uri: str, vm: str, saved: SavedDefinition) -> None:
    """No QEMU of this VM, and no definition."""
    calls = BlockingCalls(CALL_S)
    connection: libvirt.virConnect | None = None
    try:
        connection = connect(libvirt_uri, calls)
        handle = calls.call(f"VM {vm}", _find, connection, vm)
        if handle is not None:
            calls.call(f"definition of VM {vm}", _if_there, saved.save, handle)
            calls.call(f"autostart of VM {vm}", _if_there, autostart_off, handle)
            _destroy(calls, handle, vm)
            calls.call(f"undefine VM {vm}", _if_there, _undefine, handle)
        kill_qemu(vm, END_S)  # one that libvirt has lost sight of
    except VmError as exc:
        saved.save_without_libvirt()
        kill_qemu(vm, END_S)
        raise VmError(f"{exc}; its QEMU is dead, its definition is still there", hint=exc.hint) from exc
    finally:
        if connection is not None:
            with contextlib.suppress(VmError):  # here, as letting go of it asks libvirt too, and may hang like any call
                calls.call("close", connection.close)
        calls.close()


def _find(connection: libvirt.virConnect, vm: str) -> libvirt.virDomain | None:
    try:
        return connection.lookupByName(vm)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _destroy(calls: BlockingCalls, handle: libvirt.virDomain, vm: str) -> None:
    """By libvirt, which tidies up after it; by the kernel when it takes libvirt too long, and libvirt then follows."""
    asked = calls.start(_if_there, _destroy_running, handle)
    try:
        calls.finish(asked, f"destroy VM {vm}")
    except VmError as exc:
        log.warning("%s: its QEMU is killed", exc)
        kill_qemu(vm, END_S)
        calls.finish(asked, f"destroy VM {vm}")


def _destroy_running(handle: libvirt.virDomain) -> None:
    try:
        if handle.isActive():
            handle.destroy()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:  # it ended by itself just now
            raise


def _undefine(handle: libvirt.virDomain) -> None:
    if handle.isPersistent():
        handle.undefineFlags(UNDEFINE)


def _if_there(call: Callable[[libvirt.virDomain], object], handle: libvirt.virDomain) -> None:
    """A VM without a persistent definition goes with its QEMU, at any moment: then there is nothing left to do."""
    try:
        call(handle)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def _remove_gates(gates: list[dict[str, str]]) -> None:
    """What a dead worker left around taps that are gone. The name of a tap that is there may be another VM's by now."""
    for gate in gates:
        kind, tap = gate.get("kind", ""), gate.get("tap", "")
        if kind not in ("tap", "plug") or not tap:
            log.warning("a gate that is not understood is left alone: %s", gate)
            continue
        try:
            if _tap_goes(tap, gate.get("mac", "")):
                make_gate("plug" if kind == "plug" else "tap", tap).remove()
            else:
                log.warning("interface %s is there, another VM's perhaps: what a gate may have left there stays", tap)
        except RemusError as exc:
            log.warning("the gate of %s, which is gone, is not removed: %s", tap, exc)


def _tap_goes(tap: str, guest_mac: str) -> bool:
    """Whether the tap is gone, or goes in a moment: one that has our VM's MAC (libvirt: with fe in front) may."""
    deadline = Deadline.after(TAP_S)
    with Links() as links:
        while (link := links.find(tap)) is not None:
            if link.mac[2:].lower() != guest_mac[2:].lower() or deadline.over:
                return False
            time.sleep(0.05)
    return True


def _note(state: VmState, definition: Path | None, disks: dict[str, str], removed: list[Path], policy: Policy) -> str:
    """The words for status and history."""
    said = ["shut off and quarantined here"]
    if definition is not None:
        said.append(
            f"its definition is saved in {definition} (to get it back under another name and uuid: edit both, and "
            f"`virsh define {definition}`)"
        )
    named = ", ".join(f"{target} in {path}" for target, path in sorted(disks.items()))
    if named:
        said.append(f"disks kept: {named}" if policy == "keep" else f"no longer used, yours to delete: {named}")
    if removed:
        said.append("removed, from earlier terms: " + ", ".join(str(path) for path in removed))
    return "; ".join(said)
