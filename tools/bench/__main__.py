# SPDX-License-Identifier: Apache-2.0
"""What protection costs PostgreSQL: the same load, unprotected and protected in several ways, in one run.

    python -m tools.bench [--quick] [--modes MODE,...] [--clients N,...] [--seconds N] [--rounds N] [--unprepared]
                          [--set KEY=JSON ...] [--no-more]

The modes take turns within a round, and their order turns from round to round: a shared machine is never the same for
long. A ratio is the median of a mode's throughput over that of `unprotected`. The last line on stdout is one JSON
object, which build/bench/report.json holds as well; tools/bench/summary.py says what its first keys are, and it ends
with 1 when one of them is missing. After the database's turns come a bare guest's progress, one that reads its disk, a
scan of a table larger than memory, pages that are encoded, hosts that are killed, and PostgreSQL's own synchronous
replication: `--no-more` leaves these out, and `--quick` the scan and the replication. build/bench/report.html shows it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from typing import Any

from tools.bench import encode, outage, page, progress, scan, summary, syncrep
from tools.bench.pgbench import Load
from tools.bench.summary import UNPROTECTED
from tools.bench.turns import MODES, QUICK, Turns
from tools.lab import Lab, image
from tools.lab.paths import BUILD
from tools.lab.product import Product
from tools.show import run_to_exit, say, step

FOLDER = BUILD / "bench"


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
    usual = QUICK if asked.quick else MODES
    modes = list(dict.fromkeys([UNPROTECTED, *(asked.modes.split(",") if asked.modes else usual)]))
    if unknown := set(modes) - set(MODES):
        parser.error(f"there is no mode {', '.join(sorted(unknown))}")
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
            bench = Turns(lab, product, built, FOLDER, prepared=not asked.unprepared)
        rounds: list[dict[str, Any]] = []
        for number in range(asked.rounds):
            turned = modes[number % len(modes) :] + modes[: number % len(modes)]
            rounds.append({})
            for mode in turned:
                with step(f"round {number + 1} of {asked.rounds}: {mode}"):
                    rounds[-1][mode] = bench.measure(mode, loads, asked.seconds, inside=not asked.quick)
            (FOLDER / "report.json").write_text(json.dumps({**summary.of(rounds), "rounds": rounds}) + "\n")
        more: dict[str, Any] = {}
        if not asked.no_more:
            with step("a bare guest makes progress, protected and not"):
                more["progress"] = bench.progress("fixed", 1.5 if asked.quick else 5.0)
                more["guest_progress_ratio"] = more["progress"][progress.USUAL]
            with step("a bare guest reads its disk, and the backup its own"):
                more["reads"] = bench.reads(1.5 if asked.quick else 5.0)
                more["drt_reference_share"] = more["reads"]["drt_reference_share"]
            if not asked.quick:
                ways = {mode: None if mode == UNPROTECTED else MODES[mode] for mode in modes}
                more["scan"] = scan.in_turns(bench.scans(), ways, asked.seconds, asked.rounds)
        product.keep_logs()
    if not asked.no_more:
        with step("pages are encoded"):
            more.update(encode.report())
        more.update(outage.report(built, FOLDER, runs=1 if asked.quick else 5))
        if not asked.quick:
            more["syncrep"] = syncrep.report(built, FOLDER, counts, asked.seconds, asked.rounds)
    found = {**summary.of(rounds), **more}
    for key, value in found.items():
        say(f"  {key:<24} {value}")
    report = json.dumps({**found, "rounds": rounds})
    (FOLDER / "report.json").write_text(report + "\n")
    (FOLDER / "report.html").write_text(page.of(found, rounds))
    print(report)
    missing = [] if asked.no_more or asked.modes else summary.missing(found)
    if missing:
        say(f"the report lacks {', '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    run_to_exit(main, "the bench")
