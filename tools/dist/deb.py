# SPDX-License-Identifier: Apache-2.0
"""The .deb: the files of tree.py, packaging/deb's control and scripts, and dpkg-deb."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.dist import needs, tree
from tools.lab.paths import REPO

SCRIPTS = ("postinst", "prerm", "postrm")
_TIMEOUT_S = 300.0


def build(wheel: Path, to: Path, version: str = "") -> Path:
    """Build the .deb of this wheel in folder `to`; the file. `version` is for tests of upgrades."""
    with tempfile.TemporaryDirectory(dir=to) as folder:
        root = Path(folder)
        root.chmod(0o755)
        before = os.umask(0o022)
        try:
            tree.make(root, wheel)
        finally:
            os.umask(before)
        files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        size_kib = sum(-(-path.stat().st_size // 1024) for path in files)
        sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]
        meta = root / "DEBIAN"
        meta.mkdir()
        (meta / "control").write_text(control(version or needs.version(), size_kib))
        (meta / "md5sums").write_text("".join(sums))
        (meta / "conffiles").write_text(
            "".join(f"/{path.relative_to(root)}\n" for path in files if _of_etc(path, root))
        )
        for script in SCRIPTS:
            shutil.copy(REPO / "packaging/deb" / script, meta / script)
        return pack(root, to / f"remusdb_{version or needs.version()}_amd64.deb")


def control(version: str, size_kib: int) -> str:
    """The control file. `size_kib`: of all that is installed."""
    text = (REPO / "packaging/deb/control").read_text()
    for key, value in {
        "VERSION": version,
        "SIZE": str(size_kib),
        "PYTHON": needs.depends(),
        "EXTRA": needs.recommends(),
    }.items():
        text = text.replace(f"@{key}@", value)
    return text


def pack(root: Path, to: Path) -> Path:
    """A .deb of this folder. Its files are root's, and as old as the commit, so that two builds are the same."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(tree.commit_time())}
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(root), str(to)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, timeout=_TIMEOUT_S)
    return to


def _of_etc(path: Path, root: Path) -> bool:
    return path.relative_to(root).parts[0] == "etc"
