# SPDX-License-Identifier: Apache-2.0
"""An etcd with one member, on a node of the lab or on this machine's loopback.

etcd = Etcd(lab.witness, lab.folder)
etcd.start()
... etcd.url ...
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from remusdb.deadline import Deadline
from tools.lab.links import socket_in
from tools.lab.node import Node

_OK = b"HTTP/1.1 200 "


class Etcd:
    """Owns one etcd process and, in `folder`, its data and its log; both outlive the process.

    `url` is where clients find it. With a node it ends with the lab; without one, `stop` or `kill` it.
    """

    def __init__(
        self, node: Node | None, folder: Path, port: int = 2379, settings: Mapping[str, str] | None = None
    ) -> None:
        """`node` None: on loopback. There `port` and the one after it must be free. `settings` are etcd's own."""
        self._node = node
        self._port = port
        self._address = node.ip4 if node else "127.0.0.1"
        self._data = folder / "etcd"
        self._log = folder / "etcd.log"
        self._settings = settings or {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The endpoint for `[arbiter] endpoints`."""
        return f"http://{self._address}:{self._port}"

    def start(self, timeout_s: float = 20.0) -> None:
        """Starts it, with the data it had, and returns when it answers. RuntimeError with its log if it does not."""
        assert self._process is None, "it runs"
        peers = f"http://127.0.0.1:{self._port + 1}"
        settings = {
            "name": "witness",
            "data-dir": str(self._data),
            "listen-client-urls": self.url,
            "advertise-client-urls": self.url,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"witness={peers}",
            "heartbeat-interval": "20",
            "election-timeout": "200",  # it has nobody to wait for
            "logger": "zap",
            "log-level": "warn",
            **self._settings,
        }
        command = ["etcd", *(f"--{key}={value}" for key, value in settings.items())]
        if self._node:
            self._process = self._node.popen(command, log=self._log)
        else:
            with self._log.open("a") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, start_new_session=True
                )
        deadline = Deadline.after(timeout_s)
        while not self._healthy():
            if self._process.poll() is not None or deadline.over:
                self.kill()
                raise RuntimeError(f"etcd did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it in good order. No error if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once. No error if it does not run."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP, and waits until it holds: the kernel still takes connections, nobody answers."""
        self._signal(signal.SIGSTOP)
        while not self._stopped():
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGCONT)  # one that is stopped does not hear a SIGTERM
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _signal(self, signum: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(signum)

    def _stopped(self) -> bool:
        """Whether all threads are: those that run when the signal comes may go on for a moment."""
        assert self._process is not None, "it does not run"
        states = [
            path.read_text().rpartition(")")[2].split()[0]
            for path in Path(f"/proc/{self._process.pid}/task").glob("*/stat")
        ]
        return all(state in "TtZX" for state in states)

    def _healthy(self) -> bool:
        """Whether it takes writes: it has elected itself. Asked from its own network, whatever is cut outside."""
        kind = socket.SOCK_STREAM
        with socket_in(self._node.netns, kind=kind) if self._node else socket.socket(type=kind) as sock:
            sock.settimeout(1)
            try:
                sock.connect((self._address, self._port))
                sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                answer = sock.recv(1000)
            except OSError:
                return False
        return answer.startswith((_OK, _OK.replace(b"1.1", b"1.0")))
