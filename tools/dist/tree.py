# SPDX-License-Identifier: Apache-2.0
"""The files of the .deb, as they are on a host.

/usr/lib/remusdb/                     a virtual environment that sees Debian's Python packages
    pyvenv.cfg, bin/python3           -> /usr/bin/python3, whichever version it is
    app/                              the product
    lib/python3.N/site-packages/      a .pth to app, and what Debian with Python 3.N lacks (needs.py)
/usr/bin/remusdb, units, man page, completions, AppArmor's rule, documents
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

from click.shell_completion import BashComplete, FishComplete, ZshComplete

from remusdb.cli.main import cli
from tools.dist.manpage import man_page
from tools.dist.needs import Debian, debians, locked, version
from tools.lab.paths import REPO

LIB = "usr/lib/remusdb"
DOC = "usr/share/doc/remusdb"
GLIBC = (2, 36)  # Debian 12's: wheels for any up to it run there
LEFT_OUT = ("tests", "*_tests.*.so", "testing", "_examples", "f2py", "include", "*.pyi", "*.pxd", "*.lib", "*.a")
MAINTAINER = "The remusdb maintainers <remusdb@localhost>"
CHANGELOG = """\
remusdb ({version}) unstable; urgency=medium

  * See CHANGELOG.md.gz.

 -- {maintainer}  {date}
"""
COMPLETIONS = {
    "usr/share/bash-completion/completions/remusdb": BashComplete,
    "usr/share/zsh/vendor-completions/_remusdb": ZshComplete,
    "usr/share/fish/vendor_completions.d/remusdb.fish": FishComplete,
}


def make(root: Path, wheel: Path) -> None:
    """Write all files of the package below `root`. subprocess.CalledProcessError where pip fails."""
    lib = root / LIB
    _pip("install", "--no-deps", "--no-compile", "--target", str(lib / "app"), str(wheel))
    shutil.rmtree(lib / "app" / "bin", ignore_errors=True)
    for debian in debians():
        _bring(debian, lib)
    (lib / "bin").mkdir()
    (lib / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n")
    (lib / "bin/python3").symlink_to("../../../bin/python3")
    _copy("packaging/deb/remusdb", lib / "bin/remusdb", 0o755)
    (root / "usr/bin").mkdir()
    (root / "usr/bin/remusdb").symlink_to("../lib/remusdb/bin/remusdb")
    for unit in (REPO / "packaging/systemd").glob("*.service"):
        _copy(unit, root / "usr/lib/systemd/system" / unit.name)
    _copy("packaging/apparmor/libvirt-qemu", root / "etc/apparmor.d/abstractions/libvirt-qemu.d/remusdb")
    _copy("packaging/deb/lintian-overrides", root / "usr/share/lintian/overrides/remusdb")
    for folder, mode in (("etc/remusdb", 0o755), ("etc/remusdb/tls", 0o700), ("etc/remusdb/hooks.d", 0o755)):
        (root / folder).mkdir(mode=mode)
    (root / "usr/share/man/man1").mkdir(parents=True)
    (root / "usr/share/man/man1/remusdb.1.gz").write_bytes(_packed(man_page(cli, "remusdb", version())))
    for path, shell in COMPLETIONS.items():
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(shell(cli, {}, "remusdb", "_REMUSDB_COMPLETE").source())
    _documents(root / DOC)


def commit_time() -> int:
    """When the newest commit was made, in seconds since 1970; 0 where there is no git. Two builds of it are alike."""
    command = ["git", "log", "-1", "--format=%ct"]
    told = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=20).stdout
    return int(told or 0)


def _bring(debian: Debian, lib: Path) -> None:
    """What this Debian lacks, for its Python."""
    site = lib / f"lib/python{debian.python}/site-packages"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(locked(debian))
        file.flush()
        tags = [f"manylinux_{GLIBC[0]}_{minor}_x86_64" for minor in range(GLIBC[1], 4, -1)]
        platforms = [part for tag in [*tags, "manylinux2014_x86_64"] for part in ("--platform", tag)]
        target = ["--implementation", "cp", "--python-version", debian.python, *platforms, "--target", str(site)]
        _pip(
            "install",
            "--no-deps",
            "--no-compile",
            "--only-binary",
            ":all:",
            "--require-hashes",
            *target,
            "-r",
            file.name,
        )
    shutil.rmtree(site / "bin", ignore_errors=True)
    for pattern in LEFT_OUT:  # nothing that runs here needs it
        for path in site.rglob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in site.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    (site / "remusdb.pth").write_text(f"/{LIB}/app\n")


def _documents(folder: Path) -> None:
    for document in ("README.md", "SECURITY.md"):
        _copy(document, folder / document)
    (folder / "CHANGELOG.md.gz").write_bytes(_packed((REPO / "CHANGELOG.md").read_text()))
    entry = CHANGELOG.format(version=version(), maintainer=MAINTAINER, date=formatdate(commit_time()))
    (folder / "changelog.gz").write_bytes(_packed(entry))
    _copy("packaging/deb/copyright", folder / "copyright")
    for page in (REPO / "docs").glob("*.md"):
        _copy(page, folder / "docs" / page.name)
    for example in (REPO / "packaging/examples").glob("*.toml"):
        _copy(example, folder / "examples" / example.name)


def _copy(source: Path | str, to: Path, mode: int = 0o644) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(REPO / source, to)
    to.chmod(mode)


def _packed(text: str) -> bytes:
    return gzip.compress(text.encode(), 9, mtime=0)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=600)
