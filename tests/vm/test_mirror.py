# SPDX-License-Identifier: Apache-2.0
"""The mirror on a real libvirt domain: what is in the log at a cut, and what a job that ends leaves behind.

"The guest" writes through QEMU's own `qemu-io` on the virtio disk's back end, above the mirror: the path a guest's
request takes, at an instant that the test chooses.
"""

from __future__ import annotations

import json
import logging
import os
import random
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from remusdb.core.writes import Kind, Record, iter_records
from remusdb.disk.mirror import DiskSpec, Mirror, disks_of, query_block_jobs, unsynced
from remusdb.disk.writelog import WriteLog
from remusdb.errors import DiskError
from remusdb_agents.backup.disks.images import ReplicaImages
from tests.waiting import eventually
from tools.lab import domains
from tools.lab.guest import Mode
from tools.lab.host import Host
from tools.lab.lab import Lab

RAW_BYTES = 2 << 30
DATA_BYTES = 300 << 20
QCOW_BYTES = 64 << 20
SYNC_S = 60.0
IN_FLIGHT = 32  # MiB: far more than a log of 1 MiB and its socket's buffers hold
# The hole at the disk's end, where nothing was before; and a place with data.
HOLE, DATA = RAW_BYTES - (64 << 20), 1 << 20

log = logging.getLogger(__name__)


class Machine:
    """A running domain with vda (raw, 2 GB, 300 MB of data) and vdb (qcow2), and its monitor."""

    def __init__(self, connection: libvirt.virConnect, vm: domains.Vm, files: dict[str, Path]) -> None:
        self.domain = connection.lookupByName(vm.name)
        self.files = files
        self.domain.create()

    def qmp(self, command: str, **arguments: object) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, text, 0))["return"]

    def io(self, command: str, target: str = "vda") -> str:
        """One `qemu-io` command as the guest's disk would do it; what it printed."""
        device = f"/machine/peripheral/virtio-disk{ord(target[2]) - ord('a')}/virtio-backend"
        line = f'qemu-io -d {device} "{command}"'
        return str(self.qmp("human-monitor-command", **{"command-line": line}))

    def running(self) -> bool:
        return bool(self.qmp("query-status")["running"])


