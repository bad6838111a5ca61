# SPDX-License-Identifier: Apache-2.0
"""The gates' contract, run inside a guest with Debian's kernel: the plug gate needs sch_plug, which not every host has.

The guest boots the lab's image read-only, with our code, the tests and pytest on a second disk, runs the very
file that `tests/host` runs, and says on its serial line how each test went. What the other files of that tier share
(`conftest.py`) stays out: it needs libraries that the guest has not.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.lab import image
from tools.lab.paths import REPO

BOOT_AND_RUN_S = 600  # measured: 115 beside a load of 8 on two cores
LEAST_TESTS = 30  # fewer means that the file did not run as a whole
PURE_PYTHON = ("pytest", "pluggy", "iniconfig", "packaging", "pygments", "pyroute2")
MODULES = "ifb sch_plug act_mirred cls_bpf tun veth bridge dummy"

INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPYCACHEPREFIX=/tmp/pyc PYTHONPATH=/mnt/code:/mnt/site
for at in proc:/proc sysfs:/sys devtmpfs:/dev; do
    mountpoint -q ${at#*:} || mount -t ${at%:*} none ${at#*:}
done
mount -t tmpfs none /tmp; mount -t tmpfs none /run
modprobe -a MODULES || echo "GUEST: a module is missing"
cd /mnt/code/tests/host
export REMUSDB_TEST_GATES=plug
echo "GUEST: $(uname -r)"
options="--noconftest -p no:cacheprovider -v --tb=short --color=no --durations=8"
python3 -m pytest -c /dev/null --rootdir=/mnt/code $options test_gate_contract.py
echo "GUEST: pytest ended with $?"
sync; echo o > /proc/sysrq-trigger; sleep 60
"""


@pytest.mark.timeout(BOOT_AND_RUN_S + 120)  # the image may have to be built first
def test_the_contract_holds_for_plug_on_debians_kernel(tmp_path: Path) -> None:
    said = _run_guest(tmp_path)
    passed = re.findall(r"^test_gate_contract\.py::(\S+\[.*?\]|\S+).* PASSED", said, re.MULTILINE)
    failed = re.findall(r" (FAILED|ERROR|SKIPPED|XFAIL)\b.*", said)
    assert "GUEST: pytest ended with 0" in said, said[-6000:]
    assert not failed, said[-6000:]
    assert len(passed) >= LEAST_TESTS, said[-6000:]
    assert all("plug" in name for name in passed), passed


def _run_guest(work: Path) -> str:
    built = image.ensure()
    serial = work / "serial"
    # After "--" come init's own arguments; ${IFS} stands for the spaces that would split them.
    command_line = (
        "console=ttyS0 quiet mitigations=off rcupdate.rcu_expedited=1 panic=-1 root=/dev/vda ro init=/bin/sh "
        "-- -c mount${IFS}-o${IFS}ro${IFS}/dev/vdb${IFS}/mnt&&exec${IFS}/bin/sh${IFS}/mnt/init"
    )
    qemu = [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "512"),
        *("-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{serial}"),
        *("-kernel", str(built.kernel), "-initrd", str(built.initrd), "-append", command_line),
        *("-drive", f"file={built.disk},format=raw,if=virtio,snapshot=on"),
        *("-drive", f"file={_code_disk(work)},format=raw,if=virtio,readonly=on"),
    ]
    try:
        subprocess.run(qemu, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_AND_RUN_S)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the guest did not end in {BOOT_AND_RUN_S} s:\n{serial.read_text(errors='replace')[-6000:]}")
    return serial.read_text(errors="replace").replace("\r", "")


def _code_disk(work: Path) -> Path:
    """An ext4 disk with what the guest runs."""
    root, disk = work / "root", work / "code.img"
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(REPO / "remusdb", root / "code" / "remusdb", ignore=ignore)
    shutil.copytree(REPO / "tests" / "host", root / "code" / "tests" / "host", ignore=ignore)
    shutil.copy(REPO / "tests" / "__init__.py", root / "code" / "tests")
    for name in PURE_PYTHON:
        _copy_distribution(name, root / "site")
    (root / "init").write_text(INIT.replace("MODULES", MODULES))
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, disk, "64M"], check=True, timeout=60)
    return disk


def _copy_distribution(name: str, to: Path) -> None:
    """The installed files of a pure Python distribution, with the metadata that it reads about itself."""
    found = importlib.metadata.distribution(name)
    for file in found.files or ():
        if not file.is_absolute() and ".." not in file.parts and "__pycache__" not in file.parts:
            target = to / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(found.locate_file(file)), target)
