# SPDX-License-Identifier: Apache-2.0
"""`remusdb export`: files of one epoch while the guest writes, and protection goes on."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vm.pair import Pair
from tests.vm.test_replica import same_bytes
from tools.lab import domains
from tools.lab.guest import Mode
from tools.lab.host import Host

DISK_MIB = 112
FS_MIB = 72  # an ext4 at the disk's start
FILE_MIB = 56
PLACES_MIB = (72, 84, 96, 108)  # behind it: written over and over, always in this order
TO = "/var/lib/remusdb/exports"
TRIES = 5


def with_filesystem(pair: Pair, folder: Path) -> domains.Vm:
    """A running VM, not protected: an ext4 with a file of random bytes on its disk, and room behind it."""
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name="export", disk_mib=DISK_MIB)
    (folder / "file").write_bytes(os.urandom(FILE_MIB << 20))
    disk = str(pair.a.path(vm.disk))
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", str(folder), disk, f"{FS_MIB}M"], check=True, timeout=60)
    (folder / "file").unlink()
    pair.start(vm)
    return vm


class Writer:
    """The guest's disk writes 1 to each place, then 2, and so on: at no moment is a later place ahead of one before."""

    def __init__(self, pair: Pair, vm: str) -> None:
        self._pair, self._vm = pair, vm
        self._stop = threading.Event()
        self.rounds = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set() and self.rounds < 250:
            self.rounds += 1
            for place in PLACES_MIB:
                what = f"write -P {self.rounds} {place}M 128k"
                order = f'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "{what}"'
                self._pair.a.run(["virsh", "qemu-monitor-command", self._vm, "--hmp", order])

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def export(pair: Pair, vm: str, to: str, *options: str) -> dict[str, Any]:
    """`remusdb export VM --json` on the backup: its result."""
    done = pair.product.cli("b", "export", vm, "--to", f"{TO}/{to}", "--json", *options, timeout_s=120)
    return dict(json.loads(done.stdout))


def places(image: Path) -> list[int]:
    """What is at each place; AssertionError where one is half written."""
    found = []
    with image.open("rb") as file:
        for place in PLACES_MIB:
            file.seek(place << 20)
            data = file.read(128 << 10)
            assert data == data[:1] * len(data), f"half a write at {place} MiB"
            found.append(data[0])
    return found


def fsck(image: Path) -> None:
    """The ext4 is whole."""
    subprocess.run(["e2fsck", "-f", "-n", str(image)], check=True, timeout=60, capture_output=True)


def make_folder(host: Host) -> Path:
    """Where the exports go, empty."""
    host.run(["mkdir", "-p", TO])
    return host.path(TO)


@pytest.mark.timeout(300)
def test_export_while_the_guest_writes(pair: Pair, tmp_path: Path) -> None:
    """Each file is one moment of the disk, and protection does not notice; a VM at rest is copied byte for byte."""
    vm = with_filesystem(pair, tmp_path)
    pair.protect(vm.name)
    folder = make_folder(pair.b)
    before, events = pair.product.status(vm.name), len(pair.events(vm.name))
    writer = Writer(pair, vm.name)
    put_by = 0
    try:
        for number in range(TRIES):
            name = f"{number}.img"
            result = export(pair, vm.name, name)
            found = places(folder / name)
            assert found == sorted(found, reverse=True) and found[0] - found[-1] <= 1, f"not one moment: {found}"
            assert before["committed"] <= result["epoch"]
            pair.await_epoch(vm.name, result["epoch"])
            assert result["frozen_ms"] < 1000
            fsck(folder / name)
            (folder / name).unlink()
            put_by += result["put_by_bytes"]
    finally:
        writer.end()
    assert put_by, "nothing was overwritten before it was copied: this test shows nothing"
    after = pair.product.status(vm.name)
    assert after["state"] == "protected" and after["term"] == before["term"] and not after["troubles"]
    assert len(pair.events(vm.name)) == events
    pair.await_epoch(vm.name, before["committed"] + 21)
    time.sleep(1)
    pair.settle(vm.name)
    export(pair, vm.name, "rest.img")
    assert same_bytes(pair.a.path(vm.disk), folder / "rest.img")
    assert same_bytes(pair.b.path(f"/var/lib/remusdb/images/{vm.name}/vda.raw"), folder / "rest.img")
    export(pair, vm.name, "rest.qcow2", "--format", "qcow2")
    pair.b.run(["qemu-img", "check", "-f", "qcow2", f"{TO}/rest.qcow2"])
    pair.b.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", f"{TO}/rest.img", f"{TO}/rest.qcow2"])
    assert sorted(path.name for path in folder.iterdir()) == ["rest.img", "rest.qcow2"]


def test_refusals(pair: Pair) -> None:
    """On the wrong host, of a VM that is not there, onto a file that is: said, and nothing is made."""
    vm = pair.bare()
    folder = make_folder(pair.b)
    refused = pair.product.cli("b", "export", vm.name, "--to", f"{TO}/x.img", check=False)
    assert refused.returncode == 3 and "no replica" in refused.stderr, refused.stderr
    pair.protect(vm.name)
    refused = pair.product.cli("a", "export", vm.name, "--to", "/tmp/x.img", check=False)
    assert refused.returncode == 3 and "it is b" in refused.stderr, refused.stderr
    (folder / "there.img").write_text("mine")
    refused = pair.product.cli("b", "export", vm.name, "--to", f"{TO}/there.img", check=False)
    assert refused.returncode == 1 and "exists already" in refused.stderr, refused.stderr
    assert (folder / "there.img").read_text() == "mine" and not (folder / "x.img").exists()
    (folder / "there.img").unlink()
