# SPDX-License-Identifier: Apache-2.0
"""The bundle: a tar.gz that is there whole or not at all, readable by its owner alone, of a size that is known before.

Invariant: every text passes `scrub`, or is made of values that have, whoever made it; no entry is a link, a device, or
a path that leads out of the folder that the bundle unpacks to.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from remusdb.diagnose.scrub import scrub, scrub_value
from remusdb.errors import UsageError
from remusdb.printable import json_text, printable
from remusdb.safefiles import open_folder

ENTRY_MAX_BYTES: Final = 2 << 20
BUNDLE_MAX_BYTES: Final = 24 << 20  # before it is compressed; so a mail or an issue takes it
ENTRIES_MOST: Final = 200
_LINE_MAX_BYTES: Final = 16 << 10
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._%+-]+")


class Bundle:
    """One file that is written; on an error nothing is left of it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder.absolute() / f"{name}.tar.gz"
        self.entries: list[str] = []
        self.left_out: dict[str, str] = {}
        self._top, self._left, self._now = name, BUNDLE_MAX_BYTES, int(time.time())
        try:
            self._folder = open_folder(folder)
        except OSError as exc:
            raise UsageError(f"--to {folder}: {exc.strerror}", hint="name a folder that is there") from exc

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.path.name, flags, 0o600, dir_fd=self._folder)
        except OSError as exc:
            os.close(self._folder)
            raise UsageError(f"{self.path}: {exc.strerror}") from exc
        os.fchmod(fd, 0o600)  # whatever the umask is
        self._file = open(fd, "r+b")
        self._tar = tarfile.open(fileobj=self._file, mode="w:gz")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._tar.close()
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as error:
            self._discard()
            raise UsageError(f"{self.path}: {error.strerror}", hint="name a folder with room: --to") from error
        else:
            if kind is not None:
                self._discard()
        finally:
            self._file.close()
            os.close(self._folder)

    @property
    def size_bytes(self) -> int:
        """Of the file that was written."""
        return self.path.stat().st_size

    def add(self, name: str, text: str) -> None:
        """An entry of any text. What has no room any more is named in the list of what was left out."""
        lines = (printable(line, _LINE_MAX_BYTES) for line in scrub(text).split("\n"))
        self.add_scrubbed(name, "\n".join(lines))

    def add_scrubbed(self, name: str, text: str) -> None:
        """The same for JSON or XML that was made of scrubbed values: as a text it would lose its form."""
        name = "/".join(_UNSAFE.sub("_", part).lstrip(".") or "_" for part in name.split("/"))[-200:]
        data = text.encode(errors="replace")[-ENTRY_MAX_BYTES:]
        if len(data) > self._left or len(self.entries) >= ENTRIES_MOST:
            self.left_out[name] = "the bundle is full"
            return
        self._left -= len(data)
        self.entries.append(name)
        self._put(name, data)

    def lacks(self, name: str, why: object) -> None:
        """Something that should be in it, and why it is not."""
        if len(self.left_out) < ENTRIES_MOST:
            self.left_out[name] = printable(scrub(str(why)))

    def close_with(self, name: str, about: dict[str, object]) -> None:
        """The last entry, for which there is always room: JSON of these, what is in the bundle, and what is not."""
        told = {**about, "entries": self.entries, "left_out": self.left_out}
        self._put(name, json_text(scrub_value(told), indent=1).encode())

    def _put(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(f"{self._top}/{name}")
        info.size, info.mode, info.mtime = len(data), 0o600, self._now
        self._tar.addfile(info, io.BytesIO(data))

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path.name, dir_fd=self._folder)
