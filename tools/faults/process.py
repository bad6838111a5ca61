# SPDX-License-Identifier: Apache-2.0
"""Processes of a node that are killed, or stand still for a while."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from remusdb.deadline import Deadline
from tools.lab.node import Node


def find(node: Node, *words: str) -> list[int]:
    """Processes of this node whose command line holds all these words."""
    found = []
    for pid in node.pids():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if all(word in line for word in words):
            found.append(pid)
    return found


def kill(pids: Iterable[int], timeout_s: float = 10.0) -> None:
    """SIGKILL, and wait until they are gone or zombies. TimeoutError when one is not."""
    wanted = list(pids)
    _signal(wanted, signal.SIGKILL)
    deadline = Deadline.after(timeout_s)
    while left := [pid for pid in wanted if _state(pid) not in ("", "Z", "X")]:
        if deadline.over:
            raise TimeoutError(f"processes {left} do not end")
        time.sleep(0.01)


class Stopped:
    """Processes that stand still by SIGSTOP until `heal()`, which a timer calls. Safe to call twice."""

    def __init__(self, pids: Iterable[int], for_s: float) -> None:
        self._pids = tuple(pids)
        self._lock = threading.Lock()
        _signal(self._pids, signal.SIGSTOP)
        self._timer = threading.Timer(for_s, self.heal)
        self._timer.daemon = True
        self._timer.start()

    def heal(self) -> None:
        """SIGCONT, now."""
        self._timer.cancel()
        with self._lock:
            pids, self._pids = self._pids, ()
            _signal(pids, signal.SIGCONT)

    def wait(self) -> None:
        """Until they run again."""
        if threading.current_thread() is not self._timer:
            self._timer.join()


def stop(pids: Iterable[int], for_s: float) -> Stopped:
    """SIGSTOP now and SIGCONT after `for_s`."""
    return Stopped(pids, for_s)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _state(pid: int) -> str:
    """The letter that /proc has for it, or "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
