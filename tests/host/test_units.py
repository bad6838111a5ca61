# SPDX-License-Identifier: Apache-2.0
"""The systemd units: what they leave the daemons is little, and enough for what is done to another user's things.

That it is enough for all the rest is shown by every test of real VMs: in the lab the daemons run with the rights that
their units leave them, but QEMU is root's there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.lab.confine import UNITS, settings

REPO = Path(__file__).resolve().parents[2]
DAEMONS = ("agent", "host")
MOST_EXPOSED = 4.0
OTHER = 65534


@pytest.mark.parametrize("daemon", [*DAEMONS, "console"])
def test_how_exposed_it_is_by_systemds_own_measure(daemon: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / f"remusdb-{daemon}.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None and float(found[1]) <= MOST_EXPOSED, done.stdout
    assert not re.search("unknown|ignoring|failed to parse", done.stderr, re.IGNORECASE), done.stderr


def test_memory_pressure_ends_the_agent_before_a_vm() -> None:
    agent = settings("remusdb-agent.service")
    assert int(agent["OOMScoreAdjust"][0]) == 1000, "with less, a VM with most of the memory goes first"
    for daemon in DAEMONS:
        unit = settings(f"remusdb-{daemon}.service")
        assert unit["MemoryHigh"] and unit["TasksMax"] and unit["OOMPolicy"] == ["continue"]
    assert agent["MemoryMax"] and agent["Restart"] == ["always"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """QEMU's user's own folder, closed to others, on a way that this user can go."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o711)
        theirs = Path(made) / "domain-1-pg"
        theirs.mkdir(mode=0o750)
        os.chown(theirs, OTHER, OTHER)
        yield theirs


def confined(daemon: str, code: str, *args: object) -> str:
    """What Python code prints, with the rights that the unit leaves."""
    command = [sys.executable, "-m", "tools.lab.confine", f"remusdb-{daemon}.service"]
    command += [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def qemu() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another user, in place of QEMU."""
    code = "import time; print('ready', flush=True); time.sleep(600)"
    command = ["/usr/bin/python3", "-I", "-c", code]
    with subprocess.Popen(command, user=OTHER, group=OTHER, extra_groups=[], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


INTO_QEMU = """
import os, signal, sys
from remusdb.capture.inject import userfaultfd_of
from remusdb.capture.memory import ProcessMemory
from remusdb.capture.pagemap import PageMap
pid = int(sys.argv[1])
userfaultfd_of(pid)
PageMap(pid).close()
place = next(line for line in open(f"/proc/{pid}/maps") if "[stack]" in line)
address = int(place.split("-")[1].split()[0], 16) - 4096
import numpy as np
memory = ProcessMemory(pid)
memory.write(address, np.array([0]), memory.read(address, np.array([0])))
signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)
"""


@pytest.mark.parametrize("daemon", DAEMONS)
def test_it_works_on_a_qemu_of_another_user(daemon: str, qemu: subprocess.Popen[bytes]) -> None:
    confined(daemon, INTO_QEMU, qemu.pid)
    assert qemu.wait(20) == -signal.SIGKILL


MAKES = """
import os, socket, sys, time
from pathlib import Path
from remusdb.disk.writelog import WriteLog
from remusdb.capture.fifo import StateFifo
folder = Path(sys.argv[1])
fifo = StateFifo(folder, 65534, 65534)
os.close(fifo.open())
print(os.stat(fifo.path).st_uid)
fifo.close()
log = WriteLog(Path(sys.argv[2]), 0, 1 << 20, uid=65534, gid=65534)
log.start()
print(os.stat(log.nbd_socket).st_uid, os.sched_getscheduler(log.nbdkit_pid))
log.close()
"""


def test_a_worker_makes_what_qemus_user_opens(folder: Path) -> None:
    run = folder.parent / "run"
    run.mkdir(mode=0o711)
    said = confined("host", MAKES, folder, run).split()
    assert said == [str(OTHER), str(OTHER), str(os.SCHED_RR)]


IMAGES = """
import json, os, struct, sys
from pathlib import Path
from remusdb.core.writes import RECORD, Kind
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.standby.nvram import Nvram
folder = Path(sys.argv[1])
images = ReplicaImages(folder, [1 << 20], ["vda"])
if not images.reused[0]:
    images.apply(RECORD.pack(Kind.WRITE, 0, 0, 4, 0) + b"once")
print(json.dumps(images.reused))
images.close()
Nvram(folder / "nvram.fd", 4096).close()
"""
OPENS = "import sys; print(open(sys.argv[1], 'r+b').read(4).decode())"


def test_replica_images_are_reached_by_qemus_user_and_stay_the_agents(folder: Path) -> None:
    """Whatever the umask; and after libvirt gave them to QEMU's user they are opened again."""
    image = folder.parent / "images" / "pg" / "vda.raw"
    assert json.loads(confined("agent", IMAGES, image.parent)) == [False]
    for file in (image, image.parent / "nvram.fd"):
        assert file.stat().st_mode & 0o777 == 0o600
        os.chown(file, OTHER, OTHER)  # as libvirt does
    theirs = ["/usr/bin/python3", "-I", "-c", OPENS, str(image)]
    done = subprocess.run(theirs, user=OTHER, group=OTHER, extra_groups=[], capture_output=True, text=True, check=False)
    assert done.stdout == "once\n", done.stderr
    assert json.loads(confined("agent", IMAGES, image.parent)) == [True]


NOT_LEFT = """
import ctypes, errno, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
calls = {"mount": 165, "reboot": 169, "init_module": 175, "clock_settime": 227, "bpf": 321, "kexec_load": 246,
         "perf_event_open": 298, "swapon": 167, "iopl": 172, "pivot_root": 155}
for name, number in calls.items():
    ctypes.set_errno(0)
    assert libc.syscall(number, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM, name
for flag in (0x20000, 0x10000000, 0x20000000):
    assert libc.unshare(flag) == -1 and ctypes.get_errno() == errno.EPERM, hex(flag)
try:
    socket.socket(38, socket.SOCK_SEQPACKET)  # AF_ALG
except OSError:
    pass
else:
    raise SystemExit("a socket of another family")
assert os.umask(0) == 0o077
"""


@pytest.mark.parametrize("daemon", DAEMONS)
def test_what_is_not_left(daemon: str) -> None:
    """So that the lab's runs do prove something: the rig takes away what the unit does."""
    confined(daemon, NOT_LEFT)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` knows every key and value in them."""
    units = sorted(UNITS.glob("*.service"))
    for unit in units:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/remusdb", "/bin/true"))
    names = [str(tmp_path / unit.name) for unit in units]
    told = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True, check=False)
    assert [line for line in told.stderr.splitlines() if "remusdb-" in line] == []
