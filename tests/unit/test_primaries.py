# SPDX-License-Identifier: Apache-2.0
"""Who may keep a standby here: a host that agent.toml does not list is refused before anything it says is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remusdb.config import Agent, AgentConfig, Primary, load_agent
from remusdb.core.messages import Hello, Question, Refuse, Standing, pack, unpack
from remusdb.core.probe import Probe
from remusdb.core.wire import Frame, FrameType
from remusdb.names import VmName
from remusdb_agents.backup.daemon import AgentDaemon

UUID = "0f3c1a52-8f0e-4d0a-9b60-3f1c2d4e5a6b"


class Stream:
    """A connection of `peer_name`, on which one frame comes."""

    def __init__(self, peer: str, frame: Frame) -> None:
        self.peer_name = peer
        self._frame = frame
        self.read = False
        self.sent: list[tuple[FrameType, bytes]] = []
        self.drained = False

    def receive(self, _timeout_s: float) -> Frame:
        self.read = True
        return self._frame

    def send(self, kind: FrameType, _term: int, _epoch: int, payload: bytes = b"") -> None:
        self.sent.append((kind, payload))

    def close(self, drain_s: float = 0.0) -> None:
        self.drained = drain_s > 0


def frames(vm: str) -> dict[FrameType, Frame]:
    hello = Hello("0", "alpha", VmName(vm), UUID, 7, False, 0, "q35", "<domain/>", [], [], 100, "10")
    xml = f"<domain><name>{vm}</name></domain>"
    payloads = {FrameType.HELLO: hello, FrameType.ASK: Question(VmName(vm), "alpha", 7), FrameType.PROBE: Probe(xml)}
    return {kind: Frame(kind, 0, 0, memoryview(pack(message))) for kind, message in payloads.items()}


def serve(folder: Path, stream: Stream, **primaries: Primary) -> None:
    config = AgentConfig(
        agent=Agent(name="beta", state_dir=folder / "state", image_dir=folder / "images", hooks_dir=folder),
        primaries=primaries,
    )
    untyped: Any = stream
    AgentDaemon(config)._sessions.serve(untyped)


def refusal(stream: Stream) -> Refuse:
    ((kind, payload),) = stream.sent
    assert kind is FrameType.REFUSE and stream.drained
    return unpack(Refuse, payload)


@pytest.mark.parametrize("kind", [FrameType.HELLO, FrameType.ASK, FrameType.PROBE])
def test_a_host_that_is_not_listed_is_refused_unread(tmp_path: Path, kind: FrameType) -> None:
    stream = Stream("alpha", frames("db1")[kind])
    serve(tmp_path, stream, gamma=Primary())
    refuse = refusal(stream)
    assert not stream.read
    assert (refuse.code, refuse.fenced, refuse.renounced) == ("preflight", False, False)  # output stays held
    assert refuse.reason == "host alpha is not among the primaries that may keep standbys on beta"
    assert refuse.hint.startswith("put the line [primaries.alpha] into agent.toml of beta")
    assert not any(tmp_path.iterdir())


def test_the_line_to_add_is_toml(tmp_path: Path) -> None:
    stream = Stream("db.example", frames("db1")[FrameType.HELLO])
    serve(tmp_path, stream)
    line = refusal(stream).hint.removeprefix("put the line ").split(" into ")[0]
    (tmp_path / "agent.toml").write_text(f'[agent]\nname = "beta"\n{line}\n')
    assert load_agent(tmp_path / "agent.toml").primaries == {"db.example": Primary()}


def test_without_a_list_nobody_may(tmp_path: Path) -> None:
    stream = Stream("alpha", frames("db1")[FrameType.ASK])
    serve(tmp_path, stream)
    assert refusal(stream).code == "preflight"


@pytest.mark.parametrize("kind", [FrameType.HELLO, FrameType.ASK, FrameType.PROBE])
def test_a_listed_host_is_refused_for_other_vms(tmp_path: Path, kind: FrameType) -> None:
    stream = Stream("alpha", frames("db1")[kind])
    serve(tmp_path, stream, alpha=Primary(vms=["db2"]))
    refuse = refusal(stream)
    assert (refuse.code, refuse.fenced, refuse.renounced) == ("preflight", False, False)
    assert "VM 'db1'" in refuse.reason and "[primaries.alpha]" in refuse.hint
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("vms", [None, ["db1"]])
def test_a_listed_host_is_answered(tmp_path: Path, vms: list[str] | None) -> None:
    stream = Stream("alpha", frames("db1")[FrameType.ASK])
    serve(tmp_path, stream, alpha=Primary(vms=vms))
    ((kind, payload),) = stream.sent
    assert kind is FrameType.STANDING and unpack(Standing, payload).role == "none"
