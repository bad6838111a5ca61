# SPDX-License-Identifier: Apache-2.0
"""What the host daemon does for a VM without being asked, with workers that have no VM."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from remusdb.config import Arbiter, HostConfig, Protection
from remusdb.control.api import Reprotect
from remusdb.control.codec import Failed
from remusdb.core.ownership import Claim, Ownership, Rule, Verdict
from remusdb.errors import (
    ArbiterUnreachable,
    CannotProtect,
    Fenced,
    NotProtected,
    PeerUnreachable,
    RefusedForSafety,
    RemusError,
    VmError,
)
from remusdb.host.worker_process import WorkerLink
from remusdb.names import VmName
from remusdb.preflight.checks import Check
from remusdb.reasons import Code, Reason
from remusdb.state import StateStore
from tests.unit.host_daemon_rig import FAST, NoLibvirt, OtherHosts, Running, events, put, script
from tests.waiting import eventually

MOMENT_S = 0.3  # many looks at each VM
ARMED: dict[str, Any] = {"role": "protected", "term": 7, "peer": "beta", "armed": True, "wanted": True}
SOLO: dict[str, Any] = {"role": "solo", "term": 7, "peer": "beta", "wanted": True}


def code(running: Running) -> Code | None:
    """Why it is in its state."""
    why = running.status("db1").why
    return why.code if why else None


def shows(running: Running, state: str, reason: Code | None = None, **params: str) -> None:
    """Wait until `status` says so of db1, and see that it goes on to."""

    def does() -> bool:
        told = running.status("db1")
        if told.state != state or reason is None:
            return told.state == state
        return told.why is not None and told.why.code is reason and params.items() <= told.why.params.items()

    eventually(does, otherwise=f"not {state}, {reason} {params}")
    time.sleep(MOMENT_S)
    assert does(), running.status("db1")


def off() -> NoLibvirt:
    """A host whose VM does not run."""
    libvirt = NoLibvirt()
    libvirt.known["db1"] = False
    return libvirt


# --- the other host says who owns the VM ---


def test_without_the_backups_answer_the_output_stays_held(daemon: Running) -> None:
    daemon.others.silent = {"beta"}
    daemon.protect("db1")
    os.kill(daemon.worker_pid("db1"), signal.SIGKILL)
    shows(daemon, "held", Code.PEER_UNREACHABLE_HELD, why="no route")
    with pytest.raises(RefusedForSafety, match="protected to beta"):
        daemon.protect("db1", "gamma")


def test_what_another_host_owns_is_quarantined(daemon: Running, config: HostConfig) -> None:
    daemon.others.say("beta", "promoted", owner="beta", ahead=1)
    daemon.protect("db1")
    os.kill(daemon.worker_pid("db1"), signal.SIGKILL)
    eventually(lambda: bool(daemon.status("db1").quarantined_disks))
    told = daemon.status("db1")
    assert (told.state, told.owner, told.term) == ("fenced", "beta", 8)
    assert told.why == Reason.of(Code.QUARANTINED, owner="beta", term=8, note="disks kept: vda")
    assert daemon.quarantines.done == ["db1 fenced keep"]
    eventually(lambda: events(daemon, config, "db1")[-2:] == ["fenced", "quarantined"])


def test_a_host_that_the_peer_names_is_asked_itself(config: HostConfig) -> None:
    others = OtherHosts()
    others.say("beta", "none", owner="gamma", ahead=1)
    others.say("gamma", "protected", owner="gamma", ahead=2)
    put(config, "db1", **ARMED)
    with Running(config, others=others) as running:
        eventually(lambda: bool(running.quarantines.done))
        told = running.status("db1")
        assert (told.state, told.owner, told.term) == ("fenced", "gamma", 9)
        assert set(others.asked) == {"beta", "gamma"}


@pytest.mark.parametrize("gamma", ["silent", "knows nothing", "has it in no newer term", "names beta"])
def test_one_hosts_word_about_another_destroys_nothing(config: HostConfig, gamma: str) -> None:
    others = OtherHosts()
    others.say("beta", "none", owner="gamma", ahead=1)
    match gamma:
        case "silent":
            others.silent = {"gamma"}
        case "knows nothing":
            others.say("gamma", "none", owner="")
        case "has it in no newer term":
            others.say("gamma", "promoted", owner="gamma")
        case "names beta":
            others.say("gamma", "none", owner="beta", ahead=1)
    put(config, "db1", **ARMED)
    with Running(config, others=others) as running:
        shows(running, "held", Code.OWNER_UNCONFIRMED, peer="beta", owner="gamma")
        assert running.quarantines.done == []


@pytest.mark.parametrize(("state", "ahead", "shown"), [(ARMED, 0, "held"), (SOLO, 3, "solo")])
def test_a_takeover_that_nobody_had_a_right_to_is_an_operators_to_settle(
    config: HostConfig, state: dict[str, Any], ahead: int, shown: str
) -> None:
    """Whoever cannot have been taken over does not believe it; whoever can, not in a term that is its own."""
    others = OtherHosts()
    others.say("beta", "promoted", owner="beta", ahead=ahead)
    put(config, "db1", **state)
    with Running(config, others=others) as running:
        shows(running, shown, Code.OWNER_DISPUTED, peer="beta", term=str(7 + ahead))
        assert running.status("db1").hint == "where it is not needed, on beta: remusdb forget db1"
        assert running.quarantines.done == [] and not (config.host.state_dir / "db1.spec").exists()


def test_a_backup_that_decides_just_now_is_waited_for(config: HostConfig) -> None:
    others = OtherHosts()
    others.say("beta", "promoting", owner="", ahead=1)
    put(config, "db1", **ARMED)
    with Running(config, others=others) as running:
        shows(running, "held", Code.PEER_DECIDING)
        others.say("beta", "standby")
        shows(running, "protected")


def test_a_peer_that_is_away_is_tried_again(config: HostConfig) -> None:
    put(config, "db1", **ARMED)
    script(config, "db1", refusal=Failed.by(PeerUnreachable("no route")))
    with Running(config) as running:
        eventually(lambda: running.status("db1").state == "held" and code(running) is Code.ERROR_HELD)
        script(config, "db1")
        shows(running, "protected")


def test_a_peer_that_was_taken_out_of_the_configuration_is_named(config: HostConfig) -> None:
    put(config, "db1", **SOLO | {"peer": "delta"})
    with Running(config) as running:
        shows(running, "solo", Code.CANNOT_PROTECT, why="peer `delta` is not in host.toml")
        assert running.others.asked == []


FENCED = {"role": "fenced", "term": 9, "owner": "beta", "reason": "term 9", "quarantined": True}


@pytest.mark.parametrize(
    ("does", "state"),
    [
        ({"refusal": Failed.by(CannotProtect("vhost-user", hint="remove it"))}, "held"),
        ({"saves": FENCED, "refusal": Failed.by(Fenced("term 9 exists"))}, "fenced"),
    ],
    ids=["unfit", "fenced"],
)
def test_what_cannot_be_taken_up_says_why(config: HostConfig, does: dict[str, Any], state: str) -> None:
    put(config, "db1", **ARMED)
    script(config, "db1", **does)
    with Running(config) as running:
        eventually(lambda: running.status("db1").state == state and code(running) is not Code.NO_WORKER)


# --- the arbiter says who owns the VM ---


class FakeArbiter:
    """One VM's record, and what becomes of a claim."""

    def __init__(self, record: Ownership | None = None, verdict: Verdict = Verdict.LOST) -> None:
        self.record, self.verdict = record, verdict
        self.reachable = True
        self.claims: list[Ownership | None] = []  # what each would make of this host's ownership

    def __call__(self, _config: Arbiter) -> FakeArbiter:
        return self

    def read(self, _vm: str) -> Ownership | None:
        if not self.reachable:
            raise ArbiterUnreachable("none of the endpoints answers")
        return self.record

    def claim(self, _vm: str, rule: Rule) -> Claim:
        self.claims.append(rule(Ownership("alpha", 7)))
        return Claim(self.verdict, self.record)


