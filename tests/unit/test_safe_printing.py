# SPDX-License-Identifier: Apache-2.0
"""What another host, a guest, QEMU, the arbiter or a file says is shown as text: no terminal obeys it, no log has a
line of it that passes for ours, and no program that reads our JSON is handed it raw."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from remusdb import log
from remusdb.cli import bar as bar_module
from remusdb.cli.main import cli
from remusdb.cli.progress import Steps
from remusdb.control import ControlServer, LineChannel, Progress, Request
from remusdb.control.api import (
    AgentStatus,
    AgentVms,
    Checked,
    CheckVm,
    Evacuate,
    Evacuated,
    Export,
    Exported,
    ExportedDisk,
    Failover,
    HostStatus,
    HostVms,
    Look,
    Moved,
    Prepare,
    Prepared,
    Protect,
    Rehearse,
    Rehearsed,
    Stayed,
    Switched,
    Switchover,
    TakenOver,
    Unprotect,
    Unprotected,
)
from remusdb.control.status import VmStatus
from remusdb.deadline import Deadline
from remusdb.errors import PeerRefused, RemusError
from remusdb.history import Event, History, read
from remusdb.hooks import Hooks
from remusdb.preflight.checks import Check
from remusdb.printable import json_text

ROOT = Path(__file__).parents[2]
# A title, a cleared screen, C1's own CSI, DEL, the direction turned, a line of its own, NUL.
FOUL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnorw\u2066\nremusdb: all is well\r\x00"
HARMLESS = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]*\Z")
VM = VmStatus(
    vm="db1", state="held", reason=FOUL, peer=FOUL, term=3, committed=812, clock_slow=FOUL, owner=FOUL, gate=FOUL,
    quarantined_disks={FOUL: FOUL},
)  # fmt: skip
EVENT: dict[str, Any] = {
    "vm": "db1", "host": "alpha", "by": "worker", "event": "held", "was": "protected", "now": "held", "reason": FOUL,
    "term": 1, "epoch": 812, "heard_ms_ago": 510.5, "peer": "beta", "details": {"said": FOUL, "epochs": 4},
}  # fmt: skip
ANSWERS: dict[type[Request[Any]], tuple[str, object]] = {
    HostStatus: ("host", HostVms(vms=[VM], warnings=[FOUL])),
    AgentStatus: ("agent", AgentVms(vms=[])),
    CheckVm: ("host", Checked(checks=[Check(FOUL, False, "advice", FOUL, FOUL)])),
    Protect: ("host", VmStatus(vm="db1", state="protected", gate=FOUL, unproven=FOUL)),
    Switchover: ("host", Switched(to=FOUL, term=4, took_ms=40.0)),
    Evacuate: ("host", Evacuated(moved=[Moved(vm=FOUL, to=FOUL, term=2, took_ms=1)], note=FOUL,
                                 stayed=[Stayed(vm=FOUL, reason=FOUL)])),
    Unprotect: ("host", Unprotected(note=FOUL)),
    Prepare: ("host", Prepared(changes=[FOUL])),
    Failover: ("agent", TakenOver(term=4, epoch=9, resume_ms=12.0, how=FOUL)),
    Rehearse: ("agent", Rehearsed(vm=FOUL, term=4, epoch=9, ok=True, resume_ms=3.0, took_ms=4.0, frozen_ms=1.0,
                                  checks=[Look(FOUL, True, FOUL)], held_back_epochs=2)),
    Export: ("agent", Exported(vm=FOUL, term=4, epoch=9, disks=[ExportedDisk(FOUL, FOUL, 512)], took_ms=4.0,
                               frozen_ms=1.0, put_by_bytes=2)),
}  # fmt: skip
VERBS = [
    ["status"], ["status", "db1"], ["status", "--json"], ["check", "db1"], ["check", "db1", "--json"],
    ["protect", "db1", "--to", "beta"], ["switchover", "db1"], ["evacuate"], ["evacuate", "--json"],
    ["unprotect", "db1"], ["prepare", "db1"], ["failover", "db1", "--yes"], ["rehearse", "db1"],
    ["rehearse", "db1", "--json"], ["export", "db1", "--to", "/x.img"], ["export", "db1", "--to", "/x.img", "--json"],
]  # fmt: skip


def require_harmless(text: str) -> None:
    assert HARMLESS.match(text), repr(text)
    assert not any(line.startswith("remusdb: all is well") for line in text.splitlines()), text


@pytest.fixture
def answer(tmp_path: Path) -> Iterator[dict[str, RemusError]]:
    """Both daemons; with an error under a verb it is that, else what ANSWERS has."""
    errors: dict[str, RemusError] = {}
    servers = []
    for daemon in ("host", "agent"):

        def handler(op: str, good: object) -> Any:
            def handle(_asked: Any, progress: Any) -> object:
                progress(Progress(step=FOUL, done=1, total=2, unit=FOUL))
                if op in errors:
                    raise errors[op]
                return good

            return handle

        handlers = {kind: handler(kind.op(), good) for kind, (of, good) in ANSWERS.items() if daemon == of}
        server = ControlServer(tmp_path / f"{daemon}.sock", handlers)
        server.start()
        servers.append(server)
    yield errors
    for server in servers:
        server.close()


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_what_a_daemon_passes_on(answer: dict[str, RemusError], tmp_path: Path, words: list[str]) -> None:
    told = CliRunner().invoke(cli, ["--run-dir", str(tmp_path), *words])
    assert told.exit_code in (0, 1, 3) and "Traceback" not in told.stderr, told.output
    for stream in (told.stdout, told.stderr):
        require_harmless(stream)
    assert "owned" in told.output or words[0] == "failover", "the text itself is still told"
    if "--json" in words:
        assert told.stdout.isascii() and "\\u001b]0;owned" in told.stdout


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_what_a_peer_refuses_with(answer: dict[str, RemusError], tmp_path: Path, words: list[str]) -> None:
    answer[words[0]] = PeerRefused(f"beta refuses: {FOUL}", hint=FOUL)
    for debug in ([], ["--debug"]):
        told = CliRunner().invoke(cli, ["--run-dir", str(tmp_path), *debug, *words])
        assert told.exit_code == 5
        for stream in (told.stdout, told.stderr):
            require_harmless(stream)
        assert "E-PEER-REFUSED beta refuses: " in told.stderr and "owned" in told.stderr


def test_an_answer_that_no_utf8_can_hold_is_told() -> None:
    """A file's name in an error, for one: half a character that Python carries along."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        LineChannel(mine).send({"error": {"message": "no such file: \udcff.img"}})
        assert LineChannel(theirs).receive(Deadline.after(20)) == {"error": {"message": "no such file: ?.img"}}


