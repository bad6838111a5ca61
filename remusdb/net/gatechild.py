# SPDX-License-Identifier: Apache-2.0
"""The worker's end of one gate process: starts it, asks it, ends it.

Owns the child and its control socket. Invariant: any failure of the process, however it dies, becomes a
GateError in the next call; nothing is retried, since the frames it held are gone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys

from remusdb.core.release.settings import ReleaseSettings
from remusdb.errors import GateError
from remusdb.net.gatewire import MESSAGE_MAX_BYTES, Op, Reply, Request, Status

_START_TIMEOUT_S = 10.0
_REPLY_TIMEOUT_S = 5.0
_FLUSH_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 2.0
_DIED = "its frames stay held and nothing leaves; protect the VM again, or end it with `remusdb unprotect`"


class GateChild:
    """One running gate process. Takes `tap_fd` and `sender` over: this process keeps neither."""

    def __init__(
        self,
        tap: str,
        tap_fd: int,
        sender: socket.socket,
        max_bytes: int,
        *,
        closed: bool,
        release: ReleaseSettings | None = None,
        bell_fd: int | None = None,
    ) -> None:
        """`release`: what may go early, None for nothing. `bell_fd`: an eventfd, rung when a frame waits."""
        self._tap = tap
        self._sequence = itertools.count(1)
        self._asked = 0
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = {"--control-fd": theirs.fileno(), "--tap-fd": tap_fd, "--sender-fd": sender.fileno()}
        command = [sys.executable, "-P", "-m", "remusdb.net.tapgate_process", "--max-bytes", str(max_bytes)]
        if release is not None:
            command += ["--release", release.pack()]
        if bell_fd is not None:
            fds["--bell-fd"] = bell_fd
        for option, fd in fds.items():
            command += [option, str(fd)]
        try:
            self._process = subprocess.Popen(
                command + ["--closed"] * closed,
                pass_fds=tuple(fds.values()),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        except OSError as error:
            self._control.close()
            raise GateError(f"the gate process of {tap} cannot be started: {error}") from error
        finally:
            theirs.close()
            sender.close()
            os.close(tap_fd)
        try:
            self._wait(0, _START_TIMEOUT_S)
        except GateError:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def begin(self, op: Op, epoch: int = 0, early_until: float = 0.0) -> None:
        """Send a request; `finish` waits for its answer."""
        self._asked = next(self._sequence)
        try:
            self._control.send(Request(op, self._asked, epoch, early_until).pack())
        except OSError as error:
            raise self._dead() from error

    def finish(self, timeout_s: float = _REPLY_TIMEOUT_S) -> Reply:
        """The answer to the last request."""
        reply = self._wait(self._asked, timeout_s)
        if reply.status is Status.EPOCH_ORDER:
            raise GateError(f"the gate of {self._tap} was asked to mark an epoch that is not above the last")
        return reply

    def ask(self, op: Op, epoch: int = 0, early_until: float = 0.0) -> Reply:
        """Request and answer."""
        self.begin(op, epoch, early_until)
        return self.finish(_FLUSH_TIMEOUT_S if op is Op.FLUSH else _REPLY_TIMEOUT_S)

    def end(self) -> None:
        """Let the process end, by force if need be; it sends nothing more."""
        self._control.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_TIMEOUT_S)

    def _wait(self, sequence: int, timeout_s: float) -> Reply:
        self._control.settimeout(timeout_s)
        try:
            while data := self._control.recv(MESSAGE_MAX_BYTES):
                reply = Reply.unpack(data)
                if reply.sequence == sequence:
                    return reply
        except TimeoutError as error:
            raise GateError(f"the gate process of {self._tap} did not answer in {timeout_s} s", hint=_DIED) from error
        except OSError as error:
            raise self._dead() from error
        raise self._dead()

    def _dead(self) -> GateError:
        return GateError(f"the gate process of {self._tap} died", hint=_DIED)
