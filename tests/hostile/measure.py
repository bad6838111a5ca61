# SPDX-License-Identifier: Apache-2.0
"""What a process holds, and what is in its folders: looked at before and after a hostile peer was there."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
# A session's receive buffer (256 KiB), one frame (16 MiB) here and in glibc's arena of the thread that had it, and
# modules that Python imports when they are first needed. Not a figure that a peer can multiply.
RSS_SLACK = 64 * MIB
# A connection that is being closed, a thread that is about to end, libvirt's pool of one request.
THREADS_SLACK = 4
FDS_SLACK = 4


@dataclass(frozen=True)
class Size:
    """Of one process. Bytes; `peak` is the most that was resident since the last `forget_peak`."""

    resident: int
    peak: int
    descriptors: int
    threads: int
    cpu_s: float


def size_of(pid: int) -> Size:
    """What the process holds now. FileNotFoundError or ProcessLookupError when it has ended."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the state on
    return Size(
        resident=_kib(status["VmRSS"]),
        peak=_kib(status["VmHWM"]),
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
        cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    )


def forget_peak(pid: int) -> None:
    """Count the peak from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def content(*folders: Path) -> dict[str, str]:
    """Every file and folder below these, with what is in it: a hash and the size, the target of a link, or a kind.

    Locks are left out: who opens one may make it, and they are empty.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for path in [folder, *sorted(folder.rglob("*"))]:
            if path.suffix != ".lock":
                found[str(path)] = _told(path)
    return found


def _told(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    if path.is_file():
        return f"{path.stat().st_size} bytes {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if path.is_dir():
        return "folder"
    return "other" if path.exists() else "nothing"


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024
