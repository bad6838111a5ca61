# SPDX-License-Identifier: Apache-2.0
"""One real agent process, `beta`, in the caller's network namespace, and the peers that talk to it.

`gamma` is an honest primary, `alpha` a hostile one that holds a certificate as good as gamma's. The agent's libvirt is
the test driver, so no HELLO gets further than to the start of its standby, unless the standby is made up
(`made_up_agent`), or there is a real libvirtd (the fixture `real`). The host daemon of beta is a stub that notes what
it is asked to fence.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remusdb.control import ControlServer, call
from remusdb.control.api import AgentStatus, Fence
from remusdb.control.codec import Nothing, plain
from remusdb.core.messages import Commit, Notice, Refuse, Standing, Welcome, pack, unpack
from remusdb.core.wire import Frame, FrameType
from remusdb.deadline import Deadline, poll_until
from remusdb.errors import RemusError
from remusdb.history import Event
from remusdb.history import read as read_history
from remusdb.state import StateStore, VmState
from remusdb.transport.link import TlsLink, TlsState
from remusdb.transport.stream import FrameStream
from remusdb.transport.tls import client_context
from tests import waiting
from tests.hostile import measure, sayings
from tests.hostile.measure import FDS_SLACK, MIB, RSS_SLACK, THREADS_SLACK, Size

NAMES = ("alpha", "beta", "gamma")
NET = "10.66.0"  # all of it is this namespace's own
AGENT = f"{NET}.1"
SOURCES = {"alpha": f"{NET}.11", "gamma": f"{NET}.13"}
START_S = 90.0
ANSWER_S = 20.0
SETTLE_S = float(os.environ.get("SETTLE_S", "20"))
REPO = Path(__file__).resolve().parents[2]


def eventually(what: Callable[[], object], otherwise: str, within_s: float = SETTLE_S) -> None:
    """Wait until `what` is true; AssertionError after `within_s`."""
    waiting.eventually(what, within_s, otherwise)


class Caller:
    """One connection to the agent, of whoever shows the certificates in `folder`."""

    def __init__(self, folder: Path, port: int, source: str, within_s: float = ANSWER_S) -> None:
        """Connect, shake hands, and hear the greeting. RemusError or OSError when one is not let in."""
        sock = socket.create_connection((AGENT, port), within_s, source_address=(source, 0))
        context = client_context(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        self.link = TlsLink(sock, TlsState(context, server_name="beta"))
        try:
            self.link.handshake(within_s)
            self.stream = FrameStream(self.link)
            assert self.stream.receive(within_s) is not None, "no greeting"
        except BaseException:
            self.link.close()
            raise

    def say(self, kind: FrameType, payload: bytes = b"", term: int = 0, epoch: int = 0) -> None:
        """One frame, with no look at what is in it."""
        self.link.write([sayings.frame(kind, term, epoch, payload)])

    def commit(self, term: int, epoch: int, *frames: tuple[FrameType, bytes]) -> None:
        """A whole epoch of these bulk frames."""
        for kind, payload in frames:
            self.say(kind, payload, term, epoch)
        size = sum(len(payload) for _, payload in frames)
        self.say(FrameType.COMMIT, pack(Commit(len(frames), size, [])), term, epoch)

    def say_bye(self, term: int, reason: str = "done", *, forget: bool = True) -> None:
        """End a session in good order, and wait until the agent has given its replica up."""
        self.say(FrameType.BYE, pack(Notice(reason, forget)), term)
        self.hear(FrameType.RENOUNCE)
        self.close()

    def hear(self, *kinds: FrameType, within_s: float = ANSWER_S) -> Frame | None:
        """The next frame of these kinds, or of any but heartbeats; None when the connection ends first."""
        deadline = Deadline.after(within_s)
        with contextlib.suppress(RemusError):
            while not deadline.over:
                frame = self.stream.receive(deadline.left())
                if frame is not None and (frame.type in kinds or (not kinds and frame.type != FrameType.HEARTBEAT)):
                    return frame
        return None

    def closed_within(self, seconds: float) -> bool:
        """Whether the agent ends this connection."""
        deadline = Deadline.after(seconds)
        while not deadline.over:
            try:
                self.stream.receive(deadline.left())
            except RemusError:
                return True
        return False

    def close(self) -> None:
        """Let go."""
        self.stream.close()


@dataclass
class Rig:
    """The agent's folders, its process, and how one talks to it."""

    folder: Path
    certs: Path
    port: int
    primaries: tuple[str, ...] = ("alpha", "gamma")  # whom agent.toml lists
    fences: list[Fence] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    enter: list[str] = field(default_factory=list)  # a command prefix that runs the agent where a libvirtd is
    libvirt_uri: str = "test:///default"
    _calls: list[Caller] = field(default_factory=list)
    _host: ControlServer | None = None

    @property
    def state_dir(self) -> Path:
        """Terms and histories."""
        return self.folder / "state"

    @property
    def images(self) -> Path:
        """Replica disks."""
        return self.folder / "images"

    @property
    def run_dir(self) -> Path:
        """Sockets."""
        return self.folder / "run"

    @property
    def elsewhere(self) -> Path:
        """A folder that is no business of the agent's."""
        return self.folder / "elsewhere"

    @property
    def log(self) -> Path:
        """What the agent logged."""
        return self.folder / "agent.log"

    @property
    def pid(self) -> int:
        """Of the agent."""
        assert self.process is not None
        return self.process.pid

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.state_dir, self.images, self.run_dir, self.elsewhere):
            folder.mkdir(parents=True, exist_ok=True)

    def start(
        self, *, made_up: bool = False, settings: str = "", slow_ms: float = 0, env: Mapping[str, str] | None = None
    ) -> None:
        """Start the agent and the stub of its host daemon; returns when the agent answers.

        `made_up`: with a standby that is made up. `settings`: more lines of agent.toml.
        """
        config = self.folder / "agent.toml"
        config.write_text(self._config() + settings)
        module = ["tests.hostile.made_up_agent", str(config)] if made_up else None
        command = module or ["remusdb.cli.main", "agent", "--config", str(config)]
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                [*self.enter, sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=REPO,
                env={**os.environ, "SLOW_MS": str(slow_ms), **(env or {})},
            )
        self._host = ControlServer(self.run_dir / "host.sock", {Fence: self._fence})
        self._host.start()
        poll_until(lambda: self._answers() or not self.alive(), Deadline.after(START_S), 0.05)
        assert self._answers(), f"the agent does not start:\n{self.told()[-3000:]}"

    def _config(self) -> str:
        tls = self.certs / "beta"
        return (
            f'[agent]\nname = "beta"\nlisten = "{AGENT}"\nport = {self.port}\nrun_dir = "{self.run_dir}"\n'
            f'state_dir = "{self.state_dir}"\nhooks_dir = "{self.folder}/hooks"\nimage_dir = "{self.images}"\n'
            f'libvirt_uri = "{self.libvirt_uri}"\n'
            f'[tls]\nca = "{tls}/ca.pem"\ncert = "{tls}/cert.pem"\nkey = "{tls}/key.pem"\n'
            "[failover]\nsilence_ms = 60000\nautomatic = false\n"
            + "".join(f"[primaries.{name}]\n" for name in self.primaries)
        )

    def _answers(self) -> bool:
        if not (self.run_dir / "agent.sock").exists():
            return False
        with contextlib.suppress(OSError), socket.create_connection((AGENT, self.port), 1, source_address=(AGENT, 0)):
            return True
        return False

    def _fence(self, asked: Fence, _progress: object) -> Nothing:
        self.fences.append(asked)
        return Nothing()

    def alive(self) -> bool:
        """Whether the agent runs."""
        return self.process is not None and self.process.poll() is None

    def told(self) -> str:
        """The agent's log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> None:
        """End the agent, and every call."""
        for one in self._calls:
            one.close()
        self._calls.clear()
        if self.process is not None and self.alive():
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        if self._host is not None:
            self._host.close()
            self._host = None

    # --- peers ---

    def call(self, who: str = "alpha", source: str = "", within_s: float = ANSWER_S) -> Caller:
        """A connection of this host, which is closed when the rig stops."""
        made = Caller(self.certs / who, self.port, source or SOURCES[who], within_s)
        self._calls.append(made)
        return made

    def hello(self, fields: Mapping[str, Any] | bytes, who: str = "alpha") -> tuple[Caller, Welcome | Refuse | None]:
        """Say HELLO: the call, and the answer; None when the agent hung up without one, or said nothing."""
        caller = self.call(who)
        payload = fields if isinstance(fields, bytes) else sayings.packed(dict(fields))
        term = 0 if isinstance(fields, bytes) else fields.get("term", 0)
        caller.say(FrameType.HELLO, payload, term if isinstance(term, int) and 0 <= term < 1 << 64 else 0)
        frame = caller.hear(FrameType.WELCOME, FrameType.REFUSE)
        if frame is None:
            return caller, None
        kind: type[Welcome | Refuse] = Welcome if frame.type is FrameType.WELCOME else Refuse
        return caller, unpack(kind, frame.payload)

    def refused(self, fields: Mapping[str, Any] | bytes, who: str = "alpha") -> Refuse:
        """The REFUSE that this HELLO must get."""
        caller, answer = self.hello(fields, who)
        caller.close()
        assert isinstance(answer, Refuse), f"{answer} instead of a refusal"
        return answer

    def welcomed(self, fields: Mapping[str, Any] | bytes, who: str = "gamma") -> tuple[Caller, Welcome]:
        """The session that this HELLO must get."""
        caller, answer = self.hello(fields, who)
        assert isinstance(answer, Welcome), f"{answer} instead of a welcome"
        return caller, answer

    def ask(self, vm: str, who: str = "alpha") -> Standing | None:
        """ASK who owns a VM; None when the agent says nothing."""
        caller = self.call(who)
        try:
            caller.say(FrameType.ASK, sayings.packed({"vm": vm, "host": who, "term": 0}))
            frame = caller.hear(FrameType.STANDING)
            return unpack(Standing, frame.payload) if frame is not None else None
        finally:
            caller.close()

    def serves(self, who: str = "gamma") -> bool:
        """Whether an honest question gets its answer."""
        with contextlib.suppress(RemusError, OSError, AssertionError):
            return self.ask("no-such-vm", who) is not None
        return False

    # --- what the agent has ---

    def remember(self, vm: str, **fields: Any) -> VmState:
        """What beta durably knows of a VM before its agent starts."""
        return StateStore(self.state_dir).update(vm, **fields)

    def known(self, vm: str) -> VmState:
        """What beta durably knows now."""
        return StateStore(self.state_dir).load(vm)

    def history(self, vm: str) -> list[Event]:
        """The VM's events."""
        return read_history(self.state_dir, vm)

    def status(self) -> list[dict[str, Any]]:
        """What `remusdb status --agent` would show."""
        found: list[dict[str, Any]] = plain(call(self.run_dir / "agent.sock", AgentStatus(), timeout_s=ANSWER_S).vms)
        return found

    def size(self) -> Size:
        """What the agent holds now."""
        return measure.size_of(self.pid)

    def content(self) -> dict[str, str]:
        """All files but histories, which may grow by a line that tells of a refusal."""
        return measure.content(self.state_dir / "vms", self.images, self.elsewhere)

    @contextlib.contextmanager
    def unchanged(self, *, files: bool = True, peak: int = 4 * RSS_SLACK) -> Iterator[None]:
        """Within this block nothing may happen to the agent that stays, and no more than `peak` bytes on the way.

        One connection before it, so that what Python loads on the first is not counted.
        """
        assert self.serves()
        before, files_before = self._at_rest(), self.content()
        measure.forget_peak(self.pid)
        yield
        for one in self._calls:
            one.close()
        self._calls.clear()
        assert self.alive(), f"the agent ended:\n{self.told()[-3000:]}"
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self._grown(before), "it stays larger")
        grown = self._grown(before)
        assert not grown, f"the agent has grown: {grown}"
        assert self.size().peak < before.resident + peak, (
            f"the agent had {self.size().peak // MIB} MiB, {before.resident // MIB} MiB before"
        )
        if files:
            now = self.content()
            assert now == files_before, differences(files_before, now)
        assert self.serves(), "the agent is deaf"

    def _at_rest(self) -> Size:
        """The size when no connection is being closed any more."""
        sizes = [self.size()]
        for _ in range(20):
            time.sleep(0.1)
            sizes.append(self.size())
            if len({(size.threads, size.descriptors) for size in sizes[-4:]}) == 1 and len(sizes) > 3:
                break
        return sizes[-1]

    def _grown(self, before: Size) -> str:
        now = self.size()
        pairs = [
            ("MiB resident", before.resident // MIB, now.resident // MIB, RSS_SLACK // MIB),
            ("descriptors", before.descriptors, now.descriptors, FDS_SLACK),
            ("threads", before.threads, now.threads, THREADS_SLACK),
        ]
        return ", ".join(f"{what} {was} -> {is_}" for what, was, is_, slack in pairs if is_ > was + slack)


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What became of files, a line each."""
    names: Iterable[str] = sorted({*before, *now})
    told = [f"{name}: {before.get(name, '-')} -> {now.get(name, '-')}" for name in names]
    return "\n".join(line for name, line in zip(names, told, strict=True) if before.get(name) != now.get(name))


def store_raw(rig: Rig, stem: str, data: bytes | dict[str, Any]) -> Path:
    """A state file as something else than remusdb left it."""
    folder = rig.state_dir / "vms"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path
