# SPDX-License-Identifier: Apache-2.0
"""The daemon's end of one worker process: lines (`worker/spec.py`) over a socketpair, or over the socket of a worker
that an earlier daemon left behind.

Invariant: at most one worker a VM, whatever became of earlier daemons; every request to it is answered, with an
error if the worker ends first. An answer belongs to the oldest request with the `op` it names, or the oldest of all.
A worker that cannot be understood, as one of another version, is left alone: it protects its VM, and were it ended the
other host would take over.

    new ──spawn(), or adopt()──▶ running ──the worker ends, or stop()──▶ ended
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from remusdb.control.codec import Done, Failed, Progress, ProgressFn, Reply, Request
from remusdb.control.lines import LineChannel
from remusdb.control.status import VmStatus
from remusdb.errors import BadFrame, NoThread, RemusError
from remusdb.host.outside import Outside
from remusdb.host.worker_lock import hold_lock
from remusdb.log import VmLog
from remusdb.quietly import NOISY
from remusdb.threads import spawn
from remusdb.worker.spec import Report, Start, Stop, Told, read_report

log = logging.getLogger(__name__)


class WorkerEvents(Protocol):
    """What a worker tells without being asked. Called from the link's reader thread, with the link that tells it."""

    def on_status(self, link: WorkerLink, status: VmStatus) -> None:
        """The VM's state as the worker sees it."""

    def on_end(self, link: WorkerLink, how: str) -> None:
        """The worker is gone and reaped."""


@dataclass
class _Pending:
    request: Request[Any]
    progress: ProgressFn
    answer: Future[Any] = field(default_factory=Future)


