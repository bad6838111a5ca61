# SPDX-License-Identifier: Apache-2.0
"""The disk image of a machine that runs VMs: Debian 13 with its own kernel, libvirt and QEMU, kept in build/cache.

python -m tools.machines.image       builds it if need be, and prints where it is

Nothing is downloaded but Debian's packages, from the mirror that apt uses here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from tools.lab import accel, debian
from tools.lab.image import Image, only_builder, run_logged, unpacked
from tools.lab.paths import BUILD, CACHE
from tools.machines.site import Site

SUITE = "trixie"
_RECIPE = Path(__file__).parent / "recipe"
_SIZE = "6G"  # sparse: the file takes what is in it
_FILE_SYSTEM = "-t ext4 -m 0 -L machine -E lazy_itable_init=0,lazy_journal_init=0".split()
# A host as README wants it, and what remusdb is written on, from Debian as well.
_PACKAGES = (
    *("linux-image-amd64", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "openssh-server", "qemu-guest-agent"),
    *("apparmor", "libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "qemu-utils", "seabios"),
    *("nbdkit", "nbdkit-plugin-python", "python3-venv", "python3-click", "python3-cryptography", "python3-libvirt"),
    *("python3-msgspec", "python3-numpy", "python3-psutil", "python3-pyroute2", "python3-rich", "python3-xxhash"),
    *("python3-zstandard", "nftables", "sudo", "rsync"),
)
FIRST_BOOT_S = 1800.0  # emulated: AppArmor compiles its profiles, libvirt asks each QEMU what it can do
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/i18n/*")


def ensure(log: Path | None = None) -> Image:
    """The image, built first if there is none of this recipe (some minutes). `key` beside it opens a machine by ssh.

    mmdebstrap's words go to `log`, or to stderr. Raises subprocess.CalledProcessError when the build fails.
    """
    folder = CACHE / f"machine-{_recipe_hash()}"
    with only_builder("machine"):
        if not folder.exists():
            for old in CACHE.glob("machine-*"):
                shutil.rmtree(old, ignore_errors=True)
            with log.open("w") if log else os.fdopen(os.dup(2), "w") as out:
                _build(folder, out.fileno())
    return Image(folder / "disk.raw", folder / "vmlinuz", folder / "initrd")


def key(image: Image) -> Path:
    """The private key that opens a machine of this image as root, by ssh. It was made with the image."""
    return image.disk.with_name("key")


def _recipe_hash() -> str:
    """Changes when anything that goes into the image changes."""
    parts = [SUITE.encode(), repr((_PACKAGES, _LEFT_OUT, _FILE_SYSTEM, _SIZE)).encode()]
    parts += [file.read_bytes() for file in sorted(_RECIPE.iterdir())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(folder: Path, log_fd: int) -> None:
    work = CACHE / "machine-build"
    shutil.rmtree(work, ignore_errors=True)
    root, made = work / "root", work / "image"
    made.mkdir(parents=True)
    try:
        run_logged(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "machine", "-f", str(made / "key")], log_fd)
        command = debian.bootstrap(
            root,
            [SUITE],
            packages=_PACKAGES,
            left_out=_LEFT_OUT,
            essential_hooks=[str(_RECIPE / "essential.sh")],
            hooks=[f'{_RECIPE / "customize.sh"} "$1" {made / "key.pub"}'],
        )
        run_logged(command, log_fd)
        shutil.copy(next(root.glob("boot/vmlinuz-*")), made / "vmlinuz")
        # Unpacked here once, and not by an emulated CPU at each boot.
        packed = next(root.glob("boot/initrd.img-*"))
        (made / "initrd").write_bytes(unpacked(packed.read_bytes()))
        run_logged(["mke2fs", "-q", "-F", *_FILE_SYSTEM, "-d", str(root), str(made / "disk.raw"), _SIZE], log_fd)
        shutil.rmtree(root)
        _first_boot(Image(made / "disk.raw", made / "vmlinuz", made / "initrd"))
        made.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _first_boot(built: Image) -> None:
    """Boots the image and keeps what that leaves: no later boot compiles AppArmor's profiles or asks QEMU again."""
    with Site(built, BUILD / "machines-image", accel.qemu_word(built)) as site:
        machine = site.machines["alpha"]
        machine.start()
        machine.await_boot(FIRST_BOOT_S)
        machine.run((_RECIPE / "first-boot.sh").read_text(), FIRST_BOOT_S)
        machine.power_off()
        machine.commit()


if __name__ == "__main__":
    print(ensure().disk)
