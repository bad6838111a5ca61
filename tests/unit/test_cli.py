# SPDX-License-Identifier: Apache-2.0
"""The command line against daemons that only talk: words, JSON, exit codes."""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from remusdb.cli import failover as failover_module
from remusdb.cli import prepare as prepare_module
from remusdb.cli import words
from remusdb.cli.main import cli
from remusdb.cli.progress import Steps
from remusdb.control import ControlServer, Handler, Progress, ProgressFn, Request
from remusdb.control.api import (
    AgentStatus,
    AgentVms,
    Checked,
    CheckVm,
    Export,
    Exported,
    ExportedDisk,
    Failover,
    Forget,
    Forgotten,
    HostStatus,
    HostVms,
    Look,
    Prepare,
    Prepared,
    Protect,
    Rehearse,
    Rehearsed,
    TakenOver,
    Unprotect,
    Unprotected,
)
from remusdb.control.codec import plain
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.errors import Fenced, NotProtected, RefusedForSafety, RemusError
from remusdb.names import VmName
from remusdb.preflight.checks import Check, Level

PRIMARY = VmStatus(
    vm="db1", state="protected", reason="epoch by epoch to beta", peer="beta", term=3, committed=812,
    committed_age_ms=61.2, epoch_ms=50, pause_ms_p50=6.91, pause_ms_p99=9.4, bytes_per_epoch=52000.0, held_bytes=1536,
    gate="tap", monitor="libvirt", accel="tcg",
)  # fmt: skip
BARE = VmStatus(vm="db2")
STANDBY = StandbyStatus(vm="db2", state="ready", peer="gamma", term=9, committed=4, primary_silence_ms=90)
DB1 = VmName("db1")
status_module = importlib.import_module("remusdb.cli.status")  # main.py has the verb by this name


class Terminal(io.StringIO):
    """Somebody sits there."""

    def isatty(self) -> bool:
        return True


