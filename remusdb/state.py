# SPDX-License-Identifier: Apache-2.0
"""What this host durably knows of each VM: its role, the newest term, and who owns the VM in it. One file a VM.

The host daemon, its workers and the agent of one machine share these files, so that none of them can forget what
another has learned. Invariants: terms only grow; a file is either the old or the new state, whole and on the disk
when `update` returns.

    none ─▶ seeding ─▶ protected ─▶ solo | fenced          (this host runs the VM, or did)
    none ─▶ standby ─▶ promoting ─▶ promoted ─▶ seeding    (this host keeps its replica, or took it over)
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from remusdb import durable
from remusdb.core.roles import Role
from remusdb.core.terms import Term
from remusdb.errors import Fenced, RemusError, UnreadableState, UsageError
from remusdb.names import file_stem, name_of, require_name
from remusdb.printable import printable
from remusdb.reasons import Reason
from remusdb.wording import words

log = logging.getLogger(__name__)

FORMAT = 2
FILE_MAX_BYTES = 1 << 20  # one of 64 quarantined disks, each in a long folder, has 0.3 MiB


class VmState(msgspec.Struct, frozen=True, kw_only=True):
    """One VM as this host knows it. Times are time.time_ns()."""

    vm: str
    uuid: str = ""  # of the VM that the rest is about; empty: whichever comes
    role: Role = "none"
    term: Term = 0
    owner: str = ""  # the host that owns the VM in `term`; empty: nobody that is known
    peer: str = ""  # the other host of the pair
    reason: str = ""  # in words
    why: Reason | None = None  # the same, where it is one of ours
    wanted: bool = False  # protection was asked for here: it is resumed after whatever ended it
    armed: bool = False  # the peer may hold epochs of `term`: output is held until it is known that it cannot take over
    paused: bool = False  # the VM was stopped here for a switchover that is not decided
    autostart: bool = False  # libvirt's autostart, as it was found
    gates: list[dict[str, str]] = []  # wiring that a dead worker may have left: kind, tap, mac
    quarantined_disks: dict[str, str] = {}  # disks of a fenced VM, quarantined here: target -> path
    quarantined_formats: dict[str, str] = {}  # of these: target -> raw, qcow2
    quarantined: bool = False  # a fenced VM was destroyed here, and cannot be started again by accident
    resuming: bool = False  # `promoting`, and the VM may run already: all that was committed is in its replica
    decided_at_ns: int | None = None
    resumed_at_ns: int | None = None
    changed_at_ns: int = 0


class StateStore:
    """The folder of these files (`STATE_DIR/vms`)."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "vms"

    def load(self, vm: str) -> VmState:
        """The VM's state; that of a VM nothing is known of is `none` in term 0."""
        path = self._path(vm)
        try:
            data = msgspec.json.decode(_read(path))
            if data.pop("format") != FORMAT:
                raise ValueError("it is of another version")
            state = msgspec.convert(data, VmState)
            if state.vm != vm:
                raise ValueError(f"it is that of VM {state.vm!r:.80}")
            return state
        except FileNotFoundError:
            return VmState(vm=vm)
        except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as exc:
            raise UnreadableState(
                f"{path}: the saved state of VM {vm} cannot be read: {exc}",
                hint="it holds the VM's term: be sure where the VM runs, move the file away, and protect again",
            ) from exc

    def update(self, vm: str, **changes: Any) -> VmState:
        """Change some fields so that they survive a power cut. Fenced when `term` would go back.

        `why`, a Reason, is written in words as well.
        """
        if "why" in changes:
            changes["reason"] = words(changes["why"])
        elif "reason" in changes:
            changes["why"] = None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with durable.alone(self._path(vm).with_suffix(".lock"), None):
                old = self.load(vm)
                new = msgspec.structs.replace(old, **changes)
                new = msgspec.structs.replace(new, reason=printable(new.reason))
                if new.term < old.term:
                    raise Fenced(f"VM {vm}: term {new.term} is older than {old.term}, which this host knows")
                self._write(new)
                return new
        except OSError as exc:
            raise RemusError(f"{self._path(vm)}: cannot be written: {exc.strerror}") from exc

    def names(self) -> list[str]:
        """The VMs of which something is known, by file name where that tells: their files may still be unreadable."""
        return sorted(filter(None, map(_name_in, self._folder.glob("*.json"))))

    def named(self, uuid: str) -> list[str]:
        """The VMs here that have this UUID, whatever their names. Files that cannot be read are left out."""
        found = []
        for vm in self.names():
            with suppress(RemusError):
                found += [vm] if self.load(vm).uuid == uuid else []
        return found

    def changed(self, vm: str) -> int:
        """A number that differs after each `update`, by whichever process; 0 for no file."""
        try:
            return self._path(vm).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _path(self, vm: str) -> Path:
        return self._folder / f"{file_stem(vm)}.json"

    def _write(self, state: VmState) -> None:
        path = self._path(state.vm)
        text = msgspec.json.format(msgspec.json.encode({"format": FORMAT, **msgspec.to_builtins(state)}))
        durable.write_file(path, text)


def _read(path: Path) -> bytes:
    """The file. ValueError for what is none, or too large: nothing that stands there is waited for, or fills memory."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a file")
        if found.st_size > FILE_MAX_BYTES:
            raise ValueError(f"it has more than {FILE_MAX_BYTES} bytes")
        return file.read(FILE_MAX_BYTES)


def _name_in(path: Path) -> str:
    """The VM whose file this is; empty where the name was too long to be the file's, and the file cannot be read."""
    stem = path.name.removesuffix(".json")
    try:
        name = name_of(stem)
        name = require_name(msgspec.json.decode(_read(path))["vm"] if name is None else name)
        if file_stem(name) != stem:
            raise UsageError(f"that of VM {name} is called {file_stem(name)}.json")
        return name
    except (OSError, KeyError, TypeError, ValueError, RecursionError, UsageError) as exc:
        log.error("%s: left alone, it does not say whose it is: %s", path, exc)
        return ""
