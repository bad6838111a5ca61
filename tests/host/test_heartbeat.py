# SPDX-License-Identifier: Apache-2.0
"""The heartbeat beside the connection, between two nodes of a lab: the agent is the product's, with a standby that is
made up; the primary is the worker's link to it, and a thread that cuts small epochs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remusdb.config import Protection, Tls
from remusdb.control import call
from remusdb.control.api import AgentStatus
from remusdb.control.status import StandbyStatus
from remusdb.core.messages import Capabilities, Commit, Hello, Welcome, pack
from remusdb.core.probe import Probe
from remusdb.core.wire import FrameType
from remusdb.errors import RemusError
from remusdb.transport.agent_client import Agent
from remusdb.transport.certs import make_ca_and_hosts
from remusdb.transport.datagrams import come_through
from remusdb.transport.stream import FrameStream
from remusdb.worker.agent_link import AgentLink
from remusdb.worker.spec import PeerAddress, ProtectionSpec
from tests.host.netlab import enter
from tests.hostile.sayings import domain_xml, hello
from tests.waiting import eventually
from tools.faults import LinkFault
from tools.lab import Lab
from tools.lab.paths import NETNS

PORT = 7473
CUT_S = 0.3
LEARNED_S = 6.0  # and the agent has learned what this connection is like
EPOCH_S = 0.015  # the stream never rests: then TCP's second try comes late


class Primary:
    """What a worker is to its agent, without a VM."""

    def __init__(self, spec: ProtectionSpec) -> None:
        self._fields = hello("pg", "alpha")
        agent = Agent("beta", spec.peer.address, spec.peer.port, spec.tls, spec.protection)
        greeting = agent.hello(msgspec.convert(self._fields, Hello))
        self._term, self._epoch = greeting.welcome.term, 0
        self._stream: FrameStream | None = greeting.stream
        self._lock = threading.Lock()
        self.fenced = self.over = False
        listener: Any = self
        self.link = AgentLink(spec, self._again, listener, agent)
        self.link.start(greeting)
        self._cutter = threading.Thread(target=self._cut, daemon=True)
        self._cutter.start()

    def close(self) -> None:
        self.over = True
        self._cutter.join()
        self.link.close()

    def _again(self) -> Hello:
        return msgspec.convert({**self._fields, "resume": True, "term": self._term, "epoch": self._epoch}, Hello)

    def _cut(self) -> None:
        while not self.over:
            time.sleep(EPOCH_S)
            with self._lock, contextlib.suppress(RemusError):
                if self._stream is not None:
                    self._epoch += 1
                    self._stream.send(FrameType.COMMIT, self._term, self._epoch, pack(Commit(0, 0, [])))

    # --- what the link tells ---

    def may_be_replaced(self) -> bool:
        return True

    def on_lost(self, _reason: str) -> None:
        with self._lock:
            self._stream = None

    def on_resumed(self, stream: FrameStream, welcome: Welcome) -> None:
        with self._lock:
            self._stream, self._epoch = stream, welcome.committed

    def on_fenced(self, _term: int, _reason: str) -> None:
        self.fenced = True

    def __getattr__(self, name: str) -> Callable[..., None]:
        assert name.startswith("on_"), name
        return lambda *_args: None


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def beta(lab: Lab, tmp_path: Path) -> Iterator[Callable[[], StandbyStatus]]:
    """The agent on host `b`, and how it is asked; this thread is on host `a`."""
    host = lab.host("b")
    make_ca_and_hosts(tmp_path, {"alpha": [lab.host("a").ip4], "beta": [host.ip4]})
    tls = "".join(f'{name} = "{tmp_path}/beta/{name}.pem"\n' for name in ("ca", "cert", "key"))
    config = tmp_path / "agent.toml"
    config.write_text(
        f'[agent]\nname = "beta"\nlisten = "{host.ip4}"\nport = {PORT}\nrun_dir = "{tmp_path}/run"\n'
        f'state_dir = "{tmp_path}/state"\nhooks_dir = "{tmp_path}/hooks"\nimage_dir = "{tmp_path}/images"\n'
        f'libvirt_uri = "test:///default"\n[tls]\n{tls}[failover]\nsilence_ms = 500\n[primaries.alpha]\n'
    )
    for folder in ("run", "state", "images"):
        (tmp_path / folder).mkdir()
    agent = host.popen([sys.executable, "-m", "tests.hostile.made_up_agent", str(config)], stdout=subprocess.DEVNULL)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(NETNS / lab.host("a").netns, os.O_RDONLY)

    def told() -> StandbyStatus:
        (found,) = call(tmp_path / "run" / "agent.sock", AgentStatus(), timeout_s=10).vms
        return found

    try:
        eventually((tmp_path / "run" / "agent.sock").exists, 60, "the agent does not start")
        enter(there)
        yield told
    finally:
        enter(before)
        os.close(before)
        os.close(there)
        agent.kill()
        agent.wait()


@pytest.fixture
def primary(lab: Lab, beta: Callable[[], StandbyStatus], tmp_path: Path) -> Iterator[Primary]:
    mine = tmp_path / "alpha"
    tls = Tls(ca=mine / "ca.pem", cert=mine / "cert.pem", key=mine / "key.pem")
    peer = PeerAddress("beta", lab.host("b").ip4, PORT)
    made = Primary(ProtectionSpec("pg", "alpha", "", tmp_path, tmp_path, tmp_path, peer, tls, Protection()))
    yield made
    made.close()


def test_a_link_that_is_gone_for_300_ms_is_no_dead_host(
    lab: Lab, beta: Callable[[], StandbyStatus], primary: Primary
) -> None:
    """TCP's second try comes 0.66 s after the first frame that was lost: later than any silence limit of 0.5 s."""
    longest_ms = []
    for _ in range(3):
        time.sleep(LEARNED_S)
        assert beta().state == "ready" and not primary.fenced
        with LinkFault(lab.host("a")) as fault:
            fault.blink(CUT_S)
            began, silent = time.monotonic(), [0]
            while time.monotonic() < began + 1.0:
                silent.append(beta().primary_silence_ms or 0)
            longest_ms.append(max(silent))
    assert beta().state == "ready" and not primary.fenced
    sys.stderr.write(f"longest silences in ms: {longest_ms}\n")
    committed = beta().committed
    eventually(lambda: beta().committed > committed, 10, "the epochs do not go on")