class Copy:
    """The mirror of one disk, its log, and the replica that the log is applied to."""

    def __init__(self, machine: Machine, folder: Path, target: str = "vda", max_bytes: int = 64 << 20) -> None:
        size = next(disk.capacity_bytes for disk in disks_of(machine.domain) if disk.target == target)
        self.machine, self.target = machine, target
        self.log = WriteLog(folder, 0, size, max_bytes=max_bytes)
        self.log.start()
        self.images = ReplicaImages(folder / "replica", [size], [target])
        self.mirror = Mirror(machine.domain, target, self.log.nbd_socket, "disk0")

    def sync(self) -> float:
        """Start the mirror and move its log until it is ready; seconds."""
        started = time.monotonic()
        self.mirror.start()
        while not self.mirror.ready():
            self.apply()
            assert time.monotonic() < started + SYNC_S, self.mirror.state()
        self.apply()
        return time.monotonic() - started

    def apply(self) -> list[Record]:
        """Cut here, apply; the records."""
        raw = self.log.take(self.log.position(), 5)
        self.images.apply(raw)
        return list(iter_records(raw))

    def ranges(self) -> list[tuple[Kind, int, int]]:
        return [(record.kind, record.offset, record.length) for record in self.apply()]

    def assert_same(self, file_format: str = "raw") -> None:
        """Replica and source are equal, byte for byte. The VM must be stopped."""
        assert not self.machine.running()
        compare = ["qemu-img", "compare", "-U", "-f", file_format, "-F", "raw"]
        files = [str(self.machine.files[self.target]), str(self.images.paths[0])]
        done = subprocess.run([*compare, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        self.log.close()
        self.mirror.stop()
        self.images.remove()


def write_data(path: Path) -> None:
    """DATA_BYTES of noise in ten runs over a sparse file of RAW_BYTES."""
    rng, run = random.Random(7), DATA_BYTES // 10
    with path.open("wb") as file:
        file.truncate(RAW_BYTES)
        for at in range(10):
            file.seek(at * (RAW_BYTES // 11 & ~0xFFFF))
            file.write(rng.randbytes(run))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    # Failures that are expected here need no second copy on stderr.
    libvirt.registerErrorHandler(lambda context, error: None, None)
    with Lab() as lab:
        lab.host("a").start_libvirt()
        yield lab.host("a")


@pytest.fixture(scope="module")
def connection(host: Host) -> Iterator[libvirt.virConnect]:
    connection = libvirt.open(host.libvirt_uri)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def defined(host: Host, connection: libvirt.virConnect) -> tuple[domains.Vm, dict[str, Path]]:
    vm = domains.define_bare(host, Mode.READER, memory_mib=160, disk_mib=RAW_BYTES >> 20)
    write_data(host.path(vm.disk))
    second = "/var/lib/libvirt/images/second.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(host.path(second)), str(QCOW_BYTES)], check=True)
    disk = (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>"
        f"<source file='{second}'/><target dev='vdb' bus='virtio'/></disk>"
    )
    xml = connection.lookupByName(vm.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    connection.defineXML(xml.replace("</disk>", "</disk>" + disk, 1))
    return vm, {"vda": host.path(vm.disk), "vdb": host.path(second)}


@pytest.fixture
def machine(connection: libvirt.virConnect, defined: tuple[domains.Vm, dict[str, Path]]) -> Iterator[Machine]:
    machine = Machine(connection, *defined)
    yield machine
    if machine.domain.isActive():
        machine.domain.destroy()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path that QEMU, in its host's mount namespace, sees too."""
    folder = Path(tempfile.mkdtemp(prefix="rdb-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def copy(machine: Machine, folder: Path) -> Iterator[Copy]:
    copy = Copy(machine, folder)
    yield copy
    copy.close()


def test_the_disks_are_listed(machine: Machine) -> None:
    assert disks_of(machine.domain) == [
        DiskSpec("vda", "/var/lib/libvirt/images/bare.raw", "raw", RAW_BYTES, False),
        DiskSpec("vdb", "/var/lib/libvirt/images/second.qcow2", "qcow2", QCOW_BYTES, False),
    ]


def test_the_first_copy_is_whole_and_sparse(copy: Copy, machine: Machine) -> None:
    seconds = copy.sync()
    done, total = copy.mirror.progress()
    assert done == total > 0
    assert copy.mirror.state().name == "ready"
    assert unsynced(query_block_jobs(machine.domain), ["vda"]) == []
    log.info("%d MB with %d MB of data: synced in %.1f s", RAW_BYTES // 10**6, DATA_BYTES // 10**6, seconds)
    assert copy.log.position() < DATA_BYTES * 1.02, "zeros were shipped as data"
    assert copy.images.paths[0].stat().st_blocks * 512 < DATA_BYTES * 1.02
    machine.qmp("stop")
    copy.apply()
    copy.assert_same()
    assert seconds < SYNC_S


def test_a_write_is_in_the_epoch_in_which_it_completed(copy: Copy, machine: Machine) -> None:
    copy.sync()
    for epoch in range(3):
        machine.io(f"write -P {epoch + 1} {HOLE + epoch * 8192} 8192")
        machine.qmp("stop")
        cut = copy.log.position()
        time.sleep(0.1)
        assert copy.log.position() == cut
        assert copy.ranges() == [(Kind.WRITE, HOLE + epoch * 8192, 8192)]
        copy.assert_same()
        machine.qmp("cont")


def test_zeroes_flushes_and_trims(copy: Copy, machine: Machine) -> None:
    """QEMU's mirror lets zeroes through to both sides, and a trim to neither: a no-op while protected."""
    copy.sync()
    machine.io(f"write -z {DATA} 128k")
    machine.io(f"write -z -u {DATA + (1 << 20)} 128k")
    machine.io("flush")
    machine.io(f"discard {DATA + (4 << 20)} 1M")
    machine.io(f"write -f -P 3 {DATA + 512} 512")
    machine.qmp("stop")
    assert copy.ranges() == [
        (Kind.ZERO, DATA, 128 << 10),
        (Kind.ZERO, DATA + (1 << 20), 128 << 10),
        (Kind.WRITE, DATA + 512, 512),
    ]
    copy.assert_same()


def test_a_qcow2_disk(machine: Machine, folder: Path) -> None:
    machine.io("write -P 9 1M 3M", "vdb")
    copy = Copy(machine, folder, "vdb")
    try:
        copy.sync()
        assert copy.images.paths[0].stat().st_blocks * 512 < 4 << 20
        machine.io("write -P 5 2M 64k", "vdb")
        machine.io("write -z 40M 64k", "vdb")
        assert unsynced(query_block_jobs(machine.domain), ["vda", "vdb"]) == ["vda"]
        machine.qmp("stop")
        copy.apply()
        copy.assert_same("qcow2")
    finally:
        copy.close()


def test_writes_during_the_first_copy_are_in_it(machine: Machine, folder: Path) -> None:
    copy = Copy(machine, folder, max_bytes=1 << 20)
    try:
        copy.mirror.start()
        assert not copy.mirror.ready()
        rng = random.Random(3)
        while not copy.mirror.ready():
            machine.io(f"aio_write -P {rng.randrange(256)} {rng.randrange(RAW_BYTES >> 12) << 12} 4096")
            copy.apply()
        with copy.log.cutting():
            machine.qmp("stop")
        copy.apply()
        copy.assert_same()
    finally:
        copy.close()


class Saving:
    """`xen-save-devices-state` of the *running* VM into a FIFO of one page: QEMU blocks in it, the VM stopped."""

    def __init__(self, machine: Machine, fifo: Path) -> None:
        os.mkfifo(fifo)
        self.reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        fcntl(self.reader, F_SETPIPE_SZ, 4096)
        self._call = threading.Thread(
            target=machine.qmp, args=("xen-save-devices-state",), kwargs={"filename": str(fifo), "live": False}
        )
        self._call.start()

    def wait_stopped(self) -> None:
        assert select.select([self.reader], [], [], 20)[0], "QEMU wrote no device state"

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, *_: object) -> None:
        """Read the state; QEMU then starts the VM by itself."""
        while select.select([self.reader], [], [], 20)[0] and os.read(self.reader, 1 << 16):
            pass
        os.close(self.reader)  # if it has not ended by now: EPIPE ends it
        self._call.join(20)
        assert not self._call.is_alive()


def test_the_position_stands_still_while_the_state_of_a_running_vm_is_saved(machine: Machine, folder: Path) -> None:
    """With writes in flight that a full log holds up: the save waits for them, so they belong to this epoch."""
    copy = Copy(machine, folder, max_bytes=1 << 20)
    try:
        copy.sync()
        for at in range(IN_FLIGHT):
            machine.io(f"aio_write -P {at + 1} {HOLE + (at << 20)} 1M")
        eventually(lambda: copy.log.pressed)
        assert not copy.log.failed
        before = copy.log.position()
        with Saving(machine, folder / "state") as saving:
            with copy.log.cutting():
                saving.wait_stopped()
            cut = copy.log.position()
            assert cut - before > IN_FLIGHT << 19, "little was in flight: the test has lost its point"
            time.sleep(0.2)
            assert copy.log.position() == cut
            # They were in flight together, so in any order.
            assert sorted(copy.ranges()) == [(Kind.WRITE, HOLE + (at << 20), 1 << 20) for at in range(IN_FLIGHT)]
        eventually(machine.running)
        machine.io(f"write -P 77 {HOLE} 4096")
        assert copy.ranges() == [(Kind.WRITE, HOLE, 4096)]
        machine.qmp("stop")
        copy.assert_same()
    finally:
        copy.close()


def test_nbdkit_killed_ends_the_job_and_the_guest_runs_on(copy: Copy, machine: Machine) -> None:
    copy.sync()
    os.kill(copy.log.nbdkit_pid, signal.SIGKILL)
    eventually(lambda: copy.log.failed is not None)
    machine.io(f"write -P 1 {HOLE} 4096")
    assert unsynced(query_block_jobs(machine.domain), ["vda"]) == ["vda"], "a lost write went unnoticed"
    eventually(lambda: copy.mirror.state().name == "gone")
    assert machine.running()
    assert not copy.mirror.ready()


def test_a_job_that_someone_else_ends_is_seen(copy: Copy, machine: Machine) -> None:
    copy.sync()
    machine.domain.blockJobAbort("vda", 0)
    assert unsynced(query_block_jobs(machine.domain), ["vda"]) == ["vda"]
    assert copy.mirror.state().name == "gone"
    eventually(lambda: copy.log.failed is not None)
    assert "disconnected" in str(copy.log.failed)


def test_stop_leaves_the_chain_as_it_was(copy: Copy, machine: Machine) -> None:
    def nodes() -> list[str]:
        return sorted(node["node-name"] for node in machine.qmp("query-named-block-nodes"))

    xml, before = machine.domain.XMLDesc(0), nodes()
    copy.sync()
    assert machine.domain.XMLDesc(0) != xml
    copy.mirror.stop()
    copy.mirror.stop()
    assert machine.domain.XMLDesc(0) == xml
    assert nodes() == before
    assert machine.running()
    assert copy.mirror.state().name == "gone"
    assert copy.mirror.progress() == (0, 0)


def test_a_second_protect_after_a_killed_worker(copy: Copy, machine: Machine, folder: Path) -> None:
    """nbdkit died with its worker, the guest is idle: the job does not know yet. The next worker ends it."""
    copy.sync()
    os.kill(copy.log.nbdkit_pid, signal.SIGKILL)
    eventually(lambda: copy.log.failed is not None)
    assert copy.mirror.progress() != (0, 0)
    again = Copy(machine, folder)
    try:
        again.sync()
        machine.io(f"write -P 2 {HOLE} 4096")
        machine.qmp("stop")
        assert again.ranges() == [(Kind.WRITE, HOLE, 4096)]
        again.assert_same()
    finally:
        again.close()


def test_someone_elses_job_is_refused_and_left_alone(copy: Copy, machine: Machine, folder: Path) -> None:
    copy.mirror.start()
    other = Mirror(machine.domain, "vda", folder / "other.nbd", "disk0")
    with pytest.raises(DiskError, match="vda") as caught:
        other.start()
    assert "another block job" in caught.value.hint
    assert copy.mirror.state().name in ("running", "ready")


def test_a_socket_that_is_not_there(machine: Machine, folder: Path) -> None:
    xml = machine.domain.XMLDesc(0)
    with pytest.raises(DiskError, match="cannot mirror disk vda") as caught:
        Mirror(machine.domain, "vda", folder / "none.nbd", "disk0").start()
    assert caught.value.hint
    assert machine.domain.XMLDesc(0) == xml
    assert machine.running()


def test_a_vm_that_goes_away(copy: Copy, machine: Machine) -> None:
    copy.sync()
    machine.domain.destroy()
    state = copy.mirror.state()
    assert state.name == "gone"
    assert state.reason
    copy.mirror.stop()
    eventually(lambda: copy.log.failed is not None)
