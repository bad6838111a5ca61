# SPDX-License-Identifier: Apache-2.0
"""What disk-read tracking saves of a guest that reads its disk: a bare one, whose disk of noise is twice its memory.

    python -m tools.bench.reads      with it and without, in turns; one JSON object on stdout

The guest reads random blocks into random pages as fast as it is served, and writes nothing else (disk_reader.c).
"""

from __future__ import annotations

import json
import secrets
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil

from remusdb.core.pagework import PAGE_BYTES
from tools.bench.pair import two_hosts
from tools.lab import Host, Lab, domains
from tools.lab.product import Product
from tools.load import wait_for

DISK_MIB = 64  # twice the guest's memory
DISK = "/var/lib/libvirt/images/noise.raw"
WORKER = "remusdb.worker"
KEPT = ("drt_reference_share", "drt_references", "bytes_per_epoch", "dirty_pages", "commit_ms_p50", "pause_ms_p50")
_START_S, _PROTECT_S, _SETTLE_S = 30.0, 120.0, 2.0
_TURNS, _SECONDS = 3, 8.0


def measure(
    lab: Lab, product: Product, seconds: float, configure: Callable[[str], None] = lambda _vm: None
) -> dict[str, Any]:
    """What status says of such a guest, what it read in a second, what a page took on the wire, and the worker's CPU
    over a second. `configure` is called before it is protected."""
    host = lab.host("a")
    host.path(DISK).parent.mkdir(parents=True, exist_ok=True)
    host.path(DISK).write_bytes(secrets.token_bytes(DISK_MIB << 20))
    vm = domains.define_disk_reader(host, DISK, DISK_MIB << 8, name="reads")
    host.run(["virsh", "start", vm.name])
    wait_for(lambda: _read(host, vm) > 0, _START_S, "the guest reads nothing")
    configure(vm.name)
    product.cli("a", "protect", vm.name, "--to", "b", timeout_s=_PROTECT_S)
    time.sleep(_SETTLE_S)
    (worker,) = [one for pid in host.pids() if WORKER in (one := psutil.Process(pid)).cmdline()]
    began, before, used = time.monotonic(), _read(host, vm), sum(worker.cpu_times()[:2])
    time.sleep(seconds)
    took_s, after = time.monotonic() - began, _read(host, vm)
    cpu = (sum(worker.cpu_times()[:2]) - used) / took_s
    status = product.status(vm.name)
    product.cli("a", "unprotect", vm.name, timeout_s=_PROTECT_S)
    host.run(["virsh", "destroy", vm.name])
    host.run(["virsh", "undefine", vm.name])
    wire = status["bytes_per_epoch"] / (status["dirty_pages"] * PAGE_BYTES)
    found = {key: status[key] for key in KEPT}
    return found | {
        "reads_s": round((after - before) / took_s, 1),
        "wire_over_dirty": round(wire, 4),
        "worker_cpu": round(cpu, 3),
    }


def _read(host: Host, vm: domains.Vm) -> int:
    """Requests of four pages that are done."""
    lines = vm.serial_text(host).split("\n")
    return int(lines[-2], 16) if len(lines) > 1 and lines[-2].strip() else 0


def main() -> None:
    """Medians of some turns."""
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for tracked in [True, False] * _TURNS:
        with two_hosts({"disk_read_tracking": tracked}) as (lab, product):
            found[tracked].append(measure(lab, product, _SECONDS))
    medians = {
        tracked: {key: statistics.median(turn[key] for turn in turns) for key in turns[0] if turns[0][key] is not None}
        for tracked, turns in found.items()
    }
    told = {"drt_reference_share": medians[True]["drt_reference_share"]}
    print(json.dumps({**told, "on": medians[True], "off": medians[False], "turns": list(found.values())}))


if __name__ == "__main__":
    main()
