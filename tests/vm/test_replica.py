# SPDX-License-Identifier: Apache-2.0
"""The replica is the primary, byte for byte: memory and disk, of the bare-metal guest and of a busy PostgreSQL VM."""

from __future__ import annotations

import json
import logging
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.pair import Pair, eventually
from tools.lab import domains, image
from tools.lab.guest import Mode

LOAD_S = 4.0
DISK_MIB = 64

log = logging.getLogger(__name__)


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two disk images hold the same bytes."""
    return subprocess.run(["cmp", "--silent", str(one), str(other)], check=False).returncode == 0


def configure(pair: Pair, vm: str, key: str, value: object, **more: object) -> None:
    """Settings of one VM, from its next protection on."""
    config = pair.a.path("/etc/remusdb/host.toml")
    lines = "".join(f"{name} = {json.dumps(wanted)}\n" for name, wanted in {key: value, **more}.items())
    config.write_text(config.read_text() + f"[vms.{vm}]\n{lines}")
    pair.product.daemons["host", "a"].terminate()
    pair.product.daemons["host", "a"].wait(20)
    pair.product.start_host()


@pytest.mark.parametrize(
    ("mode", "key", "value"),
    [
        (Mode.DIRTIER, "delta_cache_percent", 1),
        (Mode.READER, "hot_pages", True),
        (Mode.DIRTIER, "disk_read_tracking", True),
    ],
)
def test_bare_guest_memory_is_equal(pair: Pair, mode: Mode, key: str, value: object) -> None:
    """Also for a guest that reads much and writes little: protection must not make it fault on reads, nor miss; and
    where less is remembered of what was sent than is written between two epochs, and where pages are hot."""
    vm = pair.bare(mode)
    configure(pair, vm.name, key, value)
    pair.protect(vm.name)
    time.sleep(1.0)
    hits = pair.product.status(vm.name)["delta_cache_hits"]  # of the last epochs: once it rests, of nothing
    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []
    assert (hits == 1.0) == (key != "delta_cache_percent")
    pair.a.run(["virsh", "resume", vm.name])
    assert pair.runs(vm)
    pair.unprotect(vm.name)
    pair.a.run(["virsh", "destroy", vm.name])


@pytest.mark.parametrize(("key", "value"), [("encoding", "delta"), ("encoding", "full"), ("disk_read_tracking", True)])
def test_postgres_vm_memory_and_disk_are_equal(pair: Pair, key: str, value: object) -> None:
    """Under load, then stopped: what the backup holds after the next epoch is what the primary holds."""
    name = f"pg-{value}"
    configure(pair, name, key, value)
    vm = domains.define_db(pair.a, image.ensure(), name=name)
    pair.a.run(["virsh", "start", name])
    psql = ["psql", "-h", domains.DB_IP4, "-U", "postgres", "-Atc"]
    eventually(
        lambda: pair.lab.client.run([*psql, "select 1", "bank"], check=False).returncode == 0, 200, "no PostgreSQL"
    )
    pair.protect(name)
    sql = "create table if not exists t as select 1 as i; insert into t select generate_series(1, 2000)"
    end = time.monotonic() + LOAD_S
    while time.monotonic() < end:
        pair.lab.client.run([*psql, sql, "bank"])
    pair.settle(name)
    replica = pair.b.path(f"/var/lib/remusdb/images/{name}/vda.raw")
    assert pair.differing_blocks(name) == []
    assert same_bytes(pair.a.path(vm.disk), replica)
    status = pair.product.status(name)
    assert status["encoding"] == ("full" if value == "full" else "delta") and status["state"] == "protected"
    pair.unprotect(name)
    pair.a.run(["virsh", "destroy", name])


@pytest.fixture
def encoding() -> str:
    """How memory is sent; a test may want another one."""
    return "delta"


@pytest.fixture
def bare_reader(pair: Pair, encoding: str) -> Iterator[domains.Vm]:
    """A running guest that reads its disk of noise, twice its memory, at random, with disk-read tracking."""
    path = "/var/lib/libvirt/images/noise.raw"
    pair.a.path(path).parent.mkdir(parents=True, exist_ok=True)
    pair.a.path(path).write_bytes(secrets.token_bytes(DISK_MIB << 20))
    vm = domains.define_disk_reader(pair.a, path, DISK_MIB << 8, name=f"reads-{secrets.token_hex(2)}")
    configure(pair, vm.name, "disk_read_tracking", True, encoding=encoding)
    pair.start(vm)
    yield vm
    pair.a.run(["virsh", "destroy", vm.name], check=False)


def refers(pair: Pair, vm: str) -> bool:
    """Whether pages of the last epochs went as references."""
    return bool(pair.product.status(vm)["drt_references"])


@pytest.mark.parametrize("encoding", ["delta", "full"])
def test_bare_guest_that_reads_its_disk_is_equal_with_references(pair: Pair, bare_reader: domains.Vm) -> None:
    """Pages come from the backup's own disk, while blocks of it are overwritten, zeroed and discarded."""
    name = bare_reader.name
    pair.protect(name)
    eventually(lambda: refers(pair, name), 20, "nothing is sent as a reference")
    for step in range(24):
        kind = (f"write -P {step + 1}", "write -z", "discard")[step % 3]
        order = f'qemu-io -d /machine/peripheral/sata0-0-0 "{kind} {step * 2}M 1M"'
        said = pair.a.run(["virsh", "qemu-monitor-command", name, "--hmp", order]).stdout
        assert "failed" not in said and "rror" not in said, said
    time.sleep(1.0)
    status = pair.product.status(name)
    assert refers(pair, name) and status["state"] == "protected"
    log.info("%s of the last pages went as references: %s", status["drt_references"], status["drt_reference_share"])
    pair.settle(name)
    assert pair.differing_blocks(name) == []
    assert same_bytes(pair.a.path(bare_reader.disk), pair.b.path(f"/var/lib/remusdb/images/{name}/sda.raw"))
    assert not [event for event in pair.events(name) if event["event"] == "held"]
    pair.unprotect(name)


def test_bare_guest_is_equal_where_the_replicas_disk_is_not_what_it_was(pair: Pair, bare_reader: domains.Vm) -> None:
    """A block that is not what a reference says is never taken: the pages themselves come, and none as a reference."""
    name = bare_reader.name
    pair.protect(name)
    eventually(lambda: refers(pair, name), 20, "nothing is sent as a reference")
    with pair.b.path(f"/var/lib/remusdb/images/{name}/sda.raw").open("r+b") as image:
        image.write(secrets.token_bytes(DISK_MIB << 20))
    pair.await_event(name, "held")
    pair.await_state(name, "protected")
    pair.goes_on(name)
    eventually(lambda: not refers(pair, name), 30, "references are still made")
    pair.settle(name)
    assert pair.differing_blocks(name) == []
    assert len([event for event in pair.events(name) if event["event"] == "held"]) < 3
    pair.unprotect(name)


def test_prepared_vm_is_driven_over_its_private_socket(pair: Pair) -> None:
    """`prepare` takes effect at the next start; what is captured over the private socket is the same VM."""
    vm = pair.bare()
    assert "private QMP socket" in pair.product.cli("a", "prepare", vm.name).stdout
    pair.protect(vm.name)
    assert pair.product.status(vm.name)["monitor"] == "libvirt"
    pair.unprotect(vm.name)
    pair.a.run(["virsh", "destroy", vm.name])
    pair.a.run(["virsh", "start", vm.name])
    pair.protect(vm.name)
    assert pair.product.status(vm.name)["monitor"] == "private"
    found = json.loads(pair.product.cli("a", "bench", vm.name, "--seconds", "2", "--json").stdout)
    assert found["states"] == {"protected": 3} and found["epochs_per_s"] > 0 and found["pause_ms_p50"] > 0
    assert {"qemu", "worker", "gate", "guard", "nbdkit"} <= set(found["cpu_ms_per_s"])
    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []


def test_several_disks_raw_and_qcow2(pair: Pair) -> None:
    """Data, zeros and discards of an epoch on both disks: the raw replicas are what the guest would read."""
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name="disks")
    second = "/var/lib/libvirt/images/disks-b.qcow2"
    pair.a.run(["qemu-img", "create", "-q", "-f", "qcow2", second, "64M"])
    disk = (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{second}'/><target dev='vdb' bus='virtio'/></disk><interface"
    )
    xml = pair.a.run(["virsh", "dumpxml", "--inactive", vm.name]).stdout.replace("<interface", disk, 1)
    pair.a.run(["virsh", "define", "/dev/stdin"], stdin=xml)
    pair.a.run(["virsh", "start", vm.name])

    def write(number: int, what: str) -> None:
        order = f'qemu-io -d /machine/peripheral/virtio-disk{number}/virtio-backend "{what}"'
        said = pair.a.run(["virsh", "qemu-monitor-command", vm.name, "--hmp", order]).stdout
        assert "failed" not in said and "rror" not in said, said

    write(1, "write -P 1 0 8M")
    pair.protect(vm.name)
    for number, patterns in ((0, 3), (1, 5)):
        for step in range(patterns):
            write(number, f"write -P {16 + step} {step}M 512k")
        write(number, "write -z 1M 256k")
        write(number, "discard 2M 256k")
    pair.settle(vm.name)
    images = pair.b.path(f"/var/lib/remusdb/images/{vm.name}")
    assert same_bytes(pair.a.path(vm.disk), images / "vda.raw")
    compare = [
        "qemu-img",
        "compare",
        "-U",
        "-f",
        "qcow2",
        "-F",
        "raw",
        str(pair.a.path(second)),
        str(images / "vdb.raw"),
    ]
    compared = subprocess.run(compare, capture_output=True, text=True, check=False)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    pair.unprotect(vm.name)
    pair.a.run(["virsh", "destroy", vm.name])
