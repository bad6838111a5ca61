# SPDX-License-Identifier: Apache-2.0
"""The log under a flood, by a clock of the test's own, and once from a real process."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from subprocess import PIPE
from typing import Any

import pytest

from remusdb import quietly
from remusdb.errors import NoThread
from remusdb.quietly import BURST, BURST_NOISY, KINDS_MAX, NOISY, WINDOW_S, Quiet


class Log:
    """A logger whose lines are kept, behind the filter."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines: list[str] = []
        self.quiet = Quiet(self._say, lambda: self.now)
        self.logger = logging.Logger("test")
        handler: Any = logging.Handler()
        handler.addFilter(self.quiet)
        handler.emit = self._say
        self.logger.addHandler(handler)

    def _say(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def refuse(self, who: object) -> None:
        self.logger.warning("refused %s", who, extra=NOISY)

    def real(self, what: object) -> None:
        self.logger.warning("real %s", what)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    def none(*_args: object, **_kwargs: object) -> None:
        raise NoThread("none")

    monkeypatch.setattr(quietly, "spawn", none)
    return Log()


def test_a_few_lines_a_second_and_then_how_many_more(log: Log) -> None:
    for number in range(1000):
        log.refuse(number)
    assert log.lines == [f"refused {number}" for number in range(BURST_NOISY)]
    log.now += WINDOW_S
    log.refuse("later")
    more = 1000 - BURST_NOISY
    assert log.lines[BURST_NOISY:] == [
        f"refused 999 (the last of {more} like it within a second; the others are not written)",
        "refused later",
    ]


def test_a_flood_silences_no_other_kind(log: Log) -> None:
    for number in range(10_000):
        log.refuse(number)
        if number % 1000 == 0:
            log.real(number)
    assert [line for line in log.lines if line.startswith("real")] == [f"real {n}" for n in range(0, 10_000, 1000)]
    assert len(log.lines) == 10 + BURST_NOISY


def test_what_happens_to_many_vms_at_once_is_told_of_each(log: Log) -> None:
    for number in range(BURST):
        log.real(number)
    assert len(log.lines) == BURST


@pytest.mark.slow
def test_a_minute_of_flood_is_a_few_hundred_lines_and_the_sum_is_right(log: Log) -> None:
    for _ in range(60_000):
        log.refuse("x" * 40)
        log.now += 0.001
    log.now += WINDOW_S
    log.quiet.flush()
    assert len(log.lines) <= 61 * (BURST_NOISY + 1)
    counted = sum(int(line.split("the last of ")[1].split()[0]) for line in log.lines if "the last of" in line)
    assert counted + sum("the last of" not in line for line in log.lines) == 60_000


def test_the_number_of_kinds_is_bounded_and_errors_are_still_written(log: Log) -> None:
    def say(line: int, level: int) -> None:
        record = logging.LogRecord("test", level, "made/up.py", line, "line %d", (line,), None)
        log.logger.handle(record)

    for line in range(3 * KINDS_MAX):
        say(line, logging.WARNING)
    assert len(log.quiet._windows) == KINDS_MAX and len(log.lines) == KINDS_MAX
    say(9_999_999, logging.ERROR)
    assert log.lines[-1] == "line 9999999"
    log.now += WINDOW_S
    log.quiet.flush()
    assert not log.quiet._windows


def test_debug_is_written_whole(log: Log) -> None:
    for number in range(1000):
        log.logger.debug("debug %d", number, extra=NOISY)
    assert len(log.lines) == 1000


SCRIPT = """
import logging, sys, time
from remusdb.log import setup
from remusdb.quietly import NOISY
setup()
for number in range(5000):
    try:
        raise ValueError(number)
    except ValueError:
        logging.getLogger("flood").exception("failed %d", number, extra=NOISY)
print("flooded", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("form", ["json", ""])
def test_a_real_log_says_the_count_by_itself_when_the_flood_is_over(form: str) -> None:
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(
        command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env={"REMUSDB_LOG": form}, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.readline() == "flooded\n"
        said, until = "", time.monotonic() + 30
        while "failed 4999 (the last of " not in said:
            assert time.monotonic() < until
            said += process.stderr.readline()
        process.stdin.close()
        said += process.stderr.read()
        assert process.wait(30) == 0
    assert len(said) < 10_000 and said.count("Traceback") <= 2 * BURST_NOISY
