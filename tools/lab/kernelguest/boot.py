# SPDX-License-Identifier: Apache-2.0
"""What a kernelguest boots from: Debian's kernel package, unpacked once, and an initial file system for each job."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sysconfig
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tools.lab import debian
from tools.lab.paths import CACHE, REPO

PACKAGE = "linux-image-amd64"
# 9p for the root, overlay for build/, and what two hosts with gates in namespaces need.
MODULES = (
    *("9p", "9pnet_virtio", "overlay", "virtio_rng", "loop"),
    *("ifb", "sch_plug", "sch_ingress", "act_mirred", "cls_u32", "cls_bpf", "tun", "veth", "bridge", "dummy"),
)


# Each start of a Python program asks for thousands of files, and each question crosses 9p: these are in memory there.
LEFT_OUT = ("mypy", "mypyc", "ruff", "test", "tests", "idlelib", "lib2to3", "ensurepip", "pip")


@dataclass(frozen=True)
class Boot:
    """The two files that QEMU is given."""

    kernel: Path
    initrd: Path


def boot_files(command: str, work: Path) -> Boot:
    """The kernel, downloaded first if there is none yet, and an initrd whose job is `command`."""
    package = _unpacked()
    root = work / "initrd.d"
    for folder in ("modules", "job", "dev", "proc", "sys", "host"):
        (root / folder).mkdir(parents=True)
    for number, module in enumerate(_modules(package)):
        name, _, packing = module.name.partition(".ko")
        data = module.read_bytes()
        (root / "modules" / f"{number:03}-{name}.ko").write_bytes(lzma.decompress(data) if packing else data)
    shutil.copy(_busybox(), root / "busybox")
    shutil.copy(Path(__file__).with_name("init.sh"), root / "init")
    (root / "init").chmod(0o755)
    (root / "job" / "command").write_text(command + "\n")
    (root / "job" / "cmdline").write_text(f"repo={REPO}\n")
    (root / "job" / "date").write_text(time.strftime("%Y-%m-%d %H:%M:%S\n", time.gmtime()))
    _pack_python(root / "job" / "python.tar")
    initrd = work / "initrd"
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with initrd.open("wb") as out:
        pack = [_busybox(), "cpio", "-o", "-H", "newc"]
        subprocess.run(pack, cwd=root, input=names.encode(), stdout=out, stderr=subprocess.PIPE, check=True, timeout=60)
    return Boot(next(package.glob("boot/vmlinuz-*")), initrd)


def _pack_python(to: Path) -> None:
    """Python's own library and the virtual environment's, without what no test there imports."""
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    with tarfile.open(to, "w") as tar:
        for folder in sorted(folders):
            tar.add(folder, filter=lambda entry: None if _left_out(Path(entry.name).name) else entry)


def _left_out(name: str) -> bool:
    return name in LEFT_OUT or "__mypyc." in name


def _busybox() -> str:
    found = shutil.which("busybox")
    if found is None:
        raise RuntimeError("busybox is missing: make setup installs busybox-static")
    return found


def _unpacked() -> Path:
    """The kernel package's files, in build/cache."""
    suite = debian.codename()
    wanted = f"{PACKAGE}/{suite}-backports" if suite == "bookworm" else PACKAGE  # bookworm's own is older than 6.7
    name = _newest(wanted)
    folder = CACHE / "kernelguest" / name
    if folder.exists():
        return folder
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        fetch = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name]
        subprocess.run(fetch, cwd=work, check=True, capture_output=True, timeout=600)
        (package,) = Path(work).glob("*.deb")
        made = Path(work) / "made"
        subprocess.run(["dpkg", "-x", package, made], check=True, timeout=300)
        (version,) = (path.name for path in (made / "lib/modules").iterdir())
        subprocess.run(["depmod", "-b", made, version], check=True, timeout=120)
        made.rename(folder)
    return folder


def _newest(wanted: str) -> str:
    """The package that the metapackage stands for."""
    show = ["apt-cache", "show", "--no-all-versions", wanted]
    told = subprocess.run(show, check=True, capture_output=True, text=True, timeout=60).stdout
    depends = next(line for line in told.splitlines() if line.startswith("Depends:"))
    return depends.split()[1].rstrip(",")


def _modules(package: Path) -> list[Path]:
    """The modules and what they depend on, in the order in which they load; what is built in has none."""
    (version,) = (path.name for path in (package / "lib/modules").iterdir())
    found: dict[str, None] = {}
    for module in MODULES:
        show = ["modprobe", "-d", str(package), "-S", version, "--show-depends", module]
        told = subprocess.run(show, check=True, capture_output=True, text=True, timeout=60).stdout
        found |= {words[1]: None for line in told.splitlines() if (words := line.split())[0] == "insmod"}
    return [Path(path) for path in found]
