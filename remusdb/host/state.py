# SPDX-License-Identifier: Apache-2.0
"""What the host daemon must remember of each VM across its own death: one file a VM.

Invariant: a file is either the old or the new state, whole and on the disk when `save` returns. The worker's
own part (`saved`: role, term, gate wiring, ...) is opaque here but for its `role`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from remusdb.errors import RemusError

FORMAT = 1


@dataclass(frozen=True)
class SavedVm:
    """The last state that a worker asked to have kept."""

    vm: str
    peer: str
    saved: dict[str, Any] = field(default_factory=dict)

    @property
    def protected(self) -> bool:
        """Whether the worker left the VM protected (so its output may be held, and its peer may have it)."""
        return self.saved.get("role") == "protected"


class StateStore:
    """The folder of these files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: SavedVm) -> None:
        """Write the VM's file so that it survives a power cut from here on."""
        text = msgspec.json.format(
            msgspec.json.encode({"format": FORMAT, "vm": state.vm, "peer": state.peer, "saved": state.saved})
        )
        path = self._path(state.vm)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_durably(path, text)
        except OSError as exc:
            raise RemusError(f"{path}: cannot be written: {exc.strerror}") from exc

    def load(self, vm: str) -> SavedVm | None:
        """The VM's state, None if nothing is kept of it."""
        path = self._path(vm)
        return self._read(path) if path.exists() else None

    def names(self) -> list[str]:
        """The VMs of which something is kept, by file name alone: their files may still be unreadable."""
        return sorted(unquote(path.stem) for path in self._folder.glob("*.json"))

    def forget(self, vm: str) -> None:
        """Keep nothing of this VM any more."""
        try:
            self._path(vm).unlink(missing_ok=True)
            if self._folder.is_dir():
                _sync_folder(self._folder)
        except OSError as exc:
            raise RemusError(f"{self._path(vm)}: cannot be removed: {exc.strerror}") from exc

    def _path(self, vm: str) -> Path:
        return self._folder / f"{quote(vm, safe=' ')}.json"  # a VM's name may hold anything but a slash

    def _read(self, path: Path) -> SavedVm:
        try:
            data = msgspec.json.decode(path.read_bytes())
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}")
            return msgspec.convert({key: data[key] for key in ("vm", "peer", "saved")}, SavedVm)
        except (OSError, KeyError, TypeError, ValueError) as exc:
            raise RemusError(
                f"{path}: the saved state cannot be read: {exc}",
                hint="it holds the VM's term and gate wiring; if they are lost, move the file away and protect again",
            ) from exc


def _write_durably(path: Path, text: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
