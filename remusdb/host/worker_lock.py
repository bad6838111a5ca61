# SPDX-License-Identifier: Apache-2.0
"""One worker a VM: a lock that the worker inherits, and that the kernel lets go of when it is really gone.

A daemon that was killed leaves workers that are about to end; two of them must never have one VM.
"""

from __future__ import annotations

from pathlib import Path

from remusdb import durable
from remusdb.errors import RemusError
from remusdb.safefiles import make_folder


def hold_lock(path: Path, vm: str, patience_s: float) -> int:
    """A locked descriptor, to be inherited; RemusError if another worker still has it after `patience_s`."""
    try:
        make_folder(path.parent)
        fd = durable.take_lock(path, patience_s)
    except OSError as exc:
        raise RemusError(f"{path}: cannot be opened: {exc.strerror}") from exc
    if fd is None:
        raise RemusError(f"an earlier worker of {vm} does not end", hint=f"see who holds it: fuser -v {path}")
    return fd