def with_arbiter(config: HostConfig, **protection: Any) -> HostConfig:
    arbiter = Arbiter(endpoints=["http://192.0.2.9:2379"])
    return msgspec.structs.replace(config, arbiter=arbiter, vms={"db1": Protection(**protection)})


def beta_is_away() -> OtherHosts:
    others = OtherHosts()
    others.silent = {"beta"}
    return others


GATED = {**ARMED, "gates": [{"kind": "tap", "tap": "vnet3", "mac": "52:54:00:00:00:01"}]}


def test_a_vm_whose_worker_and_backup_are_gone_goes_on_alone_where_the_arbiter_allows_it(config: HostConfig) -> None:
    put(config, "db1", **GATED)
    arbiter = FakeArbiter(verdict=Verdict.WON)
    with Running(with_arbiter(config), others=beta_is_away(), arbiter=arbiter) as running:
        eventually(lambda: running.status("db1").state == "solo")
        assert (config.host.state_dir / "db1.taken-out").read_text() == "protected 8", "the term was durable before"
        kept = StateStore(config.host.state_dir).load("db1")
        assert (kept.role, kept.term, kept.armed, kept.wanted, kept.gates) == ("solo", 8, False, True, [])
        eventually(lambda: "solo" in events(running, config, "db1"))
        assert running.shut[0] == ("db1", ["vnet3"]), "what it was given meanwhile must not have spoken before"
        assert arbiter.claims == [Ownership("alpha", 8)]


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        (Verdict.LOST, Code.ARBITER_REFUSES),
        (Verdict.UNKNOWN, Code.ARBITER_SILENT),
        (Verdict.UNREACHED, Code.ARBITER_SILENT),
    ],
)
def test_whatever_else_the_arbiter_says_the_output_stays_held(config: HostConfig, verdict: Verdict, why: Code) -> None:
    put(config, "db1", **GATED)
    with Running(with_arbiter(config), others=beta_is_away(), arbiter=FakeArbiter(verdict=verdict)) as running:
        shows(running, "held", why)
        assert StateStore(config.host.state_dir).load("db1").armed
        assert not (config.host.state_dir / "db1.taken-out").exists()
        assert ("db1", ["vnet3"]) in running.shut


def test_a_vm_that_is_to_hold_is_not_claimed(config: HostConfig) -> None:
    put(config, "db1", **ARMED)
    arbiter = FakeArbiter(verdict=Verdict.WON)
    configured = with_arbiter(config, on_backup_loss="hold")
    with Running(configured, others=beta_is_away(), arbiter=arbiter) as running:
        shows(running, "held", Code.PEER_UNREACHABLE_HELD)
        assert arbiter.claims == []


@pytest.mark.parametrize(("term", "state"), [(8, "held"), (9, "fenced")])
def test_the_arbiters_record_counts_where_nobody_answers(config: HostConfig, term: int, state: str) -> None:
    """One of the very next term may be a takeover that nothing came of; a later one is of a session begun since."""
    put(config, "db1", **ARMED)
    arbiter = FakeArbiter(Ownership("beta", term))
    with Running(with_arbiter(config), others=beta_is_away(), arbiter=arbiter) as running:
        shows(running, state)
        assert bool(running.quarantines.done) is (state == "fenced")


def test_without_the_arbiters_answer_the_backups_word_is_enough_to_protect_again(config: HostConfig) -> None:
    put(config, "db1", **ARMED)
    arbiter = FakeArbiter()
    arbiter.reachable = False
    with Running(with_arbiter(config), arbiter=arbiter) as running:
        shows(running, "protected")


# --- the VM does not run here ---


@pytest.mark.parametrize(("state", "shown"), [(ARMED, "held"), (SOLO, "solo")])
@pytest.mark.parametrize("beta", ["standby", "promoting", "silent"])
def test_a_vm_that_is_off_may_run_elsewhere_until_the_other_host_says_no(
    config: HostConfig, state: dict[str, Any], shown: str, beta: str
) -> None:
    others = OtherHosts()
    if beta == "silent":
        others.silent = {"beta"}
    else:
        others.say("beta", beta)
    put(config, "db1", **state, autostart=True)
    with Running(config, off(), others) as running:
        shows(running, shown, Code.OFF_UNDECIDED)
        assert running.libvirt.known["db1"] is False, "it was started"
        others.silent = set()
        others.say("beta", "none")
        eventually(lambda: running.libvirt.known["db1"])
        shows(running, "protected")


def test_a_vm_that_nobody_runs_waits_for_whoever_starts_it(config: HostConfig) -> None:
    others = OtherHosts()
    others.say("beta", "none")
    put(config, "db1", **GATED)
    with Running(config, off(), others) as running:
        shows(running, "solo", Code.OFF)
        assert running.status("db1").hint == "start it: virsh start db1"
        kept = StateStore(config.host.state_dir).load("db1")
        assert (kept.role, kept.armed, kept.gates, kept.wanted) == ("solo", False, [], True)
        assert running.libvirt.known["db1"] is False


def test_a_vm_that_nobody_runs_is_started_where_it_used_to_start_by_itself(config: HostConfig) -> None:
    """Both hosts lost their power: the other one never took over, and says so."""
    others = OtherHosts()
    others.say("beta", "none")
    put(config, "db1", **ARMED, owner="alpha", autostart=True)
    with Running(config, off(), others) as running:
        eventually(lambda: running.libvirt.known["db1"])
        shows(running, "protected")


# --- a VM that was taken over here ---


def test_a_vm_that_was_taken_over_here_says_what_to_do(config: HostConfig) -> None:
    put(config, "db1", role="promoted", term=4, owner="alpha", peer="beta", reason="beta was silent", resumed_at_ns=1)
    with Running(config) as running:
        told = running.status("db1")
        assert told.state == "unprotected" and code(running) is Code.TAKEN_OVER_HERE
        assert told.hint == "protect it: remusdb reprotect db1 --to HOST"
        assert running.ask(Reprotect(vm=VmName("db1"), to="beta")).state == "protected"
        with pytest.raises(NotProtected, match="was not taken over here"):
            running.ask(Reprotect(vm=VmName("web"), to="beta"))


def test_a_vm_that_was_taken_over_here_is_protected_back_by_itself(config: HostConfig) -> None:
    put(config, "db1", role="promoted", term=4, owner="alpha", peer="beta", resumed_at_ns=1)
    with Running(msgspec.structs.replace(config, vms={"db1": Protection(auto_reprotect=True)})) as running:
        shows(running, "protected")


# --- what goes wrong ---


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 2, "vm": "db1", "peer": 3}'])
def test_unreadable_state_is_shown_and_not_overwritten(config: HostConfig, text: str) -> None:
    file = config.host.state_dir / "vms" / "db1.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with Running(config) as running:
        assert running.status("db1").state == "failed"
        with pytest.raises(RemusError, match="cannot be read"):
            running.protect("db1")
        assert file.read_text() == text
        file.unlink()
        assert running.protect("db1").state == "protected"


@pytest.mark.parametrize("failure", [VmError("libvirt did not answer"), ZeroDivisionError()], ids=["error", "bug"])
def test_a_vm_that_could_not_be_quarantined_is_tried_again_and_no_other_waits_for_it(
    config: HostConfig, failure: Exception
) -> None:
    put(config, "db1", role="fenced", term=8, owner="beta", peer="beta", reason="beta owns it")
    put(config, "web", **ARMED)
    running = Running(config)
    running.quarantines.failure = failure
    with running:
        eventually(lambda: len(running.quarantines.done) > 2)
        eventually(lambda: running.status("web").state == "protected")
        assert not StateStore(config.host.state_dir).load("db1").quarantined
        with pytest.raises(Fenced):
            running.protect("db1")
        running.quarantines.failure = None
        eventually(lambda: StateStore(config.host.state_dir).load("db1").quarantined)
        done = len(running.quarantines.done)
        time.sleep(MOMENT_S)
        assert len(running.quarantines.done) == done, "what is quarantined stays so"


def test_a_session_that_ended_by_itself_can_be_followed_by_another(daemon: Running, config: HostConfig) -> None:
    script(config, "db1", over="the agent gave up")
    for _ in range(2):
        daemon.protect("db1")
        eventually(lambda: daemon.status("db1").state == "unprotected")
        assert daemon.status("db1").reason == "the agent gave up"


def test_a_worker_whose_session_is_over_is_ended(daemon: Running, config: HostConfig) -> None:
    script(config, "db1", over="the agent gave up")
    daemon.protect("db1")
    eventually(lambda: daemon.daemon.supervisor.managed("db1").link is None)
    assert daemon.status("db1").reason == "the agent gave up"


def test_an_unprotect_is_not_undone_by_who_looks_after_the_vms(
    daemon: Running, config: HostConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = WorkerLink.stop

    def stop_slowly(link: WorkerLink) -> None:
        stop(link)
        time.sleep(MOMENT_S)  # and its file says that the VM is protected

    daemon.protect("db1")
    monkeypatch.setattr(WorkerLink, "stop", stop_slowly)
    daemon.unprotect("db1")
    assert daemon.daemon.supervisor.managed("db1").link is None
    assert StateStore(config.host.state_dir).load("db1").role == "none"
    assert "resync" not in events(daemon, config, "db1")


def test_a_vm_that_became_unfit_says_why_once_and_is_protected_when_it_is_fit(config: HostConfig) -> None:
    """Its devices changed, and the next session's preflight refuses them: nobody is told every few seconds."""

    class Drive(NoLibvirt):
        full, looks = True, 0

        def check(self, vm: str, peer: str | None) -> list[Check]:
            self.looks += 1
            full = Check("media", False, "required", "sda has a medium", "eject it")
            return [full] if self.full else super().check(vm, peer)

    put(config, "db1", **SOLO, reason="devices changed: a medium")
    drive = Drive()
    with Running(config, drive) as running:
        eventually(lambda: drive.looks > 2)
        told = running.status("db1")
        assert told.state == "solo"
        assert told.why is not None and told.why.code is Code.CANNOT_PROTECT
        assert told.why.params["since"] == "devices changed: a medium" and told.hint == "eject it"
        assert events(running, config, "db1") == ["failed"]
        drive.full = False
        shows(running, "protected")


@pytest.mark.slow
def test_what_the_worker_refuses_is_tried_at_longer_intervals(config: HostConfig) -> None:
    """Looks at the VM while its worker is at work must not make the next try a first one."""
    put(config, "db1", **SOLO)
    script(config, "db1", refusal=Failed.by(CannotProtect("vhost-user", hint="remove it")))
    with Running(config, timing=replace(FAST, retry_s=(0.05, 30.0))) as running:
        eventually(lambda: events(running, config, "db1").count("resync") == 2)
        shows(running, "solo")  # the second try is over, however long a process takes to start
        time.sleep(1.5)
        told = events(running, config, "db1")
        assert told.count("resync") == 2 and told.count("failed") == 1
        assert running.status("db1").state == "solo" and running.status("db1").hint.startswith("remove it")


def test_after_its_end_a_daemon_begins_nothing(config: HostConfig) -> None:
    put(config, "db1", **ARMED)
    running = Running(config, others=beta_is_away())
    eventually(lambda: bool(running.others.asked))
    running.daemon.stop()
    running.others.silent = set()
    time.sleep(MOMENT_S)
    asked = len(running.others.asked)
    time.sleep(MOMENT_S)
    assert len(running.others.asked) == asked
    assert not (config.host.state_dir / "db1.spec").exists()
