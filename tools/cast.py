# SPDX-License-Identifier: Apache-2.0
"""`make cast`: runs the demo in a terminal of its own, and keeps what it showed as docs/demo.cast.

    python -m tools.cast [--out FILE] [COMMAND...]

The file is an asciicast, version 2: a line of JSON that says how large the terminal was, then a line for each thing
that was written to it, with the seconds since the beginning. `asciinema play docs/demo.cast` shows it. Nothing is
written if the command fails.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import json
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.lab.paths import REPO
from tools.show import run_to_exit, say

COLUMNS, ROWS = 101, 26  # of the terminal: wider than most pages of a repository would only be made smaller
TITLE = "remusdb: a database VM loses its host"
SILENCE_S = 300.0  # of the command: the image of the VM may have to be made first
PAUSE_S = 2.0  # a player makes a longer pause as long as this
TERM = "xterm-256color"

Written = tuple[float, str]  # seconds since the beginning, what was written


def record(command: Sequence[str]) -> tuple[list[Written], int]:
    """What the command writes to a terminal, and its exit code. TimeoutError if it is silent for too long."""
    pid, terminal = pty.fork()
    if pid == 0:  # the child
        os.environ.update(TERM=TERM, COLUMNS=str(COLUMNS), LINES=str(ROWS), PYTHONUTF8="1")
        os.execvp(command[0], list(command))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    try:
        written = [*_read(terminal)]
    finally:
        os.close(terminal)  # the command is told by SIGHUP, if it is still there
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return written, status


def _read(terminal: int) -> Iterator[Written]:
    began, decoder = time.monotonic(), codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        if not select.select([terminal], [], [], SILENCE_S)[0]:
            raise TimeoutError(f"nothing was shown for {SILENCE_S:.0f} s")
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # the other end is closed
            return
        if not data:
            return
        if text := decoder.decode(data):
            yield time.monotonic() - began, text


def cast(written: Sequence[Written]) -> Iterator[str]:
    """The lines of the file."""
    head = {
        "version": 2, "width": COLUMNS, "height": ROWS, "title": TITLE, "idle_time_limit": PAUSE_S,
        "env": {"TERM": TERM},
    }  # fmt: skip
    yield json.dumps(head)
    yield from (json.dumps([round(at_s, 3), "o", text], ensure_ascii=False) for at_s, text in written)


def main() -> int:
    """As `make cast` calls it; the exit code is the demo's."""
    parser = argparse.ArgumentParser(prog="make cast")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "demo.cast")
    parser.add_argument("command", nargs="*", default=[sys.executable, "-m", "tools.demo"])
    args = parser.parse_args()
    written, status = record(args.command)
    if status:
        say(f"it failed with exit code {status}; the end of what it showed: {written[-1:]}")
        return status
    args.out.write_text("".join(f"{line}\n" for line in cast(written)))
    say(f"{args.out}: {len(written)} events, {args.out.stat().st_size >> 10} KiB")
    return 0


if __name__ == "__main__":
    run_to_exit(main, "the recording")
