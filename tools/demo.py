# SPDX-License-Identifier: Apache-2.0
"""`make demo`: kills the host of a protected database VM under load, and checks what its clients saw.

    python -m tools.demo [--seed N] [--runs N] [--kill host|qemu|link] [--db postgresql|mariadb] [--release all|commit]
                         [--plain]

Progress is on stderr: a living picture in a terminal that has room for it, else, or with `--plain`, lines. The last
line on stdout is one JSON object, which build/demo/report.json holds as well; of several runs it has the sums, the
worst and the medians, and under `runs` each run's own. Exit 1 if anything that a client had seen was lost or came
twice, if a connection was reset, or if the survivor is damaged. With `--release commit` a connection may be reset
inside a transaction, of which then nothing may be there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.markup import escape

from tools.dbms import BY_KEY, POSTGRESQL
from tools.lab import image
from tools.lab.paths import BUILD
from tools.show import TROUBLE, console, run_to_exit, say, step
from tools.stage import Living, Plain, can_live
from tools.trial import Kill, Outcome, Trial

_FOLDER = BUILD / "demo"
LOST = {Kill.HOST: "host", Kill.QEMU: "QEMU", Kill.LINK: "network"}  # what the title says
_SUMMED = (
    "acked",
    "acked_ipv6",
    "lost",
    "duplicated",
    "reconnects",
    "reset_inside",
    "resets_told",
    "early_frames",
    "epochs",
)
_WORST = ("detect_ms", "resume_ms", "outage_ms", "pause_ms_p99")
_MEDIAN = ("pause_ms_p50", "bytes_per_epoch", "tps_unprotected", "tps_protected")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One object of the figures of several runs: the same keys, `outage_ms_median`, and `runs`."""
    found: dict[str, Any] = {}
    for key in runs[0]:
        values = [run[key] for run in runs if run[key] is not None]
        if key in _SUMMED:
            found[key] = sum(values)
        elif key in _WORST:
            found[key] = max(values, default=None)
        elif key in _MEDIAN:
            found[key] = round(statistics.median(values), 2) if values else None
        else:
            found[key] = runs[0][key]
    found["outage_ms_median"] = round(statistics.median(run["outage_ms"] for run in runs), 1)
    return {**found, "runs": runs}


def _one(built: image.DbImage, seed: int, kill: Kill, folder: Path, release: str, living: bool) -> Outcome:
    title = f"remusdb: a {built.dbms.name} VM loses its {LOST[kill]}, and no client of it notices"
    with Living(title, console, _FOLDER / "picture.txt") if living else nullcontext(Plain()) as stage:
        outcome = Trial(built, seed, kill, folder, stage, release).run()
        for complaint in outcome.complaints:
            stage.say(f"  [bold red]{escape(complaint)}[/bold red]")
        figures = outcome.figures
        stage.say(
            f"  acknowledged {figures['acked']}, lost {figures['lost']}, twice {figures['duplicated']}, "
            f"connections lost {figures['reconnects']} ({figures['reset_inside']} inside a transaction); "
            f"the longest wait of a client {figures['outage_ms']:.0f} ms"
        )
    return outcome


def main() -> int:
    """As `make demo` calls it; the exit code."""
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--seed", type=int, default=1, help="of the first run; each further run has the next")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--kill", type=Kill, choices=list(Kill), default=Kill.HOST, metavar="{host,qemu,link}")
    parser.add_argument("--db", choices=list(BY_KEY), default=POSTGRESQL.key)
    parser.add_argument("--release", choices=["all", "commit"], default="all", help="the VM's setting")
    parser.add_argument("--plain", action="store_true", help="lines, also in a terminal")
    args = parser.parse_args()
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    with step("the database VM's image (about a minute if it is not there yet)"):
        built = image.ensure(_FOLDER / "image.log", BY_KEY[args.db])
    figures: list[dict[str, Any]] = []
    passed = True
    for number in range(args.runs):
        seed = args.seed + number
        say(f"[bold]run {number + 1} of {args.runs}[/bold]  [dim]seed {seed}, kill {args.kill.value}[/dim]")
        try:
            living = can_live(console) and not args.plain
            outcome = _one(built, seed, args.kill, _FOLDER / f"run-{seed}", args.release, living)
        except TROUBLE as error:  # the other runs may still tell something
            say(f"  [bold red]the run could not be finished:[/bold red] {escape(str(error))}")
            passed = False
            continue
        passed = passed and not outcome.complaints
        figures.append(outcome.figures)
        # After each run, so that a long series which is interrupted leaves what it has found.
        report = json.dumps(figures[0] if args.runs == 1 else summary(figures))
        (_FOLDER / "report.json").write_text(report + "\n")
    if figures:
        print(report)
    return 0 if passed else 1


if __name__ == "__main__":
    run_to_exit(main, "the demo")
