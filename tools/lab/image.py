# SPDX-License-Identifier: Apache-2.0
"""The database VMs' disk images, kernels and initrds: each is built once a recipe and kept in build/cache.

python -m tools.lab.image [DBMS]       builds it if need be, and prints where it is
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.dbms import BY_KEY, POSTGRESQL, Dbms
from tools.lab import debian
from tools.lab.paths import CACHE

_RECIPE = Path(__file__).parent / "dbvm"
_SIZE = "2G"  # sparse: the file takes what is in it
# No lazy initialisation: the guest's kernel would do it in the background of every run.
_FILE_SYSTEM = "-t ext4 -m 0 -L lab -N 65536 -J size=16 -E lazy_itable_init=0,lazy_journal_init=0".split()
_PACKAGES = ("linux-image-cloud-amd64", "systemd-sysv", "udev", "iproute2")
# Never read in these VMs, and much of their bytes.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/i18n/*")


@dataclass(frozen=True)
class Image:
    """What a VM boots from: copy the disk, share the rest."""

    disk: Path
    kernel: Path
    initrd: Path

    def copy_disk(self, to: Path) -> None:
        """A private copy of the disk, sparse, and sharing blocks where the file system can."""
        to.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", self.disk, to], check=True, timeout=120)


@dataclass(frozen=True)
class DbImage(Image):
    """With this DBMS on it."""

    dbms: Dbms


def ensure(log: Path | None = None, dbms: Dbms = POSTGRESQL) -> DbImage:
    """The image of the VM with this DBMS, built first if there is none of its recipe (about a minute).

    mmdebstrap's words go to `log`, or to stderr. Raises subprocess.CalledProcessError when the build fails.
    """
    folder = CACHE / f"{dbms.vm}vm-{key(dbms)}"
    image = DbImage(folder / "disk.raw", folder / "vmlinuz", folder / "initrd", dbms)
    with only_builder("image"):
        if not folder.exists():
            for old in CACHE.glob(f"{dbms.vm}vm-*"):
                shutil.rmtree(old)
            with log.open("w") if log else os.fdopen(os.dup(2), "w") as out:
                _build(dbms, folder, out.fileno())
    return image


def key(dbms: Dbms) -> str:
    """Changes when anything that goes into the image changes."""
    recipe = (_PACKAGES, dbms.packages, _LEFT_OUT, dbms.left_out, _FILE_SYSTEM, _SIZE)
    parts = [debian.codename().encode(), repr(recipe).encode()]
    files = [file for folder in (_RECIPE, _RECIPE / dbms.key) for file in sorted(folder.iterdir()) if file.is_file()]
    parts += [file.read_bytes() for file in files]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@contextmanager
def only_builder(what: str) -> Iterator[None]:
    """One build of a kind of image at a time; the others wait for it and use what it made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(dbms: Dbms, folder: Path, log_fd: int) -> None:
    work = CACHE / f"{dbms.vm}vm-build"
    root = work / "root"
    made = work / "image"
    made.mkdir(parents=True)
    try:
        command = debian.bootstrap(
            root,
            [debian.codename()],
            packages=(*_PACKAGES, *dbms.packages),
            left_out=(*_LEFT_OUT, *dbms.left_out),
            essential_hooks=[str(_RECIPE / "essential.sh")],
            hooks=[str(_RECIPE / "customize.sh"), str(_RECIPE / dbms.key / "customize.sh")],
        )
        run_logged(command, log_fd)
        shutil.copy(next(root.glob("boot/vmlinuz-*")), made / "vmlinuz")
        # Unpacked here once, and not by an emulated CPU at each boot.
        packed = next(root.glob("boot/initrd.img-*"))
        (made / "initrd").write_bytes(unpacked(packed.read_bytes()))
        shutil.rmtree(root / "boot")
        (root / "boot").mkdir()
        run_logged(["mke2fs", "-q", "-F", *_FILE_SYSTEM, "-d", str(root), str(made / "disk.raw"), _SIZE], log_fd)
        made.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def unpacked(initrd: bytes) -> bytes:
    """An initramfs whose compressed archive is unpacked. Debian 13 puts an uncompressed one before it.

    Raises gzip.BadGzipFile if what follows the uncompressed archives is not gzip.
    """
    at = 0
    while initrd.startswith(b"070701", at):  # cpio's header: this, and 13 numbers of 8 hexadecimal digits
        file_size, name_size = (int(initrd[at + field : at + field + 8], 16) for field in (54, 94))
        name_end = at + 110 + name_size
        at = name_end + -name_end % 4 + file_size
        while initrd.startswith(b"\0", at):  # the padding after each file, and the archive's own
            at += 1
    return initrd[:at] + gzip.decompress(initrd[at:])


def run_logged(command: list[str], log_fd: int) -> None:
    """A step of a build; its words go to the log. Raises subprocess.CalledProcessError when it fails."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=log_fd, stderr=log_fd, timeout=900)


if __name__ == "__main__":
    print(ensure(dbms=BY_KEY[sys.argv[1]] if sys.argv[1:] else POSTGRESQL).disk, file=sys.stdout)
