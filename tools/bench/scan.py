# SPDX-License-Identifier: Apache-2.0
"""A sequential scan of a table that is larger than the guest's memory, again and again: PostgreSQL reads its disk.

    python -m tools.bench.scan [--seconds N] [--rounds N]      in turns with disk-read tracking, without it, unprotected

A part of `python -m tools.bench` that is not quick, in all of its modes. One JSON object on stdout. Of what the guest
reads, QEMU's own count says how much (`virsh domblkstat`), and `status` how many pages went as references to the
backup's disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remusdb.control.api import HostStatus
from remusdb.core.pagework import PAGE_BYTES
from remusdb.names import VmName
from tools.bench.pair import configure, two_hosts
from tools.bench.pgbench import Pgbench
from tools.lab import Lab, domains, image
from tools.lab.paths import BUILD
from tools.lab.product import Product, Settings
from tools.load import accepts, sql, wait_for
from tools.show import run_to_exit, step

VM = "scan"
MODES: dict[str, Settings | None] = {
    "unprotected": None,
    "off": {"epoch_mode": "fixed"},
    "on": {"epoch_mode": "fixed", "disk_read_tracking": True},
}
MEMORY_MIB, ROWS = 192, 120_000  # four rows a page of 8 KiB: 245 MB; 64 MB of the memory are PostgreSQL's own
MAKE = (
    # Rows are as wide as they can be without being stored elsewhere; unlogged, which makes it several times faster.
    f"CREATE UNLOGGED TABLE wide AS SELECT n, repeat(md5(n::text), 60) AS filler FROM generate_series(1, {ROWS}) n",
    "VACUUM (FREEZE) wide",  # or the first scan would write to each page
    "CHECKPOINT",
)
STATEMENT = "SELECT count(*) FROM wide"
KEPT = ("drt_reference_share", "drt_references", "bytes_per_epoch", "dirty_pages", "epochs_per_s", "commit_ms_p50",
        "pause_ms_p50", "pause_ms_p99")  # fmt: skip
_BOOT_S, _PROTECT_S, _SETTLE_S, _MAKE_S, _WINDOW_S = 240.0, 180.0, 3.0, 180.0, 120.0
WINDOW_EPOCHS = 100  # that status speaks of


class Scans:
    """The VM of such a scan, protected in one way after the other."""

    def __init__(self, lab: Lab, product: Product, built: image.DbImage, folder: Path) -> None:
        """Boots the VM, and fills its table."""
        self._lab, self._product = lab, product
        domains.define_db(lab.host("a"), built, name=VM, memory_mib=MEMORY_MIB)
        lab.host("a").run(["virsh", "start", VM])
        wait_for(lambda: accepts(lab), _BOOT_S, "PostgreSQL does not accept connections", 0.5)
        self._pgbench = Pgbench(lab, built, folder)
        for statement in MAKE:
            sql(lab, statement, _MAKE_S, database="postgres")

    def measure(self, settings: Settings | None, seconds: float) -> dict[str, Any]:
        """MB/s that the guest reads from its disk, with these settings; None: unprotected, for so many seconds.

        Of a protected VM what status says, how many pages went as references over those that were read, and bytes
        sent over bytes written.
        """
        if settings is None:
            return self._unprotected(seconds)
        configure(self._lab, self._product, VM, settings)
        self._product.cli("a", "protect", VM, "--to", "b", timeout_s=_PROTECT_S)
        found = self._protected()
        self._product.cli("a", "unprotect", VM, timeout_s=_PROTECT_S)
        return found

    def _unprotected(self, seconds: float) -> dict[str, Any]:
        with self._pgbench.again(STATEMENT):
            time.sleep(_SETTLE_S)
            began, before = time.monotonic(), self._read_bytes()
            time.sleep(seconds)
            took_s, read = time.monotonic() - began, self._read_bytes() - before
        return {"mb_s": round(read / took_s / 1e6, 2)}

    def _protected(self) -> dict[str, Any]:
        """Over as many epochs as status speaks of."""
        with self._pgbench.again(STATEMENT):
            time.sleep(_SETTLE_S)
            began, before, first = time.monotonic(), self._read_bytes(), self._committed()
            wait_for(lambda: self._committed() >= first + WINDOW_EPOCHS, _WINDOW_S, "epochs are not committed", 0.2)
            status = self._product.status(VM)
            took_s, read = time.monotonic() - began, self._read_bytes() - before
        found = {"mb_s": round(read / took_s / 1e6, 2), **{key: status[key] for key in KEPT}}
        found["wire_over_dirty"] = round(status["bytes_per_epoch"] / (status["dirty_pages"] * PAGE_BYTES), 4)
        if status["drt_references"] is not None:
            found["drt_over_read"] = round(status["drt_references"] * PAGE_BYTES / read, 3)
        return found

    def _committed(self) -> int:
        (status,) = self._product.ask("host", "a", HostStatus(vm=VmName(VM))).vms
        return status.committed

    def _read_bytes(self) -> int:
        """That the guest has read from its disk since it started."""
        said = self._lab.host("a").run(["virsh", "domblkstat", VM, "vda"]).stdout.split()
        return int(said[said.index("rd_bytes") + 1])


def in_turns(scans: Scans, modes: Mapping[str, Settings | None], seconds: float, rounds: int) -> dict[str, Any]:
    """Medians of each mode, and all of its turns."""
    turns: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    for number in range(rounds):
        for mode in list(modes)[:: 1 if number % 2 == 0 else -1]:
            with step(f"a table larger than memory is scanned, round {number + 1} of {rounds}: {mode}"):
                turns[mode].append(scans.measure(modes[mode], seconds))
    medians = {
        mode: {key: statistics.median(turn[key] for turn in of) for key in of[0] if of[0][key] is not None}
        for mode, of in turns.items()
    }
    return {**medians, "turns": turns}


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.scan")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn of the unprotected VM")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    folder = BUILD / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    built = image.ensure(folder / "image.log")
    with two_hosts() as (lab, product):
        with step("PostgreSQL boots, and fills a table"):
            scans = Scans(lab, product, built, folder)
        print(json.dumps(in_turns(scans, MODES, asked.seconds, asked.rounds)))
    return 0


if __name__ == "__main__":
    run_to_exit(main, "the measurement")
