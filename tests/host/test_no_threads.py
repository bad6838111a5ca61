# SPDX-License-Identifier: Apache-2.0
"""A real limit of threads (a cgroup's pids.max): listener and control socket say so, and serve again without it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.control import call
from remusdb.control.api import Prepare
from remusdb.core.wire import FrameType
from remusdb.errors import NoThread, PeerUnreachable, RemusError
from remusdb.names import VmName
from remusdb.transport.tls import client_context, connect
from tests.waiting import eventually

WITHIN_S = 60.0
ASKED = Prepare(vm=VmName("db1"))
CGROUPS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))

SERVER = """
import sys
from pathlib import Path
from remusdb.control import ControlServer
from remusdb.control.api import Prepare, Prepared
from remusdb.log import setup
from remusdb.transport.listener import Listener
from remusdb.transport.tls import server_context
setup()
folder, sock = Path(sys.argv[1]), Path(sys.argv[2])
listener = Listener("127.0.0.1", 0, server_context(folder / "ca.pem", folder / "cert.pem", folder / "key.pem"))
listener.start(lambda stream: stream.receive(60))
control = ControlServer(sock, {Prepare: lambda asked, _progress: Prepared(changes=[asked.vm])})
control.start()
print(listener.port, flush=True)
sys.stdin.read()
"""


class Limit:
    """How many tasks a process may have."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._folder = self._made()
        (self._folder / "cgroup.procs").write_text(str(pid))

    def _made(self) -> Path:
        for base in CGROUPS:
            folder = base / f"remusdb-test-{self._pid}"
            try:
                folder.mkdir()
            except OSError:
                continue
            if (folder / "pids.max").exists():
                return folder
            folder.rmdir()
        raise AssertionError("no cgroup with pids.max can be made here: root and the pids controller are needed")

    def set(self, most: int | None) -> None:
        (self._folder / "pids.max").write_text("max" if most is None else str(most))

    def remove(self) -> None:
        until = time.monotonic() + WITHIN_S
        while True:
            try:
                return self._folder.rmdir()
            except OSError:  # the process is not quite gone
                assert time.monotonic() < until
                time.sleep(0.05)


@pytest.fixture
def server(certs: Path, tmp_path: Path) -> Iterator[tuple[int, Limit]]:
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(certs / "beta"), str(tmp_path / "host.sock")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    assert process.stdout is not None
    port = int(process.stdout.readline())
    limit = Limit(process.pid)
    yield port, limit
    assert process.poll() is None, "it lived all the time"
    process.kill()
    process.communicate()
    limit.remove()


def test_a_limit_of_threads_makes_nobody_deaf(server: tuple[int, Limit], certs: Path, tmp_path: Path) -> None:
    port, limit = server
    context = client_context(*(certs / "alpha" / name for name in ("ca.pem", "cert.pem", "key.pem")))

    def dial() -> None:
        stream = connect("127.0.0.1", port, context, "beta", WITHIN_S)
        stream.send(FrameType.HEARTBEAT, 1, 0)
        stream.close()

    def asked() -> bool:
        try:
            return call(tmp_path / "host.sock", ASKED, timeout_s=WITHIN_S).changes == ["db1"]
        except RemusError:
            return False

    dial()
    assert asked()
    limit.set(1)
    for _ in range(3):
        with pytest.raises(PeerUnreachable):
            dial()
        with pytest.raises(NoThread, match="control-request"):
            call(tmp_path / "host.sock", ASKED, timeout_s=WITHIN_S)
    assert "E-THREADS" not in (tmp_path / "log").read_text()  # it says it in words
    assert "can't start new thread; see TasksMax" in (tmp_path / "log").read_text()
    limit.set(None)
    dial()
    eventually(asked)
