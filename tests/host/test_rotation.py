# SPDX-License-Identifier: Apache-2.0
"""A CA is replaced by another one without a moment in which the two hosts do not know each other (SECURITY.md)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remusdb.errors import PeerRefused, PeerUnreachable
from remusdb.transport.certs import make_ca_and_hosts
from remusdb.transport.listener import Listener
from remusdb.transport.stream import FrameStream
from remusdb.transport.tls import client_context, connect, server_context

LOOPBACK = "127.0.0.1"
LIMIT_S = 20.0


class Hosts:
    """alpha, a primary, and beta, its backup, each with a TLS folder; two CAs made one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._old, self._new = folder / "tls", folder / "tls2"
        for out in (self._old, self._new):
            make_ca_and_hosts(out, {"alpha": [LOOPBACK], "beta": [LOOPBACK]})
        for name in ("alpha", "beta"):
            shutil.copytree(self._old / name, self._tls(name))

    def _tls(self, name: str) -> Path:
        return self._folder / "etc" / name

    def _files(self, name: str) -> tuple[Path, Path, Path]:
        return self._tls(name) / "ca.pem", self._tls(name) / "cert.pem", self._tls(name) / "key.pem"

    def trust_both(self, name: str) -> None:
        """Append the new CA."""
        with (self._tls(name) / "ca.pem").open("a") as file:
            file.write((self._new / name / "ca.pem").read_text())

    def show_new(self, name: str) -> None:
        """Put the new certificate and key there."""
        for file in ("cert.pem", "key.pem"):
            shutil.copy(self._new / name / file, self._tls(name) / file)

    def trust_new_alone(self, name: str) -> None:
        """Leave the new CA alone."""
        shutil.copy(self._new / name / "ca.pem", self._tls(name) / "ca.pem")

    @contextmanager
    def agent(self) -> Iterator[int]:
        """beta's agent, started now, on this port."""
        over = threading.Event()
        listener = Listener(LOOPBACK, 0, server_context(*self._files("beta")))

        def session(_stream: FrameStream) -> None:
            over.wait(LIMIT_S)

        listener.start(session)
        try:
            yield listener.port
        finally:
            over.set()
            listener.close()

    def connects(self, tls: Path | None = None) -> bool:
        """Whether alpha, with the files it has now (or those of `tls`), is let in, and believes that it is beta."""
        files = self._files("alpha") if tls is None else (tls / "ca.pem", tls / "cert.pem", tls / "key.pem")
        with self.agent() as port:
            try:
                connect(LOOPBACK, port, client_context(*files), "beta", LIMIT_S).close()
            except (PeerRefused, PeerUnreachable):
                return False
        return True


@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_a_new_ca_without_an_outage(tmp_path: Path, first: str) -> None:
    hosts = Hosts(tmp_path)
    second = "beta" if first == "alpha" else "alpha"
    stolen = tmp_path / "stolen"
    shutil.copytree(tmp_path / "etc" / "alpha", stolen)
    assert hosts.connects() and hosts.connects(stolen)
    for step in (hosts.trust_both, hosts.show_new, hosts.trust_new_alone):
        for name in (first, second):
            step(name)
            assert hosts.connects(), f"cut off after {step.__name__} of {name}"
    assert not hosts.connects(stolen), "the lost host's key still opens the door"
