# SPDX-License-Identifier: Apache-2.0
"""The bar of a long work: one line that says what, how much, how fast, how long; a line for each step that is over."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from remusdb.cli.bar import Bar
from remusdb.control import Progress
from tools.cast import record

MIB = 1 << 20


class Terminal:
    """A terminal of so many columns, with a clock that stands still until it is moved."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.now, self._capsys = 100.0, capsys
        self.out = io.StringIO()
        environ = {"TERM": "xterm"}
        self.console = Console(file=self.out, force_terminal=True, width=120, color_system=None, _environ=environ)
        self.bar = Bar(self.console, lambda: self.now)

    def told(self, step: str, done: float = 0, total: float = 0, unit: str = "bytes", *, after_s: float = 1.0) -> None:
        self.now += after_s
        self.bar.show(Progress(step=step, done=done, total=total, unit=unit))

    def lines(self) -> list[str]:
        """The bar as it would be drawn now."""
        with self.console.capture() as shown:
            self.console.print(self.bar.progress.get_renderable())
        return [line for line in shown.get().splitlines() if line.strip()]

    def left(self) -> list[str]:
        """The lines that steps have left so far."""
        return self._capsys.readouterr().err.splitlines()


def test_there_is_one_bar_with_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(capsys)
    for done in range(0, 50, 10):
        terminal.told("copy disks", done * MIB, 100 * MIB)
    (line,) = terminal.lines()
    for said in ("copy disks", "40 MiB of 100 MiB", "10 MiB/s", "6.0 s left"):
        assert said in line, line
    terminal.told("copy disks", 100 * MIB, 100 * MIB)
    terminal.told("copy memory", 0, 64 * MIB)
    terminal.told("copy memory", 16 * MIB, 64 * MIB)
    terminal.told("copy memory", 32 * MIB, 64 * MIB)
    (line,) = terminal.lines()
    assert "copy memory" in line and "16 MiB/s" in line and "2.0 s left" in line, "of this step alone"
    assert terminal.left() == ["copy disks: 100 MiB of 100 MiB, 6.0 s"]


def test_what_is_not_known_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(capsys)
    terminal.told("start an empty copy", unit="")
    (line,) = terminal.lines()
    assert "left" not in line and "/s" not in line and "of" not in line
    terminal.told("prove the standby", 0, 1, "load")
    (line,) = terminal.lines()
    assert "prove the standby" in line and "of" not in line, "nobody counts to one"
    terminal.told("the copy runs", 2, 5, "s")
    assert "2 of 5 s" in terminal.lines()[0] and "B/s" not in terminal.lines()[0]


def test_a_step_that_is_interrupted_is_not_told_to_be_over(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(capsys)
    terminal.told("copy memory", 16 * MIB, 64 * MIB)
    terminal.told("wait for libvirt", 1, unit="s")
    assert terminal.left() == []
    terminal.told("copy memory", 64 * MIB, 64 * MIB)
    terminal.bar.stop()
    assert [line.partition(",")[0] for line in terminal.left()] == [
        "wait for libvirt", "copy memory: 64 MiB of 64 MiB"
    ]  # fmt: skip


def test_words_of_a_daemon_do_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(capsys)
    terminal.told("[red]x\x1b]0;t\x07", 1, 2, "[b]\x1b[2J")
    drawn = "".join(terminal.lines())
    assert "\x1b" not in drawn and "[red]x" in drawn and "[b]" in drawn
    terminal.bar.stop()
    (line,) = terminal.left()
    assert "\x1b" not in line and "[red]x" in line


PROGRAM = """
from remusdb.cli.progress import Steps
from remusdb.control import Progress
with Steps() as steps:
    steps.show(Progress(step='copy', done=1, total=2, unit='bytes'))
    steps.say('result')
    steps.show(Progress(step='copy', done=2, total=2, unit='bytes'))
"""


def test_results_stay_where_they_were_sent_while_there_is_a_bar() -> None:
    """stdout is a pipe, stderr a terminal."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=60, env=environ, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.stdout == "result\n" and "result" not in shown
    assert "copy" in shown and "\u2501" in shown, "the bar was drawn"


def test_a_result_is_a_line_of_its_own_where_the_bar_was() -> None:
    written, status = record([sys.executable, "-c", PROGRAM])
    shown = "".join(text for _, text in written)
    before = shown.partition("result\r\n")[0]
    assert status == 0 and before != shown
    assert "copy" in before and re.search(r"\x1b\[2K$|\n$", before), repr(before[-200:])
