# SPDX-License-Identifier: Apache-2.0
"""Whether this host is going down in good order: asked of systemd once, and left as a mark that workers can look at.

A worker whose VM just ended has no time to ask systemd: the backup counts its silence. The mark is made by the first
thing that a shutdown stops (remusdb-evacuate.service), and is in /run, so that no reboot sees it.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

ASK_S = 2.0
COMMAND = ("systemctl", "is-system-running")
MARK = "host-stops"  # in run_dir


def host_is_stopping(command: tuple[str, ...] = COMMAND) -> bool:
    """Whether a shutdown or reboot of this host has begun. False where there is no systemd, or it does not answer.

    systemd says `stopping` from the moment that shutdown.target is queued, so before any unit was stopped.
    """
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told.stdout.strip() == "stopping"


def mark_stopping(run_dir: Path) -> None:
    """From here on a VM that ends here ended with its host."""
    (run_dir / MARK).touch(mode=0o600)


def is_marked(run_dir: Path) -> bool:
    """Whether the shutdown of this host has begun, by the mark alone."""
    return (run_dir / MARK).exists()


def unmark(run_dir: Path) -> None:
    """The host stays up after all."""
    with contextlib.suppress(FileNotFoundError):
        (run_dir / MARK).unlink()
