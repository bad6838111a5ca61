# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the hostile tier: a network namespace a file, an agent a test."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.transport.certs import make_ca_and_hosts
from tests.host.netlab import enter, own_namespace
from tests.hostile.rig import AGENT, NAMES, NET, Rig, eventually
from tools.lab import Lab
from tools.lab.paths import NETNS


def pytest_configure(config: pytest.Config) -> None:
    """Floods have sockets by the thousand: one that is left to the collector is no reason to fail."""
    config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A namespace in which every address of NET is its own: a peer has as many sources as it likes."""
    with own_namespace():
        for command in ("ip link set lo up", f"ip route add local {NET}.0/24 dev lo"):
            subprocess.run(command.split(), check=True, timeout=20)
        yield


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One CA and three hosts, by the product's own code; `stranger/` has another CA of the same names."""
    out = tmp_path_factory.mktemp("certs")
    made: dict[str, list[str]] = {name: [AGENT] for name in NAMES}
    make_ca_and_hosts(out, made)
    make_ca_and_hosts(out / "stranger", made)
    return out


@pytest.fixture(scope="session")
def ports() -> Iterator[int]:
    """A port an agent: several of one file share their namespace."""
    return itertools.count(7473)


@pytest.fixture
def rig(network: None, certs: Path, ports: Iterator[int], tmp_path: Path) -> Iterator[Rig]:
    """Folders and certificates of an agent that the test starts; it is ended afterwards."""
    made = Rig(tmp_path, certs, next(ports))
    made.prepare()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared(network: None, certs: Path, ports: Iterator[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """What `agent` gives out."""
    made = Rig(tmp_path_factory.mktemp("shared"), certs, next(ports))
    made.prepare()
    yield made
    made.stop()


@pytest.fixture
def agent(shared: Rig) -> Rig:
    """An agent that began with nothing to remember, for all tests of a file that leave it as it was."""
    if shared.alive():  # what the last test did may take a while to end
        eventually(shared.serves, "the agent is deaf", 30)
    else:
        shared.stop()
        shared.start()
    return shared


@pytest.fixture(scope="module")
def real(certs: Path, ports: Iterator[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """An agent on a host of the lab, with its own libvirtd, and QEMU without KVM; this thread is in its network."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    with Lab() as lab:
        host = lab.host("b")
        host.start_libvirt()
        there = os.open(NETNS / host.netns, os.O_RDONLY)
        made = Rig(tmp_path_factory.mktemp("real"), certs, next(ports), enter=host.enter())
        made.libvirt_uri = "qemu:///system"
        made.prepare()
        try:
            enter(there)
            subprocess.run(f"ip route add local {NET}.0/24 dev lo".split(), check=True, timeout=20)
            made.start()
            yield made
        finally:
            made.stop()
            enter(before)
            os.close(there)
            os.close(before)
