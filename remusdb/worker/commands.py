# SPDX-License-Identifier: Apache-2.0
"""The worker process of one VM: takes commands from the host daemon (`spec.py` has their types) and runs the session.

`python -P -m remusdb.worker FD SOCKET`. The first line is `start`; `unprotect`, `switchover` and `stop` may
follow. A daemon that dies is not missed: protection goes on, and the next daemon finds the worker on SOCKET. A worker
whose session is over ends when nobody listens any more.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remusdb import native
from remusdb.control.api import Switched
from remusdb.control.codec import Done, Failed, Nothing, Progress, Request
from remusdb.control.lines import LineChannel
from remusdb.control.status import VmStatus
from remusdb.errors import BadFrame, NoThread, RemusError, UsageError
from remusdb.history import History
from remusdb.hooks import Hooks
from remusdb.log import about, setup
from remusdb.state import StateStore
from remusdb.threads import spawn
from remusdb.worker.memory_copy import Progress as Progressed
from remusdb.worker.session import Session
from remusdb.worker.spec import COMMANDS, End, Move, ProtectionSpec, Report, Start, Stop, Told

log = logging.getLogger(__name__)

STATUS_S = 0.2
FLUSH_S = 2.0
SWITCH_INTERVAL_S = 0.0005  # the cut must not wait 5 ms (Python's default) for the thread that encodes


class Channel:
    """The socket to the daemon, or to the daemon after it: lines out from any thread, lines in from one."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        path.unlink(missing_ok=True)  # of a worker that was killed; the daemon's lock says that there is no other
        self._listener = socket.socket(socket.AF_UNIX)
        os.fchmod(self._listener.fileno(), 0o600)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._path = path
        self._lines: LineChannel | None = LineChannel(sock)
        self._daemon = 1
        self._lock = threading.Lock()

    @property
    def daemon(self) -> int:
        """Which daemon this is about: the first, the second ..."""
        return self._daemon

    def tell(self, report: Report, *, only_to: int | None = None) -> None:
        """Send one line; without a daemon it is lost: the next one asks again. `only_to`: an answer to that daemon."""
        with self._lock:
            try:
                if self._lines is not None and only_to in (None, self._daemon):
                    self._lines.send(report)
            except OSError:
                self._lines = None

    def read(self, serve: Callable[[Request[Any]], bool]) -> None:
        """Hand every command of this daemon to `serve`, until it hangs up or `serve` returns False.

        A line that is not a command is answered by an error; where no further line can be read, this side hangs up.
        """
        lines = self._lines
        while lines is not None and not lines.broken:
            try:
                line = lines.line()
                if line is None:
                    break
                if not serve(COMMANDS.read(line)):
                    return
            except (BadFrame, UsageError) as exc:
                log.warning("the daemon's channel: %s", exc)
                self.tell(Failed.by(exc))
            except OSError as exc:
                log.warning("the daemon's channel: %s", exc)
                break
        with self._lock:
            if lines is not None:
                lines.close()
            self._lines = None

    def next_daemon(self, timeout_s: float) -> bool:
        """Wait for a daemon to connect."""
        self._listener.settimeout(timeout_s)
        try:
            sock, _ = self._listener.accept()
        except TimeoutError:
            return False
        sock.settimeout(None)
        with self._lock:
            self._lines, self._daemon = LineChannel(sock), self._daemon + 1
        return True

    def close(self) -> None:
        """Hang up; nobody can find this worker any more."""
        self._path.unlink(missing_ok=True)
        self._listener.close()
        with self._lock:
            if self._lines is not None:
                self._lines.close()
            self._lines = None


