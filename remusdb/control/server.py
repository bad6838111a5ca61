# SPDX-License-Identifier: Apache-2.0
"""A daemon's control socket.

Owns the socket file and a lock beside it. Invariant: at most one live server a path, and no request, however
broken, ends the daemon. One thread a connection, one request a connection.

    new ──start()──▶ listening ──close()──▶ closed
"""

from __future__ import annotations

import grp
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from remusdb import durable
from remusdb.control.codec import Done, Failed, Progress, ProgressFn, Request, Requests
from remusdb.control.lines import LineChannel
from remusdb.errors import BadFrame, NoThread, RefusedForSafety, RemusError, UsageError
from remusdb.quietly import NOISY
from remusdb.safefiles import UCRED, make_folder
from remusdb.threads import spawn, vital

log = logging.getLogger(__name__)

Handler = Callable[[Any, ProgressFn], object]  # of a request, to its reply

MAX_REQUEST_BYTES = 64 << 10
MAX_CONNECTIONS = 64
REQUEST_TIMEOUT_S = 10.0
BUSY_HINT = "try again; if it stays so, something holds connections to the control socket: ss -xp"


class ControlServer:
    """Answers each request with what the handler of its type returns or raises."""

    def __init__(
        self,
        path: Path | str,
        handlers: Mapping[type[Request[Any]], Handler],
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        *,
        group: str = "",
        group_may: Callable[[Request[Any]], bool] = lambda _asked: False,
    ) -> None:
        """`group`, where there is one of this name, may connect besides root, for what `group_may` says."""
        self._request_timeout_s = request_timeout_s
        self._group, self._group_may = group, group_may
        self._path = Path(path)
        self._handlers = handlers
        self._requests = Requests(handlers)
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock_fd = -1
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    def start(self) -> None:
        """Listen. A socket that a dead daemon left is replaced, a live daemon's is refused."""
        try:
            make_folder(self._path.parent)
            self._take_lock()
            self._path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX)
            os.fchmod(self._listener.fileno(), 0o600)  # before bind: the file is never wider, not even for a moment
            self._listener.bind(str(self._path))
            self._admit_group()
            self._listener.listen(16)
        except OSError as exc:
            self.close()
            raise RemusError(f"{self._path}: cannot listen: {exc.strerror or exc}") from exc
        try:
            self._acceptor = vital(self._accept, name="control")
        except NoThread:
            self.close()
            raise

    def _admit_group(self) -> None:
        """Let the group connect. The folder is root's alone, so the name still is our socket."""
        try:
            number = grp.getgrnam(self._group).gr_gid if self._group else None
        except KeyError:
            number = None  # there is no console on this machine
        if number is not None:
            try:
                os.chown(self._path, -1, number)
                os.chmod(self._path, 0o660)
            except OSError as exc:
                log.warning("group %s cannot be let in at %s: %s", self._group, self._path, exc.strerror)

    def close(self) -> None:
        """Stop listening and take the socket file away; running requests are left to end by themselves."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._path.unlink(missing_ok=True)
            try:
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
            except OSError:
                pass
            listener.close()
        if self._acceptor is not None:
            self._acceptor.join(timeout=5)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _take_lock(self) -> None:
        # A lock instead of a try to connect: the kernel drops it with the process, and two daemons that start
        # together cannot both believe that the other's socket is stale.
        fd = durable.take_lock(self._path.with_name(f"{self._path.name}.lock"), 0)
        if fd is None:
            raise RemusError(
                f"{self._path}: another daemon is listening there", hint="one daemon a run directory: stop the other"
            )
        self._lock_fd = fd

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None and self._listener is listener:
            try:
                sock, _ = listener.accept()
            except OSError:
                if self._listener is not None:
                    log.exception("control socket: accept failed", extra=NOISY)
                    threading.Event().wait(0.2)  # out of descriptors: do not spin
                continue
            self._hand_over(sock)

    def _hand_over(self, sock: socket.socket) -> None:
        if not self._slots.acquire(blocking=False):
            return _turn_away(sock, RemusError(f"the daemon has {MAX_CONNECTIONS} requests to answer", hint=BUSY_HINT))
        try:
            spawn(self._serve, sock, name="control-request")
        except NoThread as exc:
            self._slots.release()
            _turn_away(sock, exc)

    def _serve(self, sock: socket.socket) -> None:
        channel = LineChannel(sock, max_line_bytes=MAX_REQUEST_BYTES)
        try:
            sock.settimeout(self._request_timeout_s)
            line = self._line(channel)
            if line is not None:
                _send(channel, self._answer(line, _progress_to(channel), trusted=_is_ours(sock)))
        except OSError as exc:
            log.info("control socket: the client went away: %s", exc, extra=NOISY)
        finally:
            channel.close()
            self._slots.release()

    def _line(self, channel: LineChannel) -> bytes | None:
        try:
            return channel.line()
        except BadFrame as exc:
            channel.send(Failed.by(UsageError(str(exc))))
        except TimeoutError:
            channel.send(Failed.by(UsageError(f"no request within {self._request_timeout_s:g} s")))
        return None

    def _answer(self, line: bytes, progress: ProgressFn, *, trusted: bool) -> Done | Failed:
        op = "?"
        try:
            request = self._requests.read(line)
            op = request.op()
            if not trusted and not self._group_may(request):
                raise RefusedForSafety(f"`{op}` asked so is for root alone", hint="use the command line, as root")
            return Done.by(self._handlers[type(request)](request, progress))
        except RemusError as exc:
            log.info("control request `%s`: %s", op, exc, extra=NOISY)
            return Failed.by(exc)
        except Exception as exc:  # task boundary: the daemon outlives any request
            log.exception("control request `%s` failed", op)
            return Failed.by(RemusError(f"the daemon failed: {type(exc).__name__}: {exc}"))


def _is_ours(sock: socket.socket) -> bool:
    """Whether root, or the user whose daemon this is, is at the other end: by the kernel's word."""
    told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    _pid, user, _group = UCRED.unpack(told)
    return user in (0, os.geteuid())


def _send(channel: LineChannel, answer: Done | Failed) -> None:
    try:
        channel.send(answer)
    except BadFrame as exc:
        log.error("control socket: %s", exc)
        channel.send(Failed.by(RemusError(str(exc), hint="ask for one VM only: remusdb status VM")))


def _turn_away(sock: socket.socket, why: RemusError) -> None:
    """Say why, and wait for nobody: a few bytes always have room in a new connection."""
    log.warning("control socket: a request is not taken: %s", why, extra=NOISY)
    channel = LineChannel(sock)
    try:
        sock.setblocking(False)
        channel.send(Failed.by(why))
    except OSError:
        pass  # it went away
    finally:
        channel.close()


def _progress_to(channel: LineChannel) -> ProgressFn:
    """Progress to a client that may hang up: what it asked for goes on without it."""
    gone = False

    def send(progress: Progress) -> None:
        nonlocal gone
        if not gone:
            try:
                channel.send(progress)
            except (OSError, BadFrame):
                gone = True

    return send
