# SPDX-License-Identifier: Apache-2.0
"""`vagrant validate`, with Debian 12's own Vagrant: Debian 13, which has none, runs it in a small Debian 12."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tools.lab import debian
from tools.lab.image import only_builder
from tools.lab.paths import CACHE, REPO

SUITE = "bookworm"  # the last Debian that has the packages
_PACKAGES = ("vagrant", "vagrant-libvirt")


def validate(vagrantfile: Path, work: Path) -> subprocess.CompletedProcess[str]:
    """What Vagrant says of the file.

    `work` is a folder for its state and for stand-ins of what `make vagrant-box` makes.

    Raises RuntimeError where there is no Vagrant, and says what installs it.
    """
    (work / "built" / "payload").mkdir(parents=True)
    (work / "built" / "key").touch()
    shutil.copy(vagrantfile, work / "Vagrantfile")
    command = ["vagrant", "validate", "--no-color"]
    if shutil.which("vagrant") is None:
        if debian.codename() == SUITE:
            raise RuntimeError("vagrant is missing: make setup installs it")
        command = [*_in_chroot(work), *command]
    environment = {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        "VAGRANT_CWD": str(work),
        "VAGRANT_HOME": str(work / "home"),
        "VAGRANT_DOTFILE_PATH": str(work / "state"),
        "REMUSDB_VAGRANT_BUILT": str(work / "built"),
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd="/")


def _in_chroot(work: Path) -> list[str]:
    """The prefix that runs a command in the small Debian 12, with `work` at its own place. In a mount namespace."""
    root = _small_debian()
    (root / str(work).lstrip("/")).mkdir(parents=True, exist_ok=True)
    binds = f"mount --bind '{work}' '{root}{work}' && mount -t proc proc '{root}/proc'"
    return [
        *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
        *(f'{binds} && exec chroot "$0" "$@"', str(root)),
    ]


def _small_debian() -> Path:
    """Made once by mmdebstrap (minutes), and kept in build/cache. Nothing is downloaded but Debian's packages."""
    root = CACHE / f"vagrant-{SUITE}"
    with only_builder("vagrant"):
        if not root.exists():
            made = CACHE / "vagrant-build"
            shutil.rmtree(made, ignore_errors=True)
            command = debian.bootstrap(made, [SUITE], packages=_PACKAGES)
            subprocess.run(command, check=True, cwd=REPO, stdin=subprocess.DEVNULL, timeout=900)
            made.rename(root)
    return root