class FakeDaemons:
    """Daemons of this machine; notes what they were asked."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.asked: list[tuple[str, Request[Any]]] = []
        self._servers: list[ControlServer] = []

    def start(self, name: str, answers: dict[type[Request[Any]], object]) -> None:
        """A daemon with these answers by request."""
        handlers = {kind: self._handler(name, answer) for kind, answer in answers.items()}
        server = ControlServer(self.run_dir / f"{name}.sock", handlers)
        server.start()
        self._servers.append(server)

    def _handler(self, name: str, answer: object) -> Handler:
        def handle(asked: Request[Any], progress: ProgressFn) -> object:
            self.asked.append((name, asked))
            progress(Progress(step="memory", done=256, total=512, unit="MiB"))
            if isinstance(answer, RemusError):
                raise answer
            return answer

        return handle

    def stop(self) -> None:
        """End them all."""
        for server in self._servers:
            server.close()


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[FakeDaemons]:
    found = FakeDaemons(tmp_path)
    yield found
    found.stop()


def run(daemons: FakeDaemons, *words_: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--run-dir", str(daemons.run_dir), *words_])
    assert result.exit_code == exit_code, result.output
    return result


def test_status_answers_first_and_then_shows_a_table(daemons: FakeDaemons) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[PRIMARY, BARE])})
    lines = run(daemons, "status").stdout.splitlines()
    assert lines[0] == "PROTECTED  db1 to beta"
    head = lines[2].split()
    assert head == "VM ROLE STATE PEER TERM EXPOSED REPLIES WAIT PAUSE PAUSED CLOCK EPOCHS SENT HELD".split()
    for word in ("protected", "beta", "61 ms", "6.9/9.4 ms", "1.5 KiB"):
        assert word in lines[3]
    assert lines[4].split()[:4] == ["db2", "primary", "unprotected", "-"]
    assert "db1: epoch by epoch to beta" in lines and "db2: no protection was asked for" in lines


def test_status_of_a_vm_that_is_not_protected_is_exit_code_3(daemons: FakeDaemons) -> None:
    solo = replace(PRIMARY, state="solo", reason="beta is silent", hint="look at beta")
    daemons.start("host", {HostStatus: HostVms(vms=[solo])})
    told = run(daemons, "status", exit_code=3).stdout.splitlines()
    assert told[:2] == ["NOT PROTECTED  db1: beta is silent", "to do: db1: look at beta"]
    found = json.loads(run(daemons, "status", "--json", exit_code=3).stdout)
    assert found["verdict"] == "not-protected"
    assert found["not_protected"] == [
        {"vm": "db1", "reason": "beta is silent", "why": plain(PRIMARY.why), "hint": "look at beta"}
    ]
    assert run(daemons, "status", "db1", exit_code=3).stdout.startswith("NOT PROTECTED  db1: beta is silent\n")


def test_status_merges_both_daemons(daemons: FakeDaemons) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[PRIMARY, BARE], warnings=["libvirt is slow"])})
    daemons.start("agent", {AgentStatus: AgentVms(vms=[STANDBY])})
    result = run(daemons, "status", "--json")
    told = {"verdict": "protected", "not_protected": [], "vms": [plain(PRIMARY), plain(STANDBY)]}
    assert json.loads(result.stdout) == told
    assert "libvirt is slow" in result.stderr
    told = {"verdict": "nothing-to-protect", "not_protected": [], "vms": [plain(STANDBY)]}
    assert json.loads(run(daemons, "status", "--agent", "--json").stdout) == told
    said = run(daemons, "status").stdout
    assert "this host is the backup of db2 of gamma (ready)" in said
    assert "epoch 4; gamma was heard 90 ms ago\n" in said


@pytest.mark.parametrize(("heartbeat", "told"), [("connection", ", over its connection alone\n"), ("datagrams", "\n")])
def test_a_backup_says_where_no_heartbeat_comes_beside_the_connection(
    daemons: FakeDaemons, heartbeat: Literal["connection", "datagrams"], told: str
) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[])})
    daemons.start("agent", {AgentStatus: AgentVms(vms=[replace(STANDBY, heartbeat=heartbeat)])})
    assert f"gamma was heard 90 ms ago{told}" in run(daemons, "status").stdout


def test_status_of_the_agent_alone_is_never_exit_code_3(daemons: FakeDaemons) -> None:
    """A package's script asks it whether a replica is kept here, and takes another exit code for no answer."""
    promoted = replace(STANDBY, role="promoted", state="promoted", reason="taken over")
    daemons.start("agent", {AgentStatus: AgentVms(vms=[promoted])})
    assert json.loads(run(daemons, "status", "--agent", "--json").stdout)["verdict"] == "not-protected"
    run(daemons, "status", exit_code=3)


@pytest.mark.parametrize("warnings", [[], ["libvirt is silent"]])
def test_a_vm_that_was_taken_over_and_removed_since_does_not_count(daemons: FakeDaemons, warnings: list[str]) -> None:
    """Unless libvirt did not say whether it is there. The verdict of the others is not spoilt by it for good."""
    promoted = replace(STANDBY, vm="old", role="promoted", state="promoted", reason="taken over")
    daemons.start("agent", {AgentStatus: AgentVms(vms=[promoted])})
    daemons.start("host", {HostStatus: HostVms(vms=[PRIMARY], warnings=warnings)})
    told = run(daemons, "status", exit_code=3 if warnings else 0).stdout
    assert told.startswith("NOT PROTECTED  old: taken over" if warnings else "PROTECTED  db1 to beta\n")


def test_a_vm_that_was_taken_over_and_is_there_counts(daemons: FakeDaemons) -> None:
    promoted = replace(STANDBY, vm="db2", role="promoted", state="promoted", reason="taken over")
    daemons.start("agent", {AgentStatus: AgentVms(vms=[promoted])})
    daemons.start("host", {HostStatus: HostVms(vms=[PRIMARY, BARE])})
    assert run(daemons, "status", exit_code=3).stdout.startswith("NOT PROTECTED  db2: taken over")


def test_status_of_one_vm_in_full(daemons: FakeDaemons) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[PRIMARY])})
    out = run(daemons, "status", "db1").stdout
    assert out.startswith("PROTECTED  db1 to beta\n\nvm ")
    assert "committed_age      61 ms\n" in out
    assert "bytes_per_epoch    51 KiB\n" in out
    assert daemons.asked == [("host", HostStatus(vm="db1"))]


