# SPDX-License-Identifier: Apache-2.0
"""`make matrix`: runs cells one after the other on one protected VM, and writes what became of them.

    python -m tools.matrix [--cells all|ci|FAULT/PHASE,...] [--seed N] [--document PATH]

Progress is on stderr; the last line on stdout is one JSON object. Exit 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from tools.lab.domains import DB_MAC
from tools.lab.paths import REPO
from tools.matrix.cell import Result, run_cell
from tools.matrix.expect import CI, cells
from tools.matrix.faults import FAULTS, Fault
from tools.matrix.phases import Phase
from tools.matrix.report import FOLDER, Results
from tools.matrix.watch import Speakers
from tools.rig import Rig, running_rig
from tools.show import TROUBLE, run_to_exit, say

Cell = tuple[Fault, Phase]


class Runner:
    """Goes through the cells. A pair that has no way back is thrown away, and its last cell has failed."""

    def __init__(self, wanted: Sequence[Cell], results: Results, chance: random.Random) -> None:
        self._left = list(wanted)
        self._results = results
        self._chance = chance
        self._labs = 0

    def run(self) -> None:
        """All of them. Raises what the lab raises if not even a fresh pair can be protected."""
        while self._left:
            self._labs += 1
            with running_rig(FOLDER / f"lab-{self._labs}") as rig:
                speakers = Speakers(rig.lab, DB_MAC)
                try:
                    self._on(rig, speakers)
                finally:
                    speakers.close()

    def _on(self, rig: Rig, speakers: Speakers) -> None:
        last: Result | None = None
        while self._left:
            try:
                rig.start_parts()
                rig.make_protected()
            except TROUBLE as error:
                if last is None:
                    raise
                return self._blame(last, f"no way back: {error}")
            fault, phase = self._left.pop(0)
            last = run_cell(rig, speakers, fault, phase, self._chance)
            self._results.add(last)
            _tell(last)
        if last is not None:
            self._verify(rig, last)

    def _verify(self, rig: Rig, last: Result) -> None:
        """Everything that was acknowledged in this lab, once more."""
        try:
            rig.load.stop()
            judged = rig.load.verify()
        except TROUBLE as error:
            return self._blame(last, f"the last look at the database: {error}")
        if complaints := [text for text in judged["complaints"] if not text.startswith("connection lost")]:
            self._blame(last, f"found at the end: {'; '.join(complaints)}")

    def _blame(self, result: Result, complaint: str) -> None:
        result.complaints.append(complaint)
        self._results.add(result)
        _tell(result)


def _tell(one: Result) -> None:
    if not one.applies:
        return say(f"  [dim]-[/dim] {one.fault}/{one.phase}: does not apply")
    sign = "[green]✓[/green]" if one.ok else "[red]✗[/red]"
    say(f"  {sign} {one.fault}/{one.phase}: {one.under} {one.end} {one.seconds} s {one.note}")
    for complaint in one.complaints:
        say(f"      [red]{escape(complaint)}[/red]")


def chosen(text: str) -> list[Cell]:
    """`all`, `ci`, or names: FAULT/PHASE, FAULT (its row), /PHASE (its column). ValueError for what is not there."""
    names = list(CI) if text == "ci" else text.split(",")
    found = [cell for cell in cells() if text == "all" or any(_named(cell, name) for name in names)]
    if unknown := [name for name in names if text not in ("all", "ci") and not any(_named(c, name) for c in cells())]:
        raise ValueError(f"no such cells: {unknown}; faults: {', '.join(FAULTS)}")
    return found


def _named(cell: Cell, name: str) -> bool:
    fault, _, phase = name.partition("/")
    return fault in ("", cell[0].key) and phase in ("", cell[1].value)


def main(argv: Sequence[str] | None = None) -> int:
    """As `make matrix` calls it; the exit code."""
    parser = argparse.ArgumentParser(prog="make matrix")
    parser.add_argument("--cells", default="all", help="all, ci, or FAULT/PHASE,... (either side may be left out)")
    parser.add_argument("--keep", action="store_true", help="go on with the table of the last run: cells add to it")
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which faults strike")
    parser.add_argument("--document", type=Path, default=REPO / "docs" / "fault-matrix.md")
    args = parser.parse_args(argv)
    try:
        wanted = chosen(args.cells)
    except ValueError as error:
        parser.error(str(error))
    if not args.keep:
        shutil.rmtree(FOLDER, ignore_errors=True)
    for left in FOLDER.glob("lab-*"):
        shutil.rmtree(left)
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = Results(f"make matrix CELLS={args.cells}{' KEEP=1' if args.keep else ''}", args.keep)
    try:
        Runner(wanted, results, random.Random(args.seed)).run()
    finally:
        results.write_document(args.document)
    done = [one for one in results.cells.values() if one.applies]
    failed = {f"{one.fault}/{one.phase}": one.complaints for one in done if not one.ok}
    print(json.dumps({"run": len(done), "ok": len(done) - len(failed), "wanted": len(wanted), "failed": failed}))
    return 1 if failed or len(results.cells) < len(wanted) else 0


if __name__ == "__main__":
    run_to_exit(main, "the matrix")
