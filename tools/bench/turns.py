# SPDX-License-Identifier: Apache-2.0
"""One VM, protected in one way after the other: the bench's modes, and what is measured in each."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tools.bench import bulk, progress, reads
from tools.bench.cpu import CpuMeter
from tools.bench.pair import configure
from tools.bench.pgbench import Load, Pgbench
from tools.bench.scan import Scans
from tools.bench.summary import UNPROTECTED
from tools.lab import Lab, domains, image
from tools.lab.product import Product, Settings
from tools.load import accepts, wait_for

VM = "pg"
MODES: dict[str, Settings] = {
    UNPROTECTED: {},
    "remus": {"epoch_mode": "fixed", "encoding": "full"},  # as the paper begins: whole pages, by the clock
    "remus-drt": {"epoch_mode": "fixed", "encoding": "full", "disk_read_tracking": True},  # and disk-read tracking
    "fixed": {"epoch_mode": "fixed"},  # what changed since a page was sent (the paper: ASC)
    "fixed-drt": {"epoch_mode": "fixed", "disk_read_tracking": True},  # both
    "on-demand": {"epoch_mode": "on-demand"},
    "fixed-commit": {"epoch_mode": "fixed", "release": "commit"},  # commit protection: only a transaction's ends wait
    "commit": {"epoch_mode": "on-demand", "release": "commit"},
}
QUICK = (UNPROTECTED, "fixed", "on-demand")
SHOWN = ("pause_ms_p50", "pause_ms_p99", "commit_ms_p50", "commit_ms_p99", "dirty_pages", "bytes_per_epoch",
         "epochs_per_s", "epochs_for", "stages_ms", "clock_lost_ppm", "drt_reference_share",
         "early_frames")  # fmt: skip
WORKER = "remusdb.worker"
_BOOT_S, _PROTECT_S = 240.0, 180.0
_SCALE = 10  # branches of TPC-B: with fewer the clients wait for each other
_IDLE_S = 5.0
_BULK_MB = 60


class Turns:
    """Of the database's VM on host `a`."""

    def __init__(self, lab: Lab, product: Product, built: image.DbImage, folder: Path, *, prepared: bool) -> None:
        """Boots it, and makes pgbench's tables. `prepared`: as `remusdb prepare` leaves it."""
        self._lab, self._product, self._built, self._folder = lab, product, built, folder
        a = lab.host("a")
        lab.start_libvirt()
        domains.define_db(a, built, name=VM)
        product.install()
        product.start()
        if prepared:
            product.cli("a", "prepare", VM)
        a.run(["virsh", "start", VM])
        wait_for(lambda: accepts(lab), _BOOT_S, "PostgreSQL does not accept connections", 0.5)
        self._pgbench = Pgbench(lab, built, folder)
        self._pgbench.prepare(_SCALE)

    def measure(self, mode: str, loads: list[Load], seconds: int, *, inside: bool) -> dict[str, Any]:
        """Throughput under each load, and what status says right after it. `inside`: from clients in the VM, too."""
        if mode != UNPROTECTED:
            self._configure(MODES[mode])
            self._product.cli("a", "protect", VM, "--to", "b", timeout_s=_PROTECT_S)
        found: dict[str, Any] = {"idle": self._floor() if mode == UNPROTECTED else self._idle()}
        for load in loads:
            meter = CpuMeter(self._lab)
            found[load.key] = one = vars(self._pgbench.run(load, seconds))
            one["cpu_ms_per_s"] = meter.read()
            if mode != UNPROTECTED:
                status = self._product.status(VM)
                one.update({key: status[key] for key in SHOWN})
        found["bulk"] = {way: bulk.measure(self._lab, self._pgbench, way, _BULK_MB) for way in bulk.WAYS}
        if inside:
            found["inside"] = {load.key: self._pgbench.inside(load, seconds) for load in loads}
        if mode != UNPROTECTED:
            self._product.cli("a", "unprotect", VM, timeout_s=_PROTECT_S)
        return found

    def progress(self, mode: str, seconds: float) -> dict[str, float]:
        """Of the bare-metal guest, while no other VM runs."""
        self.rest()
        return progress.measure(self._lab, self._product, seconds, lambda vm: self._configure(MODES[mode], vm))

    def reads(self, seconds: float) -> dict[str, Any]:
        """Of a bare guest that reads its disk, with disk-read tracking."""
        settings = MODES["fixed-drt"]
        return reads.measure(self._lab, self._product, seconds, lambda vm: self._configure(settings, vm))

    def scans(self) -> Scans:
        """Another database's VM, with less memory than its table takes, instead of this one."""
        self.rest()
        return Scans(self._lab, self._product, self._built, self._folder)

    def rest(self) -> None:
        """Whatever VM runs is switched off."""
        for vm in self._lab.host("a").run(["virsh", "list", "--name"]).stdout.split():
            self._lab.host("a").run(["virsh", "destroy", vm])

    def _floor(self) -> dict[str, Any]:
        """Of the same VM, when nothing is taken at its stops."""
        command = [sys.executable, "-m", "tools.bench.floor", VM]
        return {"floor_ms": float(self._lab.host("a").run(command, timeout_s=_PROTECT_S).stdout)}

    def _idle(self) -> dict[str, Any]:
        """Of a VM that nobody asks anything: what status says, and what an epoch costs the worker in ms of CPU."""
        processes = [psutil.Process(pid) for pid in self._lab.host("a").pids()]
        (worker,) = [process for process in processes if WORKER in process.cmdline()]
        before, began = self._product.status(VM), sum(worker.cpu_times()[:2])
        time.sleep(_IDLE_S)
        after, ended = self._product.status(VM), sum(worker.cpu_times()[:2])
        epochs = after["committed"] - before["committed"]
        cpu_ms = round(1000 * (ended - began) / epochs, 2) if epochs else None
        return {**{key: after[key] for key in SHOWN}, "worker_cpu_ms": cpu_ms}

    def _configure(self, settings: Settings, vm: str = VM) -> None:
        """These settings for the VM, from its next protection on."""
        configure(self._lab, self._product, vm, settings)