def test_status_of_no_vm(daemons: FakeDaemons) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[])})
    told = run(daemons, "status").stdout
    assert told == "NOTHING TO PROTECT  no VM of this host is to have a backup\nNo VMs here.\n"
    assert "no VM db9" in run(daemons, "status", "db9", exit_code=1).stderr


def test_status_with_one_daemon_dead(daemons: FakeDaemons) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[PRIMARY])})
    (daemons.run_dir / "agent.sock").touch()
    result = run(daemons, "status", "--json")
    assert json.loads(result.stdout)["vms"] == [plain(PRIMARY)]
    assert "E-PEER" in result.stderr


@pytest.mark.parametrize("left", ["no socket", "a socket of one that died"])
def test_status_without_the_host_daemon_does_not_say_protected(daemons: FakeDaemons, left: str) -> None:
    daemons.start("agent", {AgentStatus: AgentVms(vms=[STANDBY])})
    if left != "no socket":
        (daemons.run_dir / "host.sock").touch()
    assert run(daemons, "status", exit_code=3).stdout.startswith("NOT PROTECTED  the host daemon does not answer")


def test_status_is_watched_until_it_is_interrupted(daemons: FakeDaemons, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[replace(PRIMARY, state="held", reason="beta is silent")])})
    rounds: list[float] = []

    def sleep(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 1:
            daemons.stop()  # then nobody knows: that is shown, and watched on
        if len(rounds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_module, "_wait", sleep)
    told = run(daemons, "status", "--watch", exit_code=5).stdout
    assert (
        told.startswith("NOT PROTECTED  db1: beta is silent\n") and told.count("NOT PROTECTED  the host daemon ") == 2
    )
    assert rounds == [1.0] * 3
    run(daemons, "status", "--watch", "--json", exit_code=2)


@pytest.mark.parametrize("arguments", [["status"], ["status", "--agent"], ["protect", "db1", "--to", "beta"]])
def test_no_daemon(daemons: FakeDaemons, arguments: list[str]) -> None:
    result = run(daemons, *arguments, exit_code=5)
    assert result.stderr.startswith("remusdb: E-PEER the ")
    assert "hint: start it: systemctl start remusdb-" in result.stderr
    said = "NOT PROTECTED  no daemon of this host answers: nothing is known\n"
    assert result.stdout == (said if arguments == ["status"] else "")


def test_run_dir_after_the_verb_and_from_the_environment(daemons: FakeDaemons) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[])})
    for arguments, env in (
        (["status", "--run-dir", str(daemons.run_dir)], {}),
        (["status"], {"REMUSDB_RUN_DIR": str(daemons.run_dir)}),
    ):
        assert CliRunner().invoke(cli, arguments, env=env).exit_code == 0


def test_protect(daemons: FakeDaemons) -> None:
    daemons.start("host", {Protect: PRIMARY})
    result = run(daemons, "protect", "db1", "--to", "beta")
    assert result.stdout.startswith("db1 is protected to beta: epochs every 50 ms, term 3, gate tap")
    assert result.stderr == "memory: 256 of 512 MiB\n"
    assert daemons.asked == [("host", Protect(vm=DB1, to="beta"))]
    assert json.loads(run(daemons, "protect", "db1", "--to", "beta", "--json").stdout) == plain(PRIMARY)


def test_protect_says_what_is_not_proven(daemons: FakeDaemons) -> None:
    daemons.start("host", {Protect: replace(PRIMARY, unproven="the standby is not proven: no memory")})
    result = run(daemons, "protect", "db1", "--to", "beta")
    assert result.stderr.endswith("remusdb: the standby is not proven: no memory\n")


def test_status_tells_when_the_standby_was_last_proven(daemons: FakeDaemons) -> None:
    proven = replace(PRIMARY, proven_at_ns=1_790_000_000_123_456_789)
    daemons.start("host", {HostStatus: HostVms(vms=[proven])})
    shown = run(daemons, "status", "db1").stdout
    assert re.search(r"^proven_at +2026-09-2\d \d\d:\d\d:\d\d\.123$", shown, re.MULTILINE), shown


@pytest.mark.parametrize(
    ("error", "code"),
    [(RefusedForSafety("no", hint="wait"), 4), (Fenced("term 4", hint="wait"), 7), (RemusError("no", hint="wait"), 1)],
)
def test_an_error_is_told_with_hint_and_exit_code(daemons: FakeDaemons, error: RemusError, code: int) -> None:
    daemons.start("host", {Unprotect: error})
    result = run(daemons, "unprotect", "db1", exit_code=code)
    assert result.stderr.splitlines()[-2:] == [f"remusdb: {error.id} {error}", "hint: wait"]


