# SPDX-License-Identifier: Apache-2.0
"""A HELLO whose VM this host does not start changes nothing here; of one that it starts only the judged XML is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from remusdb.config import Agent, AgentConfig, Failover, Limits
from remusdb.core.messages import Hello, Refuse, Welcome
from remusdb.history import History
from remusdb.state import StateStore
from remusdb_agents.backup.admission import Admission
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.replica import Replica
from tests.unit.test_replica import XML, FakeMachine, FakeStream, fake, hello


class Recorder(FakeMachine):
    """Remembers the HELLO that it was made of."""

    hellos: ClassVar[list[Hello]] = []

    def __init__(self, config: Any, said: Hello, moved: Any, broken: Any, kept: Any) -> None:
        super().__init__(config, said, moved, broken, kept)
        Recorder.hellos.append(said)


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    monkeypatch.setattr(Context, "yield_vm", lambda *_args: pytest.fail("the VM that runs here is quarantined"))
    Recorder.hellos = []
    config = AgentConfig(agent=Agent(name="b"), failover=Failover(automatic=False), limits=Limits())
    admission = Admission(available=lambda: 1 << 40)
    context = Context(config, StateStore(tmp_path), History(tmp_path, None), None, admission, fake(Recorder))
    yield Replica("vm", context)
    FakeMachine.gate.set()


def greet(replica: Replica, xml: str, term: int = 0) -> Welcome | Refuse:
    stream: Any = FakeStream()
    return replica.greet(stream, msgspec.structs.replace(hello(term), domain_xml=xml))


BAD = {
    "a script": XML.replace(
        "</domain>", "<devices><interface type='ethernet'><script path='/x'/></interface></devices></domain>"
    ),
    "another VM": XML.replace(">vm<", ">other<"),
    "an entity": f"<!DOCTYPE d [<!ENTITY a 'b'>]>{XML}",
    "no XML": "<domain>",
    "a deep one": f"{'<a>' * 100_000}",
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("runs_here", [False, True])
def test_a_vm_that_is_not_started_here_changes_nothing(
    replica: Replica, tmp_path: Path, name: str, runs_here: bool
) -> None:
    """No term, no state, no history; a VM that this host took over is not quarantined for it."""
    if runs_here:
        StateStore(tmp_path).update("vm", role="promoted", term=7, owner="b", peer="a")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    answer = greet(replica, BAD[name], term=8)
    assert isinstance(answer, Refuse) and not answer.renounced and not answer.fenced
    assert answer.code == "preflight" and answer.reason
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert FakeMachine.made == []


def test_only_the_judged_xml_goes_on(replica: Replica) -> None:
    """Whatever is made of it later (standby, rehearsal, proof, definition) is made of this."""
    live = XML.replace("</domain>", "<devices><emulator>/evil</emulator></devices><seclabel type='none'/></domain>")
    assert isinstance(greet(replica, live), Welcome)
    (said,) = Recorder.hellos
    assert "evil" not in said.domain_xml and "seclabel" not in said.domain_xml and "<devices" in said.domain_xml
