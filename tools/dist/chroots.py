# SPDX-License-Identifier: Apache-2.0
"""Clean Debians to install the .deb in: made once by mmdebstrap with what it depends on, and never written to again.

What is installed before is what apt chooses for the .deb's own `Depends`, by an empty package that has the same. Each
use sees the folder through an overlay in memory, in a mount namespace of its own: nothing of it stays.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.dist import deb
from tools.lab import debian
from tools.lab.paths import CACHE

BACKPORTS = {"bookworm": "bookworm-backports"}  # QEMU there is new enough
_BUILD_S = 1500.0
_ENTER = """\
set -e
mount -t tmpfs remusdb "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay remusdb -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount -t proc proc "$2/root/proc"
cp "$3" "$2/root/remusdb.deb"
cp "$4" "$2/root/script"
exec chroot "$2/root" sh -eu /script
"""


def ensure(codename: str, log: Path) -> Path:
    """The folder of that Debian, made first if there is none for these dependencies (some minutes)."""
    control = deb.control("0", 0)
    key = hashlib.sha256(repr((codename, re.findall(r"^Depends: .*", control, re.MULTILINE))).encode()).hexdigest()[:12]
    root = CACHE / f"deb-{codename}-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"deb-{codename}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            for old in CACHE.glob(f"deb-{codename}-*"):
                shutil.rmtree(old)
            _make(codename, control, root, log)
    return root


def run(root: Path, package: Path, script: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a copy of this Debian, with the package as /remusdb.deb. It has no network."""
    with tempfile.TemporaryDirectory() as folder:
        over, file = Path(folder) / "over", Path(folder) / "script"
        over.mkdir()
        file.write_text(script)
        places = [str(path) for path in (root, over, package, file)]
        unshare = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--propagation", "private"]
        return subprocess.run(
            [*unshare, "sh", "-c", _ENTER, "sh", *places],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )


def _make(codename: str, control: str, root: Path, log: Path) -> None:
    suites = [suite for suite in (codename, BACKPORTS.get(codename)) if suite]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder, log.open("w") as out:
        package = _empty_package(control, Path(folder))
        made = Path(folder) / "root"
        install = f"apt-get install -y -q --no-install-recommends -t {suites[-1]} /{package.name}"
        hooks: Sequence[str] = (
            f"copy-in {package} /",
            f'chroot "$1" {install}',
            'chroot "$1" dpkg --purge remusdb',
            f'rm "$1/{package.name}"',
        )
        command = debian.bootstrap(made, suites, left_out=["/usr/share/locale/*"], hooks=hooks)
        # Else Debian's packages of Python put what they compile where the Makefile wants ours.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=_BUILD_S, env=env)
        made.rename(root)


def _empty_package(control: str, folder: Path) -> Path:
    root = folder / "package"
    (root / "DEBIAN").mkdir(parents=True)
    root.chmod(0o755)
    (root / "DEBIAN/control").write_text(control)
    return deb.pack(root, folder / "remusdb-depends.deb")
