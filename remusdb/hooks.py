# SPDX-License-Identifier: Apache-2.0
"""Runs the operator's executables on each event: every one in the folder, with the event as JSON on its stdin.

Owns the processes it starts. Invariant: nobody waits for a hook but the later runs of the same hook for the same VM.

    (VM, hook): its events wait in order ─▶ one of 8 threads runs the first ─▶ (VM, hook) goes to the end of the line

So a hook that hangs delays its own next event of that VM by `timeout_s`, and another hook only when eight hang at
once: then by at most `timeout_s` for every eight (VM, hook) pairs that wait before it.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import stat
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from remusdb.deadline import Deadline
from remusdb.errors import NoThread
from remusdb.log import VmLog
from remusdb.printable import json_text
from remusdb.quietly import NOISY
from remusdb.threads import spawn

if TYPE_CHECKING:
    from remusdb.history import Event

log = logging.getLogger(__name__)

AT_ONCE = 8
TIMEOUT_S = 30.0
WAITING_MAX_EVENTS = 64  # of one VM for one hook; then the oldest is given up
OUTPUT_MAX_BYTES = 4096  # of one run, to the log; what comes after is read and thrown away
KILLED_S = 5.0  # a killed process that takes longer hangs in the kernel
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

Lane = tuple[str, Path]


class Hooks:
    """The executables of one folder."""

    def __init__(self, folder: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._waiting: dict[Lane, deque[Event]] = {}  # a lane is in here from its first event until its last has run
        self._ready: deque[Lane] = deque()  # lanes of which nothing runs
        self._threads = 0
        self._changed = threading.Condition()
        self._complaints: dict[Path, str] = {}

    def run(self, event: Event) -> None:
        """Have every hook run, in the order of their names. Waits for none of them, and never fails."""
        try:
            for path in self._usable():
                self._add((event.vm, path), event)
        except Exception:  # task boundary: whoever has an event to tell must not stumble over a hook
            _log(event).exception("hooks of %s are not run", event.event)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no hook runs or waits; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, max(timeout_s, 0))

    def _usable(self) -> list[Path]:
        """The hooks as they are now. What is left alone is named in the log, once for each reason."""
        try:
            fault = _fault(self._folder.stat())
            found = sorted(path for path in self._folder.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as exc:
            fault, found = f"it cannot be read: {exc.strerror}", []
        if fault:
            self._complain(self._folder, fault)
            return []
        return [path for path in found if self._complain(path, _unusable(path))]

    def _complain(self, path: Path, fault: str) -> bool:
        """Whether there is nothing to complain of."""
        if fault and self._complaints.get(path) != fault:
            log.warning("%s is left alone: %s", path, fault)
        self._complaints[path] = fault
        return not fault

    def _add(self, lane: Lane, event: Event) -> None:
        with self._changed:
            waiting = self._waiting.get(lane)
            if waiting is None:
                waiting = self._waiting[lane] = deque()
                self._ready.append(lane)
            elif len(waiting) == WAITING_MAX_EVENTS:
                gone = waiting.popleft()
                _log(gone).error("%s was not told of %s: it is too far behind", lane[1], gone.event)
            waiting.append(event)
            if self._ready and self._threads < AT_ONCE:
                try:
                    spawn(self._work, name="hooks")
                    self._threads += 1
                except NoThread as exc:  # they wait, and run with the next event
                    log.warning("hooks wait: %s", exc, extra=NOISY)

    def _work(self) -> None:
        """Run what is ready until nothing is."""
        while True:
            with self._changed:
                if not self._ready:
                    self._threads -= 1
                    return
                lane = self._ready.popleft()
                event = self._waiting[lane].popleft()
            try:
                _run(lane[1], event, self._timeout_s)
            except Exception as exc:  # task boundary: a hook that cannot be run takes nothing with it
                _log(event).warning("hook %s cannot be run on %s: %s", lane[1], event.event, exc)
            with self._changed:
                if self._waiting[lane]:
                    self._ready.append(lane)
                else:
                    del self._waiting[lane]
                self._changed.notify_all()


def _unusable(path: Path) -> str:
    """Why this file is no hook; empty if it is one."""
    try:
        found = path.lstat()
    except OSError as exc:
        return str(exc.strerror)
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    return "it is not executable" if not found.st_mode & stat.S_IXUSR else _fault(found)


def _log(event: Event) -> VmLog:
    return VmLog(log, event.vm, lambda: {"term": event.term})


def _fault(found: os.stat_result) -> str:
    """Who could have put something there for us to run, with our rights?"""
    if found.st_uid not in (0, os.geteuid()):
        return "it is not owned by root"
    return "users other than its owner may write it" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def _run(path: Path, event: Event, timeout_s: float) -> None:
    """One hook, from its start until nothing of its process group is left."""
    about = {"REMUSDB_VM": event.vm, "REMUSDB_EVENT": event.event, "REMUSDB_STATE": event.now}
    started = time.monotonic()
    with open(os.memfd_create("event"), "w+b") as stdin:  # unlike a pipe it takes all of it, read or not
        stdin.write(json_text(event).encode() + b"\n")
        stdin.seek(0)
        process = subprocess.Popen(
            [path],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, **about},
            cwd="/",
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout as stdout:
        output = _Output(stdout.fileno())
        ended = _wait(process.pid, output, Deadline(started + timeout_s))
        with suppress(ProcessLookupError):  # before it is reaped: until then the number is its own
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(KILLED_S)
        output.read()  # at most a pipe full is left
    verdict = f"ended with {process.returncode}" if ended else f"was killed: it ran for more than {timeout_s:g} s"
    level = logging.INFO if process.returncode == 0 and ended else logging.WARNING
    _log(event).log(level, "hook %s on %s %s after %.1f s%s", path, event.event, verdict,
            time.monotonic() - started, output.words())  # fmt: skip


def _wait(pid: int, output: _Output, deadline: Deadline) -> bool:
    """Read until the process itself ends; a child of it may hold its stdout for ever. False: the time is over."""
    with open(os.pidfd_open(pid), "rb", buffering=0) as pidfd:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(output.fd, select.POLLIN)
        while not deadline.over:
            ready = [fd for fd, _ in poll.poll(deadline.left() * 1000)]
            if pidfd.fileno() in ready:
                return True
            if output.fd in ready and not output.read():
                poll.unregister(output.fd)
        return False


class _Output:
    """The first bytes of what a hook says."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._kept = b""
        self._more_bytes = 0

    def read(self) -> bool:
        """Take what is there; False when no more can come."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return True
        room = OUTPUT_MAX_BYTES - len(self._kept)
        self._kept += data[:room]
        self._more_bytes += len(data[room:])
        return bool(data)

    def words(self) -> str:
        """For the end of a line of the log."""
        text = " | ".join(self._kept.decode(errors="replace").split("\n")).rstrip(" |")
        more = f" (and {self._more_bytes} bytes)" if self._more_bytes else ""
        return f": {text}{more}" if text else ""
