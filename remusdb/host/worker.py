# SPDX-License-Identifier: Apache-2.0
"""The worker process of one VM: speaks JSON lines with the host daemon and runs the session.

`python -m remusdb.host.worker FD`. The first line is `start`; `unprotect` and `stop` may follow. When the
daemon's end closes, the worker ends at once: the gate stays shut, the guard frees QEMU.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
from typing import Any

import msgspec

from remusdb.errors import RemusError, from_dict
from remusdb.host.order import read_order
from remusdb.host.session import Session
from remusdb.log import setup
from remusdb.vm.kernel import die_with_parent

log = logging.getLogger(__name__)

STATUS_S = 0.2
SWITCH_INTERVAL_S = 0.0005  # the cut must not wait 5 ms (Python's default) for the thread that encodes


class Channel:
    """The socket to the daemon: lines out from any thread, lines in from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")
        self._sock = sock
        self._lock = threading.Lock()
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()

    def tell(self, **message: Any) -> None:
        """Send one line; a daemon that is gone ends this process."""
        try:
            with self._lock:
                self._sock.sendall(msgspec.json.encode(message) + b"\n")
        except OSError:
            os._exit(0)

    def save(self, state: dict[str, Any]) -> None:
        """Have the daemon make `state` durable; returns when it is, raises when it cannot be."""
        self.tell(save=state)
        answer = self._answers.get()
        if not answer["saved"]:
            raise from_dict(answer["error"])

    def next(self) -> dict[str, Any] | None:
        """The next order; None when the daemon is gone."""
        for line in self._file:
            message: dict[str, Any] = msgspec.json.decode(line)
            if "saved" not in message:
                return message
            self._answers.put(message)
        return None


class Worker:
    """Orders in, session, reports out."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._session: Session | None = None

    def run(self) -> None:
        """Serve orders until the daemon says stop or is gone."""
        while (message := self._channel.next()) is not None:
            operation, arguments = message.get("op"), message.get("args", {})
            if operation == "stop":
                break
            threading.Thread(target=self._serve, args=(operation, arguments), name=str(operation), daemon=True).start()
        # Not a clean interpreter exit: threads may hang in libvirt, and the kernel closes everything.
        os._exit(0)

    def _serve(self, operation: str, arguments: dict[str, Any]) -> None:
        try:
            if operation == "start":
                self._start(arguments)
            elif operation == "unprotect" and self._session is not None:
                self._session.unprotect(bool(arguments.get("peer_is_dead")))
            elif operation == "unprotect":
                self._session = Session(read_order(arguments["start"]), self._channel.save, self._progress)
                self._session.take_out(bool(arguments.get("peer_is_dead")))
            else:
                raise RemusError(f"unknown order {operation}")
            self._report()
            self._channel.tell(op=operation, result=self._session.status() if self._session else {})
        except RemusError as exc:
            self._report()
            self._channel.tell(op=operation, error=exc.to_dict())
        except Exception as exc:  # task boundary
            log.exception("%s failed", operation)
            self._channel.tell(op=operation, error=RemusError(f"{operation}: {type(exc).__name__}: {exc}").to_dict())

    def _start(self, arguments: dict[str, Any]) -> None:
        order = read_order(arguments)
        self._session = Session(order, self._channel.save, self._progress)
        threading.Thread(target=self._report_often, name="status", daemon=True).start()
        self._session.protect()

    def _progress(self, step: str, done: int, total: int, unit: str) -> None:
        self._channel.tell(progress={"step": step, "done": done, "total": total, "unit": unit})

    def _report(self) -> None:
        if self._session is not None:
            self._channel.tell(status=self._session.status())

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
    die_with_parent(signal.SIGKILL)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    Worker(Channel(socket.socket(fileno=int(sys.argv[1])))).run()


if __name__ == "__main__":
    main()
