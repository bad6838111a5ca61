# SPDX-License-Identifier: Apache-2.0
"""Floods of strangers on a listener in a process of its own: a peer with a certificate still gets in, at once, and what
the flood costs (sockets, threads, memory, lines of log) is bounded and given back."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from remusdb.core.wire import FrameType
from remusdb.transport.listener import MOST_EACH, MOST_WAITING
from remusdb.transport.tls import client_context, connect
from tests.waiting import eventually

log = logging.getLogger(__name__)

WITHIN_S = 30.0
SOON_S = 15.0  # half a second on a machine that does nothing else; who is kept out waits for ever
RSS_MAX_BYTES = 64 << 20  # TLS of 256 connections that have begun it takes 25 MiB; the rest is slack
LOG_BYTES_S = 6_000  # three kinds, each with four lines a second

SERVER = """
import sys
from pathlib import Path
from remusdb.log import setup
from remusdb.transport.listener import Listener
from remusdb.transport.tls import server_context
setup()
folder = Path(sys.argv[1])
listener = Listener("127.0.0.1", 0, server_context(folder / "ca.pem", folder / "cert.pem", folder / "key.pem"))
listener.start(lambda stream: stream.receive(60))
print(listener.port, flush=True)
sys.stdin.read()
"""


class Server:
    """A listener, and what it costs."""

    def __init__(self, certs: Path, log: Path) -> None:
        self._certs, self.log = certs, log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(certs / "beta")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.cost = psutil.Process(self._process.pid)
        self.threads = self.cost.num_threads()
        self._begun = time.monotonic()
        self.good()
        eventually(lambda: self.cost.num_threads() == self.threads)
        self.files, self.rss = self.cost.num_fds(), self.cost.memory_info().rss

    def good(self) -> float:
        """Let a peer with a certificate in, at its first try; the seconds it took."""
        context = client_context(*(self._certs / "alpha" / name for name in ("ca.pem", "cert.pem", "key.pem")))
        begun = time.monotonic()
        stream = connect("127.0.0.1", self.port, context, "beta", WITHIN_S)
        took = time.monotonic() - begun
        stream.send(FrameType.HEARTBEAT, 1, 0)
        stream.close()
        return took

    def quiet(self) -> bool:
        """Whether the log is no longer than so long a flood may make it."""
        return self.log.stat().st_size < LOG_BYTES_S * (1 + time.monotonic() - self._begun)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def server(certs: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(certs, tmp_path / "log")
    yield server
    server.stop()


def stranger(server: Server, source: str, says: bytes = b"") -> socket.socket:
    sock = socket.socket()
    sock.settimeout(WITHIN_S)
    sock.bind((source, 0))
    sock.connect(("127.0.0.1", server.port))
    with contextlib.suppress(OSError):  # dropped already
        sock.sendall(says)
    return sock


CLIENT_HELLO_BEGUN = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # of 512 bytes, the rest never comes


@pytest.mark.parametrize("says", [b"", CLIENT_HELLO_BEGUN], ids=["silent", "begun"])
@pytest.mark.parametrize("sources", [1, 40])
def test_half_open_connections_keep_nobody_out(server: Server, sources: int, says: bytes) -> None:
    idle = [stranger(server, f"127.0.1.{number % sources + 1}", says) for number in range(2000)]
    took = [server.good() for _ in range(5)]
    log.info("%d sources: a good peer is in after %.0f ms at most", sources, max(took) * 1000)
    assert max(took) < SOON_S
    assert server.cost.num_fds() <= server.files + MOST_WAITING + 6
    assert server.cost.num_fds() <= server.files + MOST_EACH * sources + 6
    assert server.cost.num_threads() <= server.threads + len(took)
    assert server.cost.memory_info().rss < server.rss + RSS_MAX_BYTES
    for sock in idle:
        sock.close()
    eventually(lambda: server.cost.num_fds() == server.files)
    assert server.quiet()


def test_those_that_come_again_at_once_keep_nobody_out(server: Server) -> None:
    over = threading.Event()
    made = [0, 0]

    def flood(which: int) -> None:
        mine: list[socket.socket] = []
        while not over.is_set():
            mine.append(stranger(server, f"127.0.1.{which + 1}", CLIENT_HELLO_BEGUN if which else b""))
            made[which] += 1
            if len(mine) > 100:
                mine.pop(0).close()
        for sock in mine:
            sock.close()

    threads = [threading.Thread(target=flood, args=(which,), daemon=True) for which in (0, 1)]
    for thread in threads:
        thread.start()
    eventually(lambda: min(made) > 500)
    took = [server.good() for _ in range(20)]
    log.info("%d connections meanwhile: a good peer is in after %.0f ms at most", sum(made), max(took) * 1000)
    quiet = server.quiet()
    over.set()
    for thread in threads:
        thread.join(WITHIN_S)
    assert quiet
    eventually(lambda: server.cost.num_fds() == server.files and server.cost.num_threads() == server.threads)


def test_bytes_that_drip_in_buy_no_time(server: Server) -> None:
    begun = time.monotonic()
    slow = [stranger(server, "127.0.1.1", CLIENT_HELLO_BEGUN) for _ in range(MOST_EACH)]
    while slow and time.monotonic() - begun < WITHIN_S:
        assert server.good() < SOON_S
        for sock in list(slow):
            try:
                sock.sendall(b"\x00")
            except OSError:
                sock.close()
                slow.remove(sock)
        time.sleep(0.2)
    assert not slow
    eventually(lambda: server.cost.num_fds() == server.files)


def test_rubbish_costs_its_own_connection(server: Server) -> None:
    for number in range(300):
        stranger(server, "127.0.1.1", (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b"\x00")[number % 3]).close()
    assert server.good() < SOON_S
    eventually(lambda: server.cost.num_fds() == server.files and server.cost.num_threads() == server.threads)