def test_unprotect(daemons: FakeDaemons) -> None:
    daemons.start("host", {Unprotect: Unprotected()})
    assert run(daemons, "unprotect", "db1").stdout == "db1 is no longer protected.\n"
    run(daemons, "unprotect", "db1", "--peer-is-dead")
    assert [asked for _, asked in daemons.asked] == [
        Unprotect(vm=DB1),
        Unprotect(vm=DB1, peer_is_dead=True),
    ]


def test_unprotect_tells_what_is_worth_a_word(daemons: FakeDaemons) -> None:
    daemons.start("host", {Unprotect: Unprotected(note="db1 does not run here")})
    assert "remusdb: db1 does not run here\n" in run(daemons, "unprotect", "db1").stderr


def a_check(name: str, ok: bool, level: Level = "required") -> Check:
    return Check(name, ok, level, f"{name} it is", f"mend {name}")


def test_check_that_looks_good(daemons: FakeDaemons) -> None:
    daemons.start("host", {CheckVm: Checked(checks=[a_check("kernel", True)])})
    assert run(daemons, "check", "db1").stdout == "  ok    kernel: kernel it is\nLooks good.\n"
    assert daemons.asked == [("host", CheckVm(vm=DB1))]


def test_check_with_advice(daemons: FakeDaemons) -> None:
    daemons.start("host", {CheckVm: Checked(checks=[a_check("socket", False, "advice")])})
    out = run(daemons, "check", "db1", "--to", "beta").stdout
    assert out == "  note  socket: socket it is\n        mend socket\nLooks good; notes: 1.\n"


def test_check_that_fails(daemons: FakeDaemons) -> None:
    found = [a_check("kernel", True), a_check("tpm", False), a_check("disk", False)]
    daemons.start("host", {CheckVm: Checked(checks=found)})
    result = run(daemons, "check", "db1", exit_code=8)
    assert "  FAIL  tpm: tpm it is\n        mend tpm\n" in result.stdout
    assert "cannot be protected: tpm, disk" in result.stderr
    assert json.loads(run(daemons, "check", "db1", "--json", exit_code=8).stdout) == {"checks": plain(found)}


def test_prepare(daemons: FakeDaemons) -> None:
    daemons.start("host", {Prepare: Prepared(changes=["adds a socket"])})
    assert run(daemons, "prepare", "db1").stdout.startswith("  adds a socket\nIn effect from the next start")
    assert json.loads(run(daemons, "prepare", "db1", "--json").stdout) == {"changes": ["adds a socket"]}


def test_prepare_again(daemons: FakeDaemons) -> None:
    daemons.start("host", {Prepare: Prepared(changes=[])})
    assert "nothing was changed" in run(daemons, "prepare", "db1").stdout


def test_failover(daemons: FakeDaemons, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons.start("agent", {Failover: TakenOver(term=4, epoch=812, resume_ms=23.7)})
    assert "use --yes" in run(daemons, "failover", "db1", exit_code=2).stderr
    assert daemons.asked == []
    out = run(daemons, "failover", "db1", "--yes").stdout
    assert out == "db1 runs here: term 4, epoch 812, resumed in 24 ms.\n"
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(click, "confirm", lambda text, **_: asked.append(text))
    failover_module._confirm("db1")
    assert "Resume db1 here?" in asked[0]


def test_certs(tmp_path: Path) -> None:
    arguments = ["certs", "--out", str(tmp_path / "tls"), "--host", "alpha=192.0.2.1", "--host", "beta=192.0.2.2,b.lan"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "tls" / "beta" / "key.pem").exists()
    assert "on alpha" in result.stdout and "ca.key" in result.stderr
    assert CliRunner().invoke(cli, arguments).exit_code == 2
    assert CliRunner().invoke(cli, [*arguments, "--overwrite"]).exit_code == 0


@pytest.mark.parametrize("host", ["alpha", "=1.2.3.4", "alpha=", "alpha=,"])
def test_certs_of_a_host_without_address(tmp_path: Path, host: str) -> None:
    result = CliRunner().invoke(cli, ["certs", "--out", str(tmp_path), "--host", host])
    assert (result.exit_code, "NAME=ADDR" in result.stderr) == (2, True)


def test_config_check(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('[host]\nname = "alpha"\n[peers.beta]\naddress = "b"\n')
    assert (
        "good: host alpha, peers beta, epochs every 50 ms"
        in CliRunner().invoke(cli, ["config", "check", str(file)]).stdout
    )
    shown = json.loads(CliRunner().invoke(cli, ["config", "check", str(file), "--json"]).stdout)
    assert shown["protection"]["window"] == 4
    file.write_text('[agent]\nname = "beta"\n[failover]\nautomatic = false\n')
    told = CliRunner().invoke(cli, ["config", "check", str(file)]).stdout
    assert "takes over only when asked" in told and "standbys for nobody: name the hosts that may" in told
    file.write_text('[agent]\nname = "beta"\n[primaries.alpha]\n[primaries.gamma]\nvms = ["db1"]\n')
    assert "standbys for alpha, gamma;" in CliRunner().invoke(cli, ["config", "check", str(file)]).stdout
    file.write_text('[agent]\nname = "beta"\n[failover]\nsilence = 5\n')
    result = CliRunner().invoke(cli, ["config", "check", str(file)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"remusdb: E-CONFIG {file}: failover.silence: unknown key\nhint: did you mean `failover.silence_ms`?\n"
    )


@pytest.mark.parametrize("daemon", ["host", "agent"])
def test_a_daemon_with_a_bad_config_does_not_start(tmp_path: Path, daemon: str) -> None:
    result = CliRunner().invoke(cli, [daemon, "--config", str(tmp_path / "absent.toml")])
    assert (result.exit_code, "cannot be read" in result.stderr) == (2, True)


def test_a_bug_is_one_line_unless_asked(daemons: FakeDaemons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "ask", lambda *_: dict[str, str]()["changes"])
    assert "unexpected KeyError" in run(daemons, "prepare", "db1", exit_code=1).stderr
    assert "Traceback" not in run(daemons, "prepare", "db1", exit_code=1).stderr


@pytest.mark.parametrize("arguments", [["protect", "db1"], ["nonsense"], ["failover"], ["status", "--loud"]])
def test_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == 2


def test_steps_are_told_in_quarters(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps() as steps:
        for done in range(101):
            steps.show(Progress(step="disk vda", done=done, total=100, unit="MiB"))
        steps.show(Progress(step="memory", done=1 << 20, total=1 << 30, unit="bytes"))
        steps.show(Progress(step="standby"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["disk vda: 0 of 100 MiB", "disk vda: 25 of 100 MiB"]
    assert lines[4:] == ["disk vda: 100 of 100 MiB", "memory: 1.0 MiB of 1.0 GiB", "standby"]


@pytest.mark.parametrize(
    ("ms", "text"),
    [(None, "-"), (0, "0 ms"), (999.4, "999 ms"), (2130, "2.1 s"), (185_000, "3 min 5 s"), (7_800_000, "2 h 10 min")],
)
def test_age_in_words(ms: float | None, text: str) -> None:
    assert words.age(ms) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB")]
)
def test_size_in_words(count: float | None, text: str) -> None:
    assert words.size(count) == text


REHEARSED = Rehearsed(
    vm="db2", term=9, epoch=812, ok=True, resume_ms=41.2, took_ms=7300.0, frozen_ms=6000.0, held_back_epochs=118,
    checks=[Look("runs", True, "running after 5.0 s"), Look("tcp", False, "10.0.0.7 port 5432: timed out")],
)  # fmt: skip


def test_rehearse(daemons: FakeDaemons) -> None:
    daemons.start("agent", {Rehearse: REHEARSED})
    result = run(daemons, "rehearse", "db2", "--tcp", "5432")
    assert daemons.asked == [("agent", Rehearse(vm=VmName("db2"), tcp_port=5432, seconds=5))]
    for said in ("epoch 812 (term 9) runs.", "no  tcp    10.0.0.7 port 5432: timed out", "118 epochs waited"):
        assert said in result.stdout
    assert "memory: 256 of 512 MiB" in result.stderr
    assert json.loads(run(daemons, "rehearse", "db2", "--json").stdout) == plain(REHEARSED)


def test_rehearse_without_proof_of_life_fails(daemons: FakeDaemons) -> None:
    daemons.start("agent", {Rehearse: replace(REHEARSED, ok=False)})
    assert "no sign of life" in run(daemons, "rehearse", "db2", exit_code=1).stdout


@pytest.mark.parametrize("agent", [True, False])
def test_rehearse_on_the_wrong_host_names_the_right_one(daemons: FakeDaemons, agent: bool) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[PRIMARY])})
    if agent:
        daemons.start("agent", {Rehearse: NotProtected("no replica of VM db1 is on this host")})
    result = run(daemons, "rehearse", "db1", exit_code=3)
    assert "it is beta" in result.stderr


def test_rehearse_where_nobody_knows(daemons: FakeDaemons) -> None:
    daemons.start("agent", {Rehearse: NotProtected("no replica", hint="ask the agent of the backup host")})
    assert "hint: ask the agent of the backup host" in run(daemons, "rehearse", "db9", exit_code=3).stderr


def test_forget(daemons: FakeDaemons) -> None:
    done = Forgotten(vm="db1", quarantined_disks=["/kept/vda.raw"], moved=["/i/db1/forgotten-term7/vda.raw"])
    daemons.start("agent", {Forget: done})
    assert "use --yes" in run(daemons, "forget", "db1", exit_code=2).stderr
    out = run(daemons, "forget", "db1", "--yes").stdout
    assert out.startswith("db1 is forgotten here") and "not deleted: /kept/vda.raw\nnot deleted: /i/db1/" in out
    run(daemons, "forget", "db1", "--yes", "--lose-the-replica", "--json")
    assert [asked for _, asked in daemons.asked] == [Forget(vm=DB1), Forget(vm=DB1, lose_replica=True)]


EXPORTED = Exported(
    vm="db2", term=9, epoch=812, took_ms=7300.0, frozen_ms=0.1, put_by_bytes=65536,
    disks=[ExportedDisk("vda", "/srv/db2-vda.img", 8 << 30), ExportedDisk("vdb", "/srv/db2-vdb.img", 1 << 20)],
)  # fmt: skip


def test_export(daemons: FakeDaemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent is told where in its own words: an absolute path, and which folder this one means by it."""
    daemons.start("agent", {Export: EXPORTED})
    monkeypatch.chdir(tmp_path)
    result = run(daemons, "export", "db2", "--to", "db2.img", "--format", "qcow2")
    found = tmp_path.stat()
    asked = Export(vm=VmName("db2"), to=str(tmp_path / "db2.img"), folder=[found.st_dev, found.st_ino], format="qcow2")
    assert daemons.asked == [("agent", asked)]
    assert result.stdout.splitlines() == [
        "db2 at epoch 812 (term 9), in 7.3 s:", "  vda: /srv/db2-vda.img (8.0 GiB)", "  vdb: /srv/db2-vdb.img (1.0 MiB)"
    ]  # fmt: skip
    assert "memory: 256 of 512 MiB" in result.stderr
    assert json.loads(run(daemons, "export", "db2", "--to", "x", "--json").stdout) == plain(EXPORTED)


def test_export_to_a_folder_that_is_not_there(daemons: FakeDaemons) -> None:
    assert "/nowhere: No such file" in run(daemons, "export", "db2", "--to", "/nowhere/x", exit_code=2).stderr


def test_export_on_the_wrong_host_names_the_right_one(daemons: FakeDaemons) -> None:
    daemons.start("host", {HostStatus: HostVms(vms=[PRIMARY])})
    daemons.start("agent", {Export: NotProtected("no replica of VM db1 is on this host")})
    said = run(daemons, "export", "db1", "--to", "/db1.img", exit_code=3).stderr
    assert "on its backup say: remusdb export db1 (it is beta)" in said


def test_no_command_waits_for_a_library_that_it_does_not_need() -> None:
    """numpy alone took as long as all the rest; runbooks and hooks call the CLI again and again."""
    slow = ("numpy", "cryptography", "paramiko", "rich")
    command = f"import sys, remusdb.cli.main; sys.exit(' '.join(name for name in {slow} if name in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
