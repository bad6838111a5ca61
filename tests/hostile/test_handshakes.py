# SPDX-License-Identifier: Apache-2.0
"""Many connections of whoever has no certificate: the honest are let in, and neither memory nor the log grows."""

from __future__ import annotations

import collections
import contextlib
import itertools
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from remusdb.errors import RemusError
from tests.hostile.measure import MIB
from tests.hostile.rig import AGENT, NET, SOURCES, Caller, Rig, eventually
from tests.hostile.sayings import hello

CLIENT_HELLO = b"\x16\x03\x01"  # the beginning of one
# The promise is 1 s on a machine of its own; here two noisy cores are shared, and the unloaded time is told beside it.
CONNECT_S = 5.0


def sockets(agent: Rig, count: int, source: str, data: bytes) -> list[socket.socket]:
    """So many connections that get no further; fewer where they are refused."""
    made = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            sock = socket.create_connection((AGENT, agent.port), 2, source_address=(source, 0))
            made.append(sock)
            sock.sendall(data)
    return made


@contextlib.contextmanager
def going_on(work: Callable[[], None], threads: int = 1) -> Iterator[None]:
    """Threads that do this over and over."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, RemusError):
                work()

    started = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in started:
            thread.join(20)


def connect_s(agent: Rig, who: str = "gamma") -> float:
    """How long an honest peer takes to be let in."""
    began = time.monotonic()
    Caller(agent.certs / who, agent.port, SOURCES[who]).close()
    return time.monotonic() - began


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many descriptors as a flood needs."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("data", [b"", CLIENT_HELLO], ids=["silent", "three-bytes"])
def test_half_open_connections_of_one_source(agent: Rig, many_files: None, data: bytes) -> None:
    unloaded = connect_s(agent)
    held: list[socket.socket] = []
    with agent.unchanged(peak=256 * MIB):
        try:
            held = sockets(agent, 2000, f"{NET}.66", data)
            loaded = [connect_s(agent) for _ in range(5)]
        finally:
            for sock in held:
                sock.close()
    print(f"\n{len(held)} half-open: let in after {max(loaded):.3f} s, {unloaded:.3f} s without them")  # noqa: T201
    assert max(loaded) < CONNECT_S


@pytest.mark.parametrize("sources", [1, 40])
def test_half_open_connections_that_come_back(agent: Rig, many_files: None, sources: int) -> None:
    unloaded = connect_s(agent)
    turn, kept = itertools.count(), collections.deque[socket.socket]()

    def again() -> None:
        number = next(turn)
        source = f"{NET}.{100 + number % sources}"
        kept.append(socket.create_connection((AGENT, agent.port), 2, source_address=(source, 0)))
        kept[-1].sendall(CLIENT_HELLO)
        if len(kept) > 400:
            kept.popleft().close()

    with agent.unchanged(peak=256 * MIB):
        with going_on(again, 2):
            eventually(lambda: next(turn) > 100, "no flood", 30)
            loaded = [connect_s(agent) for _ in range(10)]
        for sock in kept:
            sock.close()
    print(f"\n{sources} sources: let in after {max(loaded):.3f} s, {unloaded:.3f} s without them")  # noqa: T201
    assert statistics.median(loaded) < CONNECT_S  # the flood is made by this process: one try may wait for its own turn


def test_the_log_of_a_flood(agent: Rig) -> None:
    """One line a second and kind, not one a connection; what is real is still there."""
    before, began, count = len(agent.told()), time.monotonic(), 0
    while count < 3000 and time.monotonic() - began < 15:
        with contextlib.suppress(OSError), socket.create_connection((AGENT, agent.port), 2) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            count += 1
    agent.refused(hello("a-real-message", "gamma", domain_xml="<domain"), "gamma")
    took = time.monotonic() - began
    eventually(lambda: "a-real-message" in agent.told(), "the refusal is not in the log")
    grown = len(agent.told()) - before
    assert grown < 4096 + 1024 * took, f"{grown} bytes of log in {took:.1f} s, {count} connections"
