# SPDX-License-Identifier: Apache-2.0
"""`remusdb demo`, and its recording: who has no sources is told so, and what is kept is what a terminal was sent."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import remusdb
from remusdb.cli.main import cli
from tools.cast import COLUMNS, ROWS, cast, record

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "demo.cast"


def test_in_the_sources_it_is_make_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, len(ran) - 1)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/make")
    assert CliRunner().invoke(cli, ["demo", "--kill", "qemu", "--plain"]).exit_code == 0
    assert ran[0][:3] == ["make", "-C", str(ROOT)]
    assert {"demo", "KILL=qemu", "PLAIN=1", "DB=postgresql", "SEED=1"} <= set(ran[0])
    failed = CliRunner().invoke(cli, ["demo"])
    assert failed.exit_code == 1 and "build/demo" in failed.stderr


def test_what_it_passes_on_is_known_to_make() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo: setup\n")[2].partition("\n\n")[0]
    assert all(f"$({name})" in recipe or f"$(if $({name})" in recipe for name in ("SEED", "KILL", "DB", "PLAIN"))


def test_without_the_sources_it_says_where_they_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remusdb, "__file__", str(tmp_path / "remusdb" / "__init__.py"))
    done = CliRunner().invoke(cli, ["demo"])
    assert done.exit_code == 2 and "sources" in done.stderr and "make demo" in done.stderr


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was run"))
    done = CliRunner().invoke(cli, ["demo"])
    assert done.exit_code == 2 and "as root" in done.stderr


def test_what_a_terminal_was_sent_is_recorded_with_its_times() -> None:
    program = (
        "import os,sys,time; print(os.get_terminal_size(), sys.stdout.isatty()); time.sleep(0.3); print('\\u2581')"
    )
    written, status = record([sys.executable, "-c", program])
    assert status == 0
    head, *events = map(json.loads, cast(written))
    assert (head["version"], head["width"], head["height"]) == (2, COLUMNS, ROWS)
    text = "".join(event[2] for event in events)
    assert f"columns={COLUMNS}, lines={ROWS}) True" in text and "\u2581" in text
    assert events[-1][0] - events[0][0] >= 0.25, "as far apart as they were"
    assert record([sys.executable, "-c", "raise SystemExit(3)"])[1] == 3


def test_the_recording_that_is_kept_shows_a_whole_failover() -> None:
    head, *events = map(json.loads, KEPT.read_text().splitlines())
    assert head["version"] == 2 and head["width"] == COLUMNS
    times = [at_s for at_s, kind, _ in events if kind == "o"]
    assert len(times) == len(events) and times == sorted(times)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(text for *_, text in events))
    for said in (
        "a paused copy of it",
        "host killed",
        "no power",
        "took it over",
        "lost 0, twice 0, connections lost 0",
    ):
        assert said in text, said
    assert str(ROOT) not in text and "/home/" not in text and "Traceback" not in text
    assert "docs/demo.cast" in (ROOT / "README.md").read_text()