class Worker:
    """Commands in, session, reports out."""

    def __init__(
        self,
        channel: Channel,
        new_session: Callable[[ProtectionSpec, StateStore, History, Progressed], Session] = Session,
    ) -> None:
        self._channel = channel
        self._new_session = new_session
        self._session: Session | None = None
        self._made = threading.Event()  # no session is being made just now
        self._made.set()
        self._history: History | None = None
        self._lock = threading.Lock()
        self._commands = 0
        self._told_to_stop = False

    def run(self) -> None:
        """Serve commands until a daemon says stop, or the session is over and no daemon is there."""
        self._channel.read(self.take)
        while not self._told_to_stop and not self._idle():
            if self._channel.next_daemon(STATUS_S):
                log.info("another daemon took over")
                self._report()
                self._channel.read(self.take)
        self._channel.close()
        if self._history is not None:
            self._history.flush(FLUSH_S)
        # Not a clean interpreter exit: threads may hang in libvirt, and the kernel closes everything.
        os._exit(0)

    def _idle(self) -> bool:
        session = self._session
        return self._commands == 0 and (session is None or session.ended.is_set())

    def take(self, command: Request[Any]) -> bool:
        """Begin to carry out a command of the daemon; whether more of them are taken. Its answer is told later."""
        if isinstance(command, Stop):
            self._told_to_stop = True
            return False
        if isinstance(command, Start):
            self._made.clear()  # what comes after it is about that session, however soon
        with self._lock:
            self._commands += 1
        asker = self._channel.daemon
        try:
            spawn(self._serve, command, asker, name=command.op())
        except NoThread as exc:  # the session goes on, and this thread must
            self._made.set()
            with self._lock:
                self._commands -= 1
            self._channel.tell(Failed.by(exc, command.op()), only_to=asker)
        return True

    def _serve(self, command: Request[Any], asker: int) -> None:
        op = command.op()
        try:
            result = self._do(command)
            self._report()
            self._channel.tell(Done.by(result, op), only_to=asker)
        except RemusError as exc:
            self._report()
            self._channel.tell(Failed.by(exc, op), only_to=asker)
        except Exception as exc:  # task boundary
            log.exception("%s failed", op)
            self._channel.tell(Failed.by(RemusError(f"{op}: {type(exc).__name__}: {exc}"), op), only_to=asker)
        finally:
            with self._lock:
                self._commands -= 1

    def _do(self, command: Request[Any]) -> VmStatus | Switched | Nothing:
        if isinstance(command, Start):
            try:
                session = self._begin(command.spec)
            finally:
                self._made.set()
            return self._start(session)
        self._made.wait()
        match command:
            case End(peer_is_dead=dead) if self._session is not None:
                self._session.unprotect(dead)
                return Nothing()
            case End(peer_is_dead=dead, spec=ProtectionSpec() as what):
                self._begin(what).unprotect_orphan(dead)
                return Nothing()
            case Move() if self._session is not None:
                return self._session.switchover()
        raise RemusError(f"`{command.op()}`: there is no session")

    def _start(self, session: Session) -> VmStatus:
        try:
            spawn(self._report_often, name="status")
        except NoThread:
            session.ended.set()  # it never began
            raise
        session.protect()
        return session.status()

    def _begin(self, spec: ProtectionSpec) -> Session:
        self._history = History(spec.state_dir, Hooks(spec.hooks_dir))
        session = self._new_session(spec, StateStore(spec.state_dir), self._history, self._progress)
        about(session.where)
        session.start()
        self._session = session
        return session

    def _progress(self, step: str, done: int, total: int, unit: str) -> None:
        self._channel.tell(Progress(step=step, done=done, total=total, unit=unit))

    def _report(self) -> None:
        if self._session is not None:
            self._channel.tell(Told(status=self._session.status()))

    def _report_often(self) -> None:
        while self._session is not None and not self._session.ended.wait(STATUS_S):
            try:
                self._report()
            except RemusError as exc:
                log.warning("status: %s", exc)
        self._report()  # the last word: how it ended


def main() -> None:
    """Entry of the process."""
    setup()
    if native.kernels is None:
        log.warning("the page kernels in C are not there: numpy does their work, each epoch costs more")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    Worker(Channel(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))).run()
