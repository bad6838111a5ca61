# SPDX-License-Identifier: Apache-2.0
"""The replica is the primary, byte for byte: memory and disk, of the bare-metal guest and of a busy PostgreSQL VM."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.pair import Pair, eventually
from tools.lab import domains, image
from tools.lab.guest import Mode

LOAD_S = 4.0


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two disk images hold the same bytes."""
    return subprocess.run(["cmp", "--silent", str(one), str(other)], check=False).returncode == 0


@pytest.mark.parametrize("mode", list(Mode))
def test_bare_guest_memory_is_equal(pair: Pair, mode: Mode) -> None:
    """Also for a guest that reads much and writes little: protection must not make it fault on reads, nor miss."""
    vm = pair.bare(mode)
    pair.protect(vm.name)
    time.sleep(1.0)
    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []
    pair.a.run(["virsh", "resume", vm.name])
    assert pair.runs(vm)
    pair.unprotect(vm.name)
    pair.a.run(["virsh", "destroy", vm.name])


@pytest.mark.parametrize("encoding", ["delta", "full"])
def test_postgres_vm_memory_and_disk_are_equal(pair: Pair, encoding: str) -> None:
    """Under load, then stopped: what the backup holds after the next epoch is what the primary holds."""
    name = f"pg-{encoding}"
    config = pair.a.path("/etc/remusdb/host.toml")
    config.write_text(config.read_text() + f'[vms.{name}]\nencoding = "{encoding}"\n')
    pair.product.daemons["host"].terminate()
    pair.product.daemons["host"].wait(20)
    pair.product.start_host()
    vm = domains.define_pg(pair.a, image.ensure(), name=name)
    pair.a.run(["virsh", "start", name])
    psql = ["psql", "-h", domains.PG_IP4, "-U", "postgres", "-Atc"]
    eventually(
        lambda: pair.lab.client.run([*psql, "select 1", "bank"], check=False).returncode == 0, 90, "no PostgreSQL"
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
    assert status["encoding"] == encoding and status["state"] == "protected"
    pair.unprotect(name)
    pair.a.run(["virsh", "destroy", name])


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
    time.sleep(1.0)
    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []
