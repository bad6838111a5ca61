# SPDX-License-Identifier: Apache-2.0
"""A proof tells QEMU's refusal from what is no word of QEMU's, and takes no more than it needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from remusdb.config import Agent, AgentConfig
from remusdb.core.messages import Hello, Proof, RamBlock
from remusdb.errors import LibvirtAway, RefusedForSafety, VmError
from remusdb.history import History
from remusdb.names import VmName
from remusdb.state import StateStore
from remusdb_agents.backup.admission import QEMU_OVERHEAD_BYTES, Admission
from remusdb_agents.backup.applier import Frozen
from remusdb_agents.backup.catch_up import CatchUp
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.rehearsal.run import Rehearsals
from remusdb_agents.backup.standby import proof as module
from remusdb_agents.backup.standby.proof import Prover
from remusdb_agents.backup.standby.qemu import StateRefused

RAM = 64 << 30
MiB = 1 << 20


class FakeApplier:
    """A replica at epoch 7 that stands still when asked to."""

    over = ""

    def __init__(self) -> None:
        self.frozen = Frozen(7, b"devices", CatchUp(), lambda: 0)

    @contextlib.contextmanager
    def freeze(self, _backlog: int) -> Iterator[Frozen]:
        yield self.frozen


class FakeCopy:
    """A copy whose QEMU says `fault` when it is made, or when it loads."""

    no_start: Exception | None = None
    no_load: Exception | None = None
    kernel_too = True
    made: ClassVar[list[FakeCopy]] = []

    def __init__(self, *_: Any) -> None:
        if self.no_start:
            raise self.no_start
        self.done: list[str] = []
        self.domain = SimpleNamespace(kill=lambda: self.done.append("killed"), ends_within=lambda _s: True)
        FakeCopy.made.append(self)

    def borrow(self, _standby: Any) -> Any:
        back = partial(self.done.append, "given back")
        return SimpleNamespace(given=3, lend=contextlib.nullcontext, close=back, kernel_too=self.kernel_too)

    def load(self, devices: bytes, catch_up: CatchUp) -> None:
        assert devices == b"devices"
        if self.no_load:
            raise self.no_load
        self.done.append("loaded")

    def close(self) -> None:
        self.done.append("thrown away")


class Rig:
    """A prover of a VM with 64 GiB, and what it told."""

    def __init__(self, tmp_path: Path, free: int, xml: str = "<domain/>") -> None:
        blocks = [RamBlock("pc.ram", RAM), RamBlock("vga.vram", 16 * MiB)]
        hello = Hello("0", "a", VmName("vm"), "uuid", 0, False, 0, "q35", xml, blocks, [], 100, "10")
        config = AgentConfig(agent=Agent(name="b"))
        self.admission = admission = Admission(available=lambda: free)
        nothing: Any = None
        context = Context(config, StateStore(tmp_path), History(tmp_path, None), None, admission, nothing)
        self.applier = cast(Any, FakeApplier())
        standby: Any = None
        self.rehearsals = Rehearsals(context, hello, standby, self.applier, {})
        self.prover = Prover(context, hello, standby, self.applier, {}, self.rehearsals)

    def prove(self) -> Proof:
        told: list[Proof] = []

        def tell(proof: Proof) -> None:
            """Whoever hears it may protect the next VM at once: all of the room is there for that one's standby."""
            told.append(proof)
            if proof.verdict != "unable":
                self.admission.check("next", 16 * MiB)

        self.prover.prove(tell)
        [proof] = told
        return proof


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(module, "Copy", FakeCopy)
    monkeypatch.setattr(FakeCopy, "no_start", None)
    monkeypatch.setattr(FakeCopy, "no_load", None)
    FakeCopy.made = []
    return Rig(tmp_path, QEMU_OVERHEAD_BYTES + 16 * MiB)


def test_a_large_vm_is_proven_in_the_room_of_a_small_one(rig: Rig) -> None:
    proof = rig.prove()
    assert (proof.verdict, proof.epoch, proof.reason) == ("proven", 7, "")
    assert FakeCopy.made[0].done == ["loaded", "given back", "killed", "thrown away"]


def test_no_room_at_all_is_no_refusal(tmp_path: Path, rig: Rig) -> None:
    proof = Rig(tmp_path, 100 * MiB).prove()
    assert proof.verdict == "unable" and "100 MiB are free" in proof.reason and FakeCopy.made == []


@pytest.mark.parametrize(
    ("where", "fault", "verdict"),
    [
        ("no_load", StateRefused("QEMU cannot: Unknown savevm section 'vmgenid'"), "refused"),
        ("no_load", VmError("it did not load within 20 s"), "unable"),
        ("no_load", LibvirtAway("libvirt did not answer"), "unable"),
        ("no_start", VmError("Cannot allocate memory"), "unable"),
    ],
)
def test_only_qemus_word_is_a_refusal(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str, fault: Exception, verdict: str
) -> None:
    monkeypatch.setattr(FakeCopy, where, fault)
    proof = rig.prove()
    assert (proof.verdict, proof.reason) == (verdict, str(fault))
    assert all(copy.done[-1] == "thrown away" for copy in FakeCopy.made)
    assert bool(proof.hint) is (verdict == "refused")


def test_a_copy_that_a_takeover_killed_was_not_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(copy: FakeCopy, _devices: bytes, _catch_up: CatchUp) -> None:
        rig.applier.frozen.broken_by("this host takes the VM over")
        assert copy.done == ["killed"]
        raise StateRefused("QEMU ended")

    monkeypatch.setattr(FakeCopy, "load", load)
    proof = rig.prove()
    assert (proof.verdict, proof.reason) == ("unable", "this host takes the VM over")


def test_what_kvm_would_look_at_unseen_is_not_tried(tmp_path: Path, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else KVM's own failure would look like a refusal."""
    windows = Rig(tmp_path, 1 << 40, "<domain><features><hyperv><relaxed state='on'/></hyperv></features></domain>")
    assert windows.prove().verdict == "proven"
    monkeypatch.setattr(FakeCopy, "kernel_too", False)
    proof = windows.prove()
    assert proof.verdict == "unable" and "Hyper-V" in proof.reason and "remusdb rehearse vm" in proof.hint
    assert rig.prove().verdict == "proven"


def test_for_a_session_that_ended_no_qemu_is_started(rig: Rig) -> None:
    rig.applier.over = "the replica was given up"
    assert rig.prove().verdict == "unable" and FakeCopy.made == []


def test_a_rehearsal_waits_for_a_proof_and_not_for_another_rehearsal(rig: Rig) -> None:
    with rig.rehearsals.alone("rehearsal"):
        with pytest.raises(RefusedForSafety, match="a rehearsal of vm runs already"), rig.rehearsals.alone("rehearsal"):
            pass
    rig.prove()
    with rig.rehearsals.alone("rehearsal"):
        pass
