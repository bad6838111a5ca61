# SPDX-License-Identifier: Apache-2.0
"""The daemons' log lines and what they tell systemd."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from remusdb import log
from remusdb.cli.main import cli
from remusdb.control.notify import notify
from remusdb.errors import UsageError
from remusdb.quietly import BURST_NOISY, NOISY


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def tell() -> None:
    """One plain record, one with a field and an exception, one for programmers."""
    logger = logging.getLogger("remusdb.test")
    logger.info("protected to %s", "beta", extra={"vm": "db1"})
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed")
    logger.debug("detail")


def test_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REMUSDB_LOG", raising=False)
    log.setup()
    tell()
    first, second, *trace = capsys.readouterr().err.splitlines()
    assert first.endswith("Z INFO remusdb.test vm=db1: protected to beta")
    assert second.endswith("ERROR remusdb.test: failed")
    assert trace[-1] == "  ValueError: no"


def test_a_line_about_a_vm_says_where_it_stands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what `extra` carries otherwise nothing is lost, and what is not known yet is not there."""
    known: dict[str, object] = {}
    about = log.VmLog(logging.getLogger("remusdb.test"), "db1", lambda: known)
    monkeypatch.delenv("REMUSDB_LOG", raising=False)
    log.setup()
    about.warning("no route", extra=NOISY)
    known.update(term=7, epoch=812)
    about.info("held")
    about.debug("detail")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("WARNING remusdb.test vm=db1: no route")
    assert second.endswith("INFO remusdb.test vm=db1 term=7 epoch=812: held")
    monkeypatch.setenv("REMUSDB_LOG", "json")
    log.setup()
    about.info("held")
    record = json.loads(capsys.readouterr().err)
    assert (record["vm"], record["term"], record["epoch"]) == ("db1", 7, 812)


def test_a_flood_about_vms_is_cut_down_by_the_line_that_made_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REMUSDB_LOG", raising=False)
    log.setup()
    about = log.VmLog(logging.getLogger("remusdb.test"), "db1")
    for _ in range(50):
        about.warning("one kind", extra=NOISY)
        about.warning("another", extra=NOISY)
    said = capsys.readouterr().err
    assert said.count("one kind") == said.count("another") == BURST_NOISY


def test_every_line_of_a_process_that_has_one_vm_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of modules that know of no VM; what a line says itself goes first."""
    monkeypatch.delenv("REMUSDB_LOG", raising=False)
    monkeypatch.setattr(log, "_everywhere", dict)
    log.setup()
    known = {"vm": "db1", "term": 7, "epoch": 0}
    log.about(lambda: known)
    logging.getLogger("remusdb.net.tc").warning("gone")
    known["epoch"] = 3
    logging.getLogger("remusdb.net.tc").warning("back", extra={"term": 8})
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("WARNING remusdb.net.tc vm=db1 term=7 epoch=0: gone")
    assert second.endswith("WARNING remusdb.net.tc vm=db1 term=8 epoch=3: back")


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMUSDB_LOG", "json")
    log.setup(debug=True)
    tell()
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [record["level"] for record in records] == ["info", "error", "debug"]
    assert (records[0]["vm"], records[0]["message"]) == ("db1", "protected to beta")
    assert "ValueError: no" in records[1]["exception"]


def test_systemd_may_use_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"remusdb-test-{id(sys)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
    notify("STOPPING=1")  # nobody listens any more: logged, not raised
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


def test_logfmt_is_one_line_a_record(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By `form`, which processes that are started from here inherit; whatever the words are made of."""
    monkeypatch.setenv("REMUSDB_LOG", "json")
    log.setup(form="logfmt")
    assert os.environ["REMUSDB_LOG"] == "logfmt"
    tell()
    about = log.VmLog(logging.getLogger("remusdb.test"), "db 1", lambda: {"term": 7, "epoch": 812})
    about.warning('he said "no"\nlevel=info')
    first, failed, last = capsys.readouterr().err.splitlines()
    assert first.partition(" ")[2] == 'level=info logger=remusdb.test message="protected to beta" vm=db1'
    assert "level=error" in failed and "ValueError: no" in failed and "\\n" in failed
    assert last.partition("message=")[2] == r'"he said \"no\"\nlevel=info" vm="db 1" term=7 epoch=812'


@pytest.mark.parametrize("daemon", ["host", "agent"])
def test_a_daemon_is_told_the_form_of_its_log(daemon: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[str | None, str]] = []

    def setup(*, debug: bool, form: str | None, otherwise: str) -> None:
        seen.append((form, otherwise))
        raise UsageError("enough")

    monkeypatch.setattr(log, "setup", setup)
    file = tmp_path / "it.toml"
    table = '[peers.b]\naddress = "b"\n' if daemon == "host" else ""
    file.write_text(f'[{daemon}]\nname = "a"\nlog = "logfmt"\n{table}')
    for words in (["--log", "json"], []):
        CliRunner().invoke(cli, [daemon, "--config", str(file), *words])
    assert seen == [("json", "logfmt"), (None, "logfmt")]
    assert CliRunner().invoke(cli, [daemon, "--log", "xml"]).exit_code == 2


@pytest.mark.parametrize(
    ("form", "environment", "config", "wins"),
    [("json", "logfmt", "text", "json"), (None, "logfmt", "json", "logfmt"), (None, None, "json", "json")],
)
def test_the_command_goes_before_the_environment_and_that_before_the_configuration(
    form: str | None, environment: str | None, config: str, wins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers inherit what won."""
    monkeypatch.setenv("REMUSDB_LOG", "text")  # so that what is set here does not outlive the test
    if environment is None:
        monkeypatch.delenv("REMUSDB_LOG")
    else:
        monkeypatch.setenv("REMUSDB_LOG", environment)
    log.setup(form=form, otherwise=config)
    assert os.environ["REMUSDB_LOG"] == wins
    (handler,) = logging.getLogger().handlers
    assert type(handler.formatter) is log.FORMS[wins]