class WorkerLink:
    """One worker process."""

    def __init__(self, vm: str, outside: Outside, events: WorkerEvents, lock_file: Path) -> None:
        """`lock_file` is held by the worker for as long as it lives; its socket stands beside it."""
        self._vm = vm
        self._log = VmLog(log, vm)
        self._lock_file = lock_file
        self._socket_path = lock_file.with_suffix(".sock")
        self._argv, self._timing = list(outside.worker_argv), outside.timing
        self._events = events
        self._pending: deque[_Pending] = deque()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1  # of a worker that is not our child
        self._pid = 0
        self._left = False
        self._channel: LineChannel | None = None

    @property
    def pid(self) -> int:
        """The worker's process id, 0 before it was spawned."""
        return self._pid

    @property
    def waited_for(self) -> bool:
        """Whether a request still waits for its answer."""
        return bool(self._pending)

    def spawn(self) -> None:
        """Start the process. It outlives this daemon; the next one adopts it."""
        lock = hold_lock(self._lock_file, self._vm, self._timing.lock_s)
        ours, theirs = socket.socketpair()
        try:
            # A session of its own, so that Ctrl-C on a foreground daemon does not reach the workers;
            # stdout goes to the log, because nobody else reads it.
            self._process = subprocess.Popen(
                [*self._argv, str(theirs.fileno()), str(self._socket_path)],
                pass_fds=[theirs.fileno(), lock],
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
            )
        except OSError as exc:
            ours.close()
            raise RemusError(f"the worker of {self._vm} cannot be started: {exc}") from exc
        finally:
            theirs.close()
            os.close(lock)
        self._pid = self._process.pid
        self._channel = LineChannel(ours)
        try:
            self.follow()
        except NoThread:
            self._process.kill()  # nobody would hear it, and it has no command yet
            self._process.wait()
            self._ended.set()
            ours.close()
            raise

    def adopt(self) -> bool:
        """Connect to the worker that an earlier daemon left; False when there is none. `follow` begins to hear it."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self._timing.linger_s)
            sock.connect(str(self._socket_path))
            sock.settimeout(None)
            self._pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            self._pidfd = os.pidfd_open(self._pid)
        except OSError:
            sock.close()
            return False
        self._channel = LineChannel(sock)
        return True

    def follow(self) -> None:
        """Hear what the worker tells, from here on. NoThread: it is not heard."""
        spawn(self._read, name=f"worker-{self._vm}")

    def leave(self) -> None:
        """Let go of the worker, which goes on: this daemon ends."""
        if self._channel is not None:
            self._left = True
            self._channel.close()

    def request(self, request: Request[Reply], progress: ProgressFn, timeout_s: float | None = None) -> Reply:
        """Ask the worker and wait for its reply; its error is raised as its own class."""
        op, pending = request.op(), _Pending(request, progress)
        with self._lock:
            if self._channel is None or self._ended.is_set():
                raise RemusError(f"the worker of {self._vm} has ended")
            self._pending.append(pending)
            try:
                self._channel.send(request)
            except OSError:
                self._log.debug("worker hung up before %s", op)  # the reader answers for it
        try:
            reply: Reply = pending.answer.result(timeout_s)
            return reply
        except FutureTimeout as exc:
            raise RemusError(f"the worker of {self._vm} did not answer `{op}` within {timeout_s:g} s") from exc

    def stop(self) -> None:
        """Ask the worker to end, leaving its VM as it is; kill it if it does not."""
        channel = self._channel
        if channel is None:
            return
        try:
            channel.send(Stop())
        except OSError:
            pass  # it is ending already
        linger_s = self._timing.linger_s
        if not self._ended.wait(linger_s):
            self._log.warning("worker did not stop within %g s: killed", linger_s)
            self.kill()
            self._ended.wait(linger_s)

    def kill(self) -> None:
        """End the worker at once: the kernel keeps the gate shut, the guard frees QEMU."""
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                self._process.kill()
            elif self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _read(self) -> None:
        channel = self._channel
        if channel is None:
            raise AssertionError("read before spawn")
        try:
            while (line := channel.line()) is not None:
                self._hear(line)
        except ConnectionResetError:
            pass  # it ended with words of ours unread
        except (OSError, BadFrame) as exc:
            self._log.warning("worker's channel: %s", exc)
        except Exception:  # task boundary: the worker must not be left without a reader
            self._log.exception("worker's message failed")
        self._finish(channel)

    def _hear(self, line: bytes) -> None:
        try:
            self._dispatch(read_report(line))
        except BadFrame as exc:
            self._log.warning("the worker is not understood: %s", exc, extra=NOISY)
            with self._lock:
                asked, self._pending = self._pending, deque()
            for pending in asked:  # the line may have been for any of them
                pending.answer.set_exception(exc)

    def _dispatch(self, report: Report) -> None:
        match report:
            case Told(status=status):
                self._events.on_status(self, status)
            case Progress():
                if self._pending:
                    self._pending[0].progress(report)
            case Done():
                if pending := self._asked(report):
                    try:
                        reply = report.value(pending.request)
                    except BadFrame as exc:
                        pending.answer.set_exception(exc)
                        raise
                    if isinstance(pending.request, Start):  # in the order of the lines: no later status is overtaken
                        self._events.on_status(self, reply)
                    pending.answer.set_result(reply)
            case Failed():
                if pending := self._asked(report):
                    pending.answer.set_exception(report.error())

    def _asked(self, answer: Done | Failed) -> _Pending | None:
        """The request that this answers; None: nothing asked for it, as when an earlier daemon did."""
        with self._lock:
            for pending in self._pending:
                if answer.of in ("", pending.request.op()):
                    self._pending.remove(pending)
                    return pending
        self._log.warning("the worker answers what was not asked: %s", answer)
        return None

    def _finish(self, channel: LineChannel) -> None:
        if self._left:
            return
        how = self._reap()
        self._events.on_end(self, how)  # before `_ended`: who waited in `stop` may start the next worker
        with self._lock:
            self._ended.set()
            channel.close()
            left, self._pending = self._pending, deque()
        for pending in left:
            pending.answer.set_exception(RemusError(f"the worker of {self._vm} {how}", hint="its log says more"))

    def _reap(self) -> str:
        process = self._process
        if process is None:
            return self._await_end()
        try:
            code = process.wait(self._timing.linger_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code < 0:
            return f"was killed by {_signal_name(-code)}"
        return "ended" if code == 0 else f"ended with exit code {code}"

    def _await_end(self) -> str:
        """Of a worker that is another daemon's child: how it ended is not told to us."""
        if not select.select([self._pidfd], [], [], self._timing.linger_s)[0]:
            self.kill()
            select.select([self._pidfd], [], [], self._timing.linger_s)
        os.close(self._pidfd)
        self._pidfd = -1
        return "ended"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
