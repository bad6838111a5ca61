# SPDX-License-Identifier: Apache-2.0
"""All targets, two at a time: `python -m tests.fuzz [--seconds S] [--runs N] [--seed K] [TARGET ...]`.

S is shared out among them; N is how many inputs each gets; whichever ends first. With K they are the same inputs each
time: `make test` must not fail by chance for a change that is not to blame. Tells the inputs of each and their sum; of
a finding, the command that runs it again. Ends with 1 where there is one, and where a target did not run.

Each target has a process of its own, forked from this one: to import and instrument the code takes some seconds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.one import TARGETS, fuzz, put_samples

FOLDER = Path("build/fuzz")
AT_ONCE = 2
DONE = re.compile(r"^Done (\d+) runs in", re.MULTILINE)
WRITTEN = re.compile(r"Test unit written to (\S+)")
TOLD_LINES = 40


@dataclass(frozen=True)
class Running:
    """A target at work."""

    name: str
    folder: Path
    began: float


def main() -> int:
    """Run them, tell of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, help="for all targets together; 60 where nothing is said")
    parser.add_argument("--runs", type=int, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs each time; 0: others each time")
    parser.add_argument("targets", nargs="*")
    asked = parser.parse_args()
    waiting = asked.targets or list(TARGETS)
    each = [f"-seed={asked.seed}"]
    if asked.runs:
        each.append(f"-runs={asked.runs}")
    if asked.seconds or not asked.runs:
        each.append(f"-max_total_time={max(1, round((asked.seconds or 60.0) * AT_ONCE / len(waiting)))}")
    began, at_work, inputs, found = time.monotonic(), dict[int, Running](), 0, 0
    targets = len(waiting)
    while waiting or at_work:
        while waiting and len(at_work) < AT_ONCE:
            name = waiting.pop(0)
            running = Running(name, FOLDER / name, time.monotonic())
            at_work[_start(running, each)] = running
        pid, status = os.wait()
        if pid in at_work:
            running = at_work.pop(pid)
            done, problem = _outcome(running, os.waitstatus_to_exitcode(status))
            inputs, found = inputs + done, found + bool(problem)
            took = time.monotonic() - running.began
            print(f"{running.name:14} {done:10} inputs {took:6.0f} s  {problem}", flush=True)
    print(f"{inputs} inputs, {targets} targets, {time.monotonic() - began:.0f} s, {found} findings")
    return 1 if found else 0


def _start(running: Running, each: list[str]) -> int:
    """Fork it; its process id."""
    corpus = running.folder / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    corpus.mkdir(parents=True)
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    try:
        told = os.open(running.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(told, 1)
        os.dup2(told, 2)
        put_samples(running.name, corpus)
        fuzz(running.name, [*each, f"-artifact_prefix={running.folder}/", str(corpus)])
    except Exception as exc:
        print(f"cannot be run: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
    os._exit(1)


def _outcome(running: Running, code: int) -> tuple[int, str]:
    """How many inputs it had, and what was found."""
    said = (running.folder / "log").read_text(errors="replace")
    counted, written = DONE.search(said), WRITTEN.search(said)
    inputs = int(counted[1]) if counted else 0
    if code == 0 and inputs:
        return inputs, ""
    lines = "\n".join(said.strip().splitlines()[-TOLD_LINES:])
    again = f"\nagain: {sys.executable} -m tests.fuzz.one {running.name} {written[1]}" if written else ""
    return inputs, f"FOUND (exit {code})\n{lines}{again}\n"


if __name__ == "__main__":
    sys.exit(main())
