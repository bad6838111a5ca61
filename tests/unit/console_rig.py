# SPDX-License-Identifier: Apache-2.0
"""A console before control sockets that the real server code serves, with whatever statuses a test puts there."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from remusdb.console.config import Console
from remusdb.console.serve import Served
from remusdb.control import ControlServer, ProgressFn
from remusdb.control.api import (
    AgentStatus,
    AgentVms,
    HostStatus,
    HostVms,
    PastOf,
    Protect,
    Rehearse,
    Switched,
    Switchover,
)
from remusdb.control.codec import Progress, Request
from remusdb.control.server import Handler
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.history import Event, VmEvents
from remusdb.reasons import Code, Reason
from remusdb.wording import words

TOKEN = "a-token-that-nobody-guesses-42"
FOLLOWS = Reason.of(Code.FOLLOWING, peer="beta")
GOOD = VmStatus(
    vm="db1", state="protected", peer="beta", owner="alpha", wanted=True, term=3, epoch=81_240, committed=81_236,
    why=FOLLOWS, reason=words(FOLLOWS), committed_age_ms=61.2, epoch_mode="fixed", epoch_ms=50, epochs_per_s=19.4,
    epochs_for={"clock": 100}, commit_ms_p50=31.0, commit_ms_p99=74.5, window=4, in_flight=1, pause_ms_p50=2.6,
    pause_ms_p99=5.9, pause_share=0.052, stages_ms={"stop": 0.4, "encode": 6.1, "ack": 12.0}, bytes_per_epoch=412_000.0,
    bytes_per_s=7_990_000.0, dirty_pages=640.0, proven_at_ns=1_795_000_000 * 10**9, proven_epoch=1, proven_ms=900.0,
    held_frames=3, held_bytes=4200, dropped_frames=7, clock_lag_ms=1.5, gate="tap", encoding="delta", accel="kvm",
)  # fmt: skip
KEPT = StandbyStatus(
    vm="reporting", state="ready", peer="beta", owner="beta", term=9, committed=4711, applied=4709,
    primary_silence_ms=40, silence_limit_ms=500, proven_at_ns=1_795_000_000 * 10**9, proven_epoch=1, proven_ms=700.0,
)  # fmt: skip


@dataclass
class Site:
    """Both daemons' sockets, and what they say."""

    run_dir: Path
    own: list[VmStatus] = field(default_factory=lambda: [GOOD])
    kept: list[StandbyStatus] = field(default_factory=lambda: [KEPT])
    events: list[Event] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)  # actions that came
    go_on: threading.Event = field(default_factory=threading.Event)  # an action waits for it
    servers: dict[str, ControlServer] = field(default_factory=dict)

    def start(self) -> None:
        past: dict[type[Request[Any]], Handler] = {
            PastOf: lambda asked, _progress: VmEvents(vm=asked.vm, events=[*self.events])
        }
        host: dict[type[Request[Any]], Handler] = {
            HostStatus: lambda _asked, _progress: HostVms(vms=self.own),
            Switchover: self._switchover, Protect: self._note, **past,
        }  # fmt: skip
        agent: dict[type[Request[Any]], Handler] = {
            AgentStatus: lambda _asked, _progress: AgentVms(vms=self.kept),
            Rehearse: self._note,
            **past,
        }
        for name, handlers in (("host", host), ("agent", agent)):
            self.servers[name] = ControlServer(self.run_dir / f"{name}.sock", handlers)
            self.servers[name].start()

    def stop(self, *daemons: str) -> None:
        for name in daemons or tuple(self.servers):
            self.servers.pop(name).close()

    def say(self, **changes: Any) -> None:
        """Change what the host daemon says of the first VM."""
        self.own = [replace(self.own[0], **changes), *self.own[1:]]

    def _note(self, asked: Any, _progress: ProgressFn) -> object:
        self.asked.append(asked)
        return self.own[0]

    def _switchover(self, asked: Switchover, progress: ProgressFn) -> Switched:
        self.asked.append(asked)
        progress(Progress(step="the last epoch is sent", done=1, total=2, unit="epochs"))
        assert self.go_on.wait(30)
        return Switched(to="beta", term=4, took_ms=412.0)


@dataclass
class Browser:
    """Asks the console, as little as a browser does of itself."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> tuple[int, str]:
        """Status and text."""
        status, text, _ = self.whole(path, method, body, **headers)
        return status, text

    def whole(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """With the headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            named = {key.replace("_", "-"): value for key, value in {**self.headers, **headers}.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.getheaders()}


@contextlib.contextmanager
def console(run_dir: Path, token: str | None = None, **settings: Any) -> Iterator[Browser]:
    """A console on a free port, running."""
    if token is not None:
        file = run_dir / "token"
        file.write_text(token)
        file.chmod(0o600)
        settings["token_file"] = file
    served = Served(Console(port=settings.pop("port", 0) or free_port(), run_dir=run_dir, **settings))
    thread = threading.Thread(target=served.run, name="console")
    thread.start()
    try:
        while not served.server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Browser(served.listener.getsockname()[1])
    finally:
        served.stop()
        thread.join(30)
        assert not thread.is_alive()


def free_port() -> int:
    """One that nothing listens on now."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