@pytest.mark.parametrize("charset", ["latin-1", "ascii"])
def test_a_terminal_without_unicode(answer: dict[str, RemusError], tmp_path: Path, charset: str) -> None:
    """A peer's text must not make `status` fail there."""
    told = CliRunner(charset=charset).invoke(cli, ["--run-dir", str(tmp_path), "status"])
    assert told.exit_code == 3 and "owned" in told.stdout, told.output
    answer["status"] = PeerRefused(FOUL, hint=FOUL)
    told = CliRunner(charset=charset).invoke(cli, ["--run-dir", str(tmp_path), "status"])
    assert told.exit_code == 5 and "owned" in told.stderr


def test_history(tmp_path: Path) -> None:
    """Also of a file that somebody else wrote."""
    (tmp_path / "history").mkdir()
    line = json_text({**EVENT, "at_ns": 1, "host": FOUL, "was": FOUL, "peer": FOUL})
    (tmp_path / "history" / "db1.jsonl").write_text(line + "\n")
    for more in ([], ["--json"]):
        told = CliRunner().invoke(cli, ["history", "db1", "--state-dir", str(tmp_path), *more])
        assert told.exit_code == 0 and "owned" in told.stdout
        require_harmless(told.stdout)
        assert len(told.stdout.splitlines()) == 2 or more


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich has commands of its own, in square brackets."""
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, color_system=None, width=200)
    monkeypatch.setattr(bar_module, "Console", lambda **_how: console)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Steps() as steps:
        steps.show(Progress(step=f"[link=http://evil]x[/link]{FOUL}", done=1, total=2, unit=FOUL))
    shown = terminal.getvalue()
    assert "[link=http://evil]x[/link]" in shown and "owned" in shown
    assert "\x1b]" not in shown and "\x1b[2J" not in shown and "\u202e" not in shown and "\x9b" not in shown


@pytest.mark.parametrize("kind", ["", "json"])
def test_the_log(kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setenv("REMUSDB_LOG", kind)
    log.setup()
    try:
        logger = logging.getLogger("remusdb.test")
        logger.warning("beta said %s", FOUL, extra={"vm": FOUL})
        try:
            raise RemusError(f"{FOUL}\n2026-01-31T12:00:00.123Z INFO remusdb.host: all is well")
        except RemusError:
            logger.exception("it failed")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    said = capsys.readouterr().err
    require_harmless(said)
    lines = said.splitlines()
    if kind:
        assert len(lines) == 2 and said.isascii() and FOUL in json.loads(lines[0])["message"]
    else:
        assert [line[:2] for line in lines[2:]] == ["  "] * len(lines[2:]) and len(lines) > 3


def test_a_hook_is_told_in_plain_text(tmp_path: Path) -> None:
    folder, out = tmp_path / "hooks.d", tmp_path / "out"
    folder.mkdir(mode=0o755)
    hook = folder / "tell"
    hook.write_text(f"#!/bin/sh\nenv > {out}.env\ncat > {out}.new\nmv {out}.new {out}\n")
    hook.chmod(0o755)
    history = History(tmp_path, Hooks(folder))
    history.record(Event(**EVENT, at_ns=time.time_ns()))
    assert history.flush(20)
    require_harmless(out.read_text())
    require_harmless((tmp_path / "out.env").read_text())
    told = json.loads(out.read_text())
    require_harmless(told["reason"])
    require_harmless(told["details"]["said"])
    assert out.read_text().isascii() and "owned" in told["reason"] and "\n" not in told["reason"]
    assert read(tmp_path, "db1")[0].reason == told["reason"]


def test_json_loses_nothing_that_can_be_told() -> None:
    assert json.loads(json_text(["half a character: \ud800", "\U0001f600"])) == ["half a character: ?", "\U0001f600"]
    value = {"a": FOUL, "b": [1, None, True, 2.5, FOUL], "\x7f": {"é": "ü"}}
    assert json.loads(json_text(value)) == value
    assert json_text(value).isascii() and json_text(value).isprintable()


def test_the_command_line_has_one_mouth() -> None:
    """Nothing but `say` writes to a terminal, also in a verb that is made tomorrow."""
    for file in (ROOT / "remusdb" / "cli").glob("*.py"):
        if file.name != "say.py":
            found = re.findall(r"click\.s?echo|\bprint\(|std(?:out|err)\.write", file.read_text())
            assert not found, f"{file.name}: {found}"
