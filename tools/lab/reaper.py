# SPDX-License-Identifier: Apache-2.0
"""What a host's init does for its daemons: their orphans become its children, and are reaped as soon as they end.

    printf 'libvirtd -d' | python -m tools.lab.reaper [--after SECONDS]

The program is read from stdin: who looks for it among the processes does not find its reaper.
systemd reaps at once, so that nobody else sees how a QEMU ended; the init of a container may take seconds.
Returns what the program returned; goes on in the background until the last of its children has ended.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main() -> int:
    """Start the program, and stay behind for what it leaves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--after", type=float, default=0.0, metavar="SECONDS")
    after_s = parser.parse_args().after
    argv = sys.stdin.read().split()
    answer, word = os.pipe()
    if os.fork():
        os.close(word)
        told = os.read(answer, 1)
        return told[0] if told else 1
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    program = os.fork()
    if program == 0:
        os.closerange(3, 64)
        os.execvp(argv[0], argv)
    _, status = os.waitpid(program, 0)
    os.write(word, bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
    _let_go()
    _reap(after_s)
    os._exit(0)


def _let_go() -> None:
    """Nobody waits for this process's output to end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.closerange(3, 64)


def _reap(after_s: float) -> None:
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return
        assert ended is not None  # not WNOHANG
        time.sleep(after_s)
        os.waitpid(ended.si_pid, 0)


if __name__ == "__main__":
    sys.exit(main())