def test_a_primary_that_stands_still_is_taken_over(
    lab: Lab, beta: Callable[[], StandbyStatus], primary: Primary
) -> None:
    """Both signs of life are one process's: where it stops, the datagrams do as well."""
    time.sleep(LEARNED_S)
    eventually(lambda: beta().heartbeat == "datagrams", 30, "no datagram is heard")
    eventually(lambda: primary.link.datagrams, 30, "none is answered")
    primary.link.pause()
    primary.over = True
    eventually(lambda: beta().state == "promoted", 10, "nobody took over")


def check_says(lab: Lab, tmp_path: Path) -> bool:
    """What `check --to` finds out of datagrams."""
    mine, at = tmp_path / "alpha", lab.host("b").ip4
    tls = Tls(ca=mine / "ca.pem", cert=mine / "cert.pem", key=mine / "key.pem")
    found = Agent("beta", at, PORT, tls, Protection()).probe(Probe(domain_xml("pg")))
    assert isinstance(found, Capabilities) and found.answer is not None and found.answer.datagrams is not None
    return come_through(found.answer.datagrams, at, PORT)


def test_where_no_datagram_comes_through_the_connection_is_heard_alone_as_before(
    lab: Lab, beta: Callable[[], StandbyStatus], primary: Primary, tmp_path: Path
) -> None:
    assert check_says(lab, tmp_path)
    rules = f"table inet t {{ chain i {{ type filter hook input priority 0; udp dport {PORT} drop; }}; }}"
    lab.host("b").run(["nft", rules])
    assert not check_says(lab, tmp_path)
    time.sleep(LEARNED_S)
    heard = beta()
    assert (heard.state, heard.heartbeat) == ("ready", "connection"), heard
    assert heard.silence_limit_ms is not None and heard.silence_limit_ms >= 420, "as if there were datagrams"
    eventually(lambda: not primary.link.datagrams, 5, "answers come through a firewall")
    primary.link.pause()
    primary.over = True
    eventually(lambda: beta().state == "promoted", 10, "nobody took over")
