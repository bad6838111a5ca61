# SPDX-License-Identifier: Apache-2.0
"""What we ship for operators is what the code takes: the examples, the README's commands, the unit files."""

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
EXAMPLES = ROOT / "packaging" / "examples"
UNITS = sorted((ROOT / "packaging" / "systemd").glob("*.service"))


def test_the_configurations_that_are_shipped_as_examples_load() -> None:
    assert load_agent(EXAMPLES / "agent.toml").network.bridges["br0"] == "br-lan"
    assert load_host(EXAMPLES / "host.toml").for_vm("reporting").epoch_ms == 200


def test_the_commands_in_the_readme_exist() -> None:
    named = set(re.findall(r"^(?:\| `)?remusdb ([a-z]+)", README, re.MULTILINE))
    assert named >= {"certs", "check", "prepare", "protect", "status", "failover", "unprotect", "config"}
    assert named <= set(cli.commands)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_runs_what_there_is(unit: Path) -> None:
    parser = read_unit(unit)
    keys = [key for key in ("execstart", "execstop") if "remusdb" in parser["Service"].get(key, "")]
    assert keys
    for key in keys:
        program, verb, *arguments = shlex.split(parser["Service"][key])
        assert Path(program).name == "remusdb"
        assert isinstance(cli.commands[verb].make_context(verb, arguments), click.Context)
        assert unit.stem == f"remusdb-{verb}"


def test_there_is_a_unit_for_each_daemon_and_for_the_hosts_end() -> None:
    kinds = {unit.stem: read_unit(unit)["Service"]["Type"] for unit in UNITS}
    assert kinds == {
        "remusdb-agent": "notify",
        "remusdb-host": "notify",
        "remusdb-evacuate": "oneshot",
        "remusdb-console": "notify",
    }


def test_vms_are_moved_before_anything_that_they_need_is_stopped() -> None:
    """Units are stopped in the opposite order of their start."""
    before = " ".join(
        line.partition("=")[2]
        for line in (ROOT / "packaging/systemd/remusdb-evacuate.service").read_text().splitlines()
        if line.startswith("After=")
    ).split()
    needed = {"remusdb-host.service", "remusdb-agent.service", "libvirtd.service", "libvirt-guests.service"}
    assert needed <= set(before) and "network-online.target" in before


def read_unit(unit: Path) -> configparser.ConfigParser:
    """A unit file; of a key that stands several times the last one counts here."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read(unit)
    return parser
