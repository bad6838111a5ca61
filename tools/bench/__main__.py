# SPDX-License-Identifier: Apache-2.0
"""What protection costs PostgreSQL: the same load, unprotected and protected in several ways, in one run.

    python -m tools.bench [--quick] [--modes MODE,...] [--clients N,...] [--seconds N] [--rounds N] [--unprepared]
                          [--set KEY=JSON ...] [--no-more]

The modes take turns within a round, and their order turns from round to round: a shared machine is never the same for
long. A ratio is the median of a mode's throughput over that of `unprotected`. The last line on stdout is one JSON
object, which build/bench/report.json holds as well; tools/bench/summary.py says what its first keys are. After the
database's turns come a bare guest's progress, pages that are encoded, and hosts that are killed: `--no-more` leaves
these out. build/bench/report.html shows it all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tools.bench import bulk, encode, outage, page, progress, reads, summary
from tools.bench.cpu import CpuMeter
from tools.bench.pgbench import Load, Pgbench
from tools.bench.summary import UNPROTECTED
from tools.lab import Lab, domains, image
from tools.lab.paths import BUILD
from tools.lab.product import Product, Settings
from tools.load import accepts, wait_for
from tools.show import run_to_exit, say, step

VM = "pg"
FOLDER = BUILD / "bench"
MODES: dict[str, Settings] = {
    UNPROTECTED: {},
    "remus": {"epoch_mode": "fixed", "encoding": "full"},  # as the paper's baseline: whole pages, by the clock
    "fixed": {"epoch_mode": "fixed"},
    "on-demand": {"epoch_mode": "on-demand"},
}
SHOWN = ("pause_ms_p50", "pause_ms_p99", "commit_ms_p50", "commit_ms_p99", "dirty_pages", "bytes_per_epoch",
         "epochs_per_s", "epochs_for", "stages_ms", "clock_lost_ppm", "drt_reference_share")  # fmt: skip
_BOOT_S, _PROTECT_S = 240.0, 180.0
_SCALE = 10  # branches of TPC-B: with fewer the clients wait for each other
_IDLE_S = 5.0
_BULK_MB = 60
WORKER = "remusdb.worker"


class Bench:
    """One VM, protected in one way after the other."""

    def __init__(self, lab: Lab, product: Product, pgbench: Pgbench) -> None:
        self._lab, self._product, self._pgbench = lab, product, pgbench

    def measure(self, mode: str, loads: list[Load], seconds: int) -> dict[str, Any]:
        """Throughput under each load, and what status says right after it."""
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
        if mode != UNPROTECTED:
            self._product.cli("a", "unprotect", VM, timeout_s=_PROTECT_S)
        return found

    def progress(self, mode: str, seconds: float) -> dict[str, float]:
        """Of the bare-metal guest, while the database's VM is off."""
        self._lab.host("a").run(["virsh", "destroy", VM])
        return progress.measure(self._lab, self._product, seconds, lambda vm: self._configure(MODES[mode], vm))

    def reads(self, seconds: float) -> dict[str, Any]:
        """Of a bare guest that reads its disk, with disk-read tracking."""
        settings = {**MODES["fixed"], "disk_read_tracking": True}
        return reads.measure(self._lab, self._product, seconds, lambda vm: self._configure(settings, vm))

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
        file = self._lab.host("a").path("/etc/remusdb/host.toml")
        rest = file.read_text().partition("[vms.")[0].rstrip()
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        file.write_text(f"{rest}\n\n[vms.{vm}]\n{lines}")
        daemon = self._product.daemons["host", "a"]
        daemon.terminate()
        daemon.wait(30)
        self._product.start_host("a")


def main() -> int:
    """As `make bench` calls it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench")
    parser.add_argument("--quick", action="store_true", help="one round of 5 s each, without remus: some five minutes")
    parser.add_argument("--modes", help=f"of {', '.join(MODES)}")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=int, default=10, help="of each load in each mode and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="for all protected modes")
    parser.add_argument("--no-more", action="store_true", help="the database's turns alone")
    parser.add_argument("--unprepared", action="store_true", help="without `remusdb prepare`: all goes through libvirt")
    asked = parser.parse_args()
    if asked.quick:
        asked.seconds, asked.rounds = 5, 1
    usual = [mode for mode in MODES if mode != "remus" or not asked.quick]
    modes = list(dict.fromkeys([UNPROTECTED, *(asked.modes.split(",") if asked.modes else usual)]))
    for pair in asked.set:
        key, _, value = pair.partition("=")
        for mode in MODES:
            MODES[mode] = {**MODES[mode], key: json.loads(value)}
    counts = [int(count) for count in asked.clients.split(",")]
    loads = [Load(name, count) for name in ("tpcb", "select") for count in counts]
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with step("the database VM's image (about a minute if it is not there yet)"):
        built = image.ensure(FOLDER / "image.log")
    with Lab() as lab:
        product = Product(lab, FOLDER / "logs")
        with step("two hosts and a client; PostgreSQL boots"):
            bench = _begin(lab, product, built, FOLDER, prepared=not asked.unprepared)
        rounds: list[dict[str, Any]] = []
        for number in range(asked.rounds):
            turned = modes[number % len(modes) :] + modes[: number % len(modes)]
            rounds.append({})
            for mode in turned:
                with step(f"round {number + 1} of {asked.rounds}: {mode}"):
                    rounds[-1][mode] = bench.measure(mode, loads, asked.seconds)
            (FOLDER / "report.json").write_text(json.dumps({**summary.of(rounds), "rounds": rounds}) + "\n")
        more: dict[str, Any] = {}
        if not asked.no_more:
            with step("a bare guest makes progress, protected and not"):
                more["progress"] = bench.progress("fixed", 1.5 if asked.quick else 5.0)
                more["guest_progress_ratio"] = more["progress"][progress.USUAL]
            with step("a bare guest reads its disk, and the backup its own"):
                more["reads"] = bench.reads(1.5 if asked.quick else 5.0)
                more["drt_reference_share"] = more["reads"]["drt_reference_share"]
        product.keep_logs()
    if not asked.no_more:
        with step("pages are encoded"):
            more.update(encode.report())
        more.update(outage.report(built, FOLDER, runs=1 if asked.quick else 5))
    found = {**summary.of(rounds), **more}
    for key, value in found.items():
        say(f"  {key:<24} {value}")
    report = json.dumps({**found, "rounds": rounds})
    (FOLDER / "report.json").write_text(report + "\n")
    (FOLDER / "report.html").write_text(page.of(found, rounds))
    print(report)
    return 0


def _begin(lab: Lab, product: Product, built: image.DbImage, folder: Path, *, prepared: bool) -> Bench:
    a = lab.host("a")
    a.start_libvirt()
    domains.define_db(a, built, name=VM)
    lab.host("b").start_libvirt()
    product.install()
    product.start()
    if prepared:
        product.cli("a", "prepare", VM)
    a.run(["virsh", "start", VM])
    wait_for(lambda: accepts(lab), _BOOT_S, "PostgreSQL does not accept connections", 0.5)
    pgbench = Pgbench(lab, built, folder)
    pgbench.prepare(_SCALE)
    return Bench(lab, product, pgbench)


if __name__ == "__main__":
    run_to_exit(main, "the bench")
