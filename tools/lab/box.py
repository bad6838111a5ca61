# SPDX-License-Identifier: Apache-2.0
"""A clean Debian with a database server in it, made once by mmdebstrap and never written to again."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.lab import debian
from tools.lab.paths import CACHE

_BUILD_S = 1200.0
# What starts a server in a copy of it in memory, in namespaces that end with whoever asked for it.
OWN = "setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --propagation private".split()


def ensure(name: str, codename: str, packages: Sequence[str], left_out: Sequence[str], log: Path) -> Path:
    """The folder of that Debian with these packages, made first if there is none (a minute or two).

    `name`: of its kind, one of which is kept; `left_out`: paths that are not unpacked. mmdebstrap's words go to `log`.
    """
    key = hashlib.sha256(repr((tuple(packages), tuple(left_out))).encode()).hexdigest()[:12]
    root = CACHE / f"{name}-{codename}-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}-{codename}.lock").open("w") as lock, log.open("w") as out:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            for old in CACHE.glob(f"{name}-{codename}-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                made = Path(folder) / "root"
                command = debian.bootstrap(made, [codename], packages=packages, left_out=left_out)
                subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=_BUILD_S)
                made.rename(root)
    return root
