# SPDX-License-Identifier: Apache-2.0
"""`remusdb forget`: an operator's word lets the next one in, and costs neither a VM nor the only copy of one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from remusdb.control.api import Forgotten
from remusdb.core.messages import Refuse, Welcome
from remusdb.errors import RefusedForSafety
from remusdb.state import StateStore
from remusdb_agents.backup import errands
from remusdb_agents.backup.replica import Replica
from tests.unit.test_greeting import OTHER, hello, put, told
from tests.unit.test_replica import UUID, FakeMachine, ready, replica

__all__ = ["replica"]  # the fixture


def try_to(replica: Replica, *, lose: bool = False, there: bool = False) -> Forgotten:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errands, "is_there", lambda _uri, _vm: there)
        return replica.forget(lose_replica=lose)


@pytest.fixture
def images(replica: Replica, tmp_path: Path) -> Path:
    """The VM's folder, with a disk and what was set aside before."""
    folder = tmp_path / "images" / "vm"
    (folder / "quarantine-term3").mkdir(parents=True)
    for name in ("vda.raw", "nvram.fd", "quarantine-term3/vda.raw"):
        (folder / name).write_text(name)
    msgspec.structs.force_setattr(replica.context.config.agent, "image_dir", tmp_path / "images")
    return folder


def test_who_comes_next_may(replica: Replica, tmp_path: Path, images: Path) -> None:
    put(tmp_path, role="none", term=7, owner="a", peer="a", uuid=UUID, quarantined_disks={"vda": "/kept/vda.raw"})
    assert isinstance(told(replica, hello("c", 0, uuid=OTHER)), Refuse)
    done = try_to(replica)
    assert done.quarantined_disks == ["/kept/vda.raw"]
    assert sorted(done.moved) == [str(images / "forgotten-term7" / name) for name in ("nvram.fd", "vda.raw")]
    assert sorted(path.name for path in images.iterdir()) == ["forgotten-term7", "quarantine-term3"]
    assert (images / "forgotten-term7" / "vda.raw").read_text() == "vda.raw"
    kept = StateStore(tmp_path).load("vm")
    assert (kept.role, kept.term, kept.owner, kept.uuid, kept.quarantined_disks) == ("none", 7, "", "", {})
    answer = told(replica, hello("c", 0, uuid=OTHER))
    assert isinstance(answer, Welcome) and answer.term == 8


def test_a_session_is_not_forgotten(replica: Replica) -> None:
    ready(replica)
    with pytest.raises(RefusedForSafety, match="host a protects VM vm to here now"):
        try_to(replica, lose=True)
    assert replica.status().state == "ready"


def test_the_only_copy_needs_a_clear_word(replica: Replica, tmp_path: Path) -> None:
    replica.lost(ready(replica), "reset")
    with pytest.raises(RefusedForSafety, match="it may be the only copy") as caught:
        try_to(replica)
    assert "remusdb failover vm" in caught.value.hint and not FakeMachine.made[0].closed
    try_to(replica, lose=True)
    assert FakeMachine.made[0].closed and FakeMachine.made[0].kept  # its images are moved aside, not deleted
    assert StateStore(tmp_path).load("vm").owner == ""


@pytest.mark.parametrize("role", ["seeding", "protected", "solo", "promoting", "fenced"])
def test_what_this_host_has_is_not_forgotten(replica: Replica, tmp_path: Path, role: str) -> None:
    put(tmp_path, role=role, term=7, owner="b", peer="a")
    before = StateStore(tmp_path).load("vm")
    with pytest.raises(RefusedForSafety) as caught:
        try_to(replica, lose=True)
    assert caught.value.hint and StateStore(tmp_path).load("vm") == before


@pytest.mark.parametrize("role", ["promoted", "none"])
def test_a_vm_that_libvirt_has_here_is_not_forgotten(replica: Replica, tmp_path: Path, role: str) -> None:
    put(tmp_path, role=role, term=7, owner="b", peer="a")
    before = StateStore(tmp_path).load("vm")
    with pytest.raises(RefusedForSafety, match="libvirt has a domain vm"):
        try_to(replica, lose=True, there=True)
    assert StateStore(tmp_path).load("vm") == before
    try_to(replica)  # moved away since
    assert isinstance(told(replica, hello("a", 0)), Welcome)
