# SPDX-License-Identifier: Apache-2.0
"""What is done on a host, as values: shown by --dry-run, done by perform.py."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Put:
    """Write a file, whole or not at all. Its folder is made if it is not there."""

    what: str
    path: str
    content: bytes
    mode: int = 0o644

    def shown(self) -> str:
        """What --dry-run says beside `what`."""
        return f"write {self.path} (mode {self.mode:o})"


@dataclass(frozen=True)
class Send:
    """Copy a large file of this machine there; only root can read it."""

    what: str
    source: Path
    path: str

    def shown(self) -> str:
        """What --dry-run says beside `what`."""
        return f"copy {self.source} to {self.path}"


@dataclass(frozen=True)
class Run:
    """Run a command as root. It must succeed."""

    what: str
    argv: tuple[str, ...]
    timeout_s: float = 120.0

    def shown(self) -> str:
        """What --dry-run says beside `what`."""
        return shlex.join(self.argv)


Step = Put | Send | Run
