# SPDX-License-Identifier: Apache-2.0
"""What we ship for operators is what the code takes: the README's configurations and commands, the unit files."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import click
import pytest

from remusdb.cli.main import cli
from remusdb.config import load_agent, load_host

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
UNITS = sorted((ROOT / "packaging" / "systemd").glob("*.service"))


def test_the_configurations_in_the_readme_load(tmp_path: Path) -> None:
    agent, host = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "agent.toml").write_text(agent)
    (tmp_path / "host.toml").write_text(host)
    assert load_agent(tmp_path / "agent.toml").network.bridges["br0"] == "br-lan"
    assert load_host(tmp_path / "host.toml").for_vm("reporting").epoch_ms == 200


def test_the_commands_in_the_readme_exist() -> None:
    named = set(re.findall(r"^(?:\| `)?remusdb ([a-z]+)", README, re.MULTILINE))
    assert named >= {"certs", "check", "prepare", "protect", "status", "failover", "unprotect", "config"}
    assert named <= set(cli.commands)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_what_there_is(unit: Path) -> None:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.read(unit)
    program, verb, *arguments = shlex.split(parser["Service"]["ExecStart"])
    assert Path(program).name == "remusdb"
    command = cli.commands[verb]
    context = command.make_context(verb, arguments)
    assert isinstance(context, click.Context)
    assert unit.stem == f"remusdb-{verb}"
    assert parser["Service"]["Type"] == "notify"


def test_there_is_a_unit_for_each_daemon() -> None:
    assert [unit.stem for unit in UNITS] == ["remusdb-agent", "remusdb-host"]
