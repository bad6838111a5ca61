# SPDX-License-Identifier: Apache-2.0
"""What the .deb depends on and brings, its man page, and the rule that it gives AppArmor. In Debians: tests/dist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from remusdb.cli.main import cli
from remusdb.preflight import apparmor
from tools.dist import needs
from tools.dist.manpage import man_page
from tools.lab.paths import REPO


def test_what_a_debian_has_in_a_version_that_will_do_is_depended_on_and_the_rest_is_brought() -> None:
    depends = [*needs.depends().split(", "), *needs.recommends().split(", ")]
    for debian in needs.debians():
        brought = set(debian.brought())
        for requirement in [*needs.required(), *needs.extra()]:
            package = needs.debian_name(requirement.name)
            (line,) = [line for line in depends if line.startswith(f"{package} ")] or [""]
            installed = bool(line) and (debian.codename == "trixie" or "| python3 (<< 3.12)" not in line)
            assert installed != (requirement.name in brought), (debian.codename, requirement.name)


def test_what_is_brought_is_pinned_with_hashes_once() -> None:
    for debian in needs.debians():
        names = re.findall(r"^([\w.-]+)==\S+ \\$", needs.locked(debian), re.MULTILINE)
        assert sorted(names) == debian.brought()
        assert needs.locked(debian).count("--hash=sha256:") >= len(names)


@pytest.mark.parametrize(
    ("debian", "upstream"),
    [
        ("1:1.24.2-1+deb12u1", "1.24.2"),
        ("8.2.0+0.really.8.1.8-1", "8.1.8"),
        ("1:2.2.4+ds-1", "2.2.4"),
        ("5.9.4-1+b1", "5.9.4"),
    ],
)
def test_upstreams_version_in_debians(debian: str, upstream: str) -> None:
    assert needs.upstream(debian) == upstream


def test_the_man_page_has_each_verb_and_each_option() -> None:
    page = man_page(cli, "remusdb", "1.2").replace(r"\-", "-")
    assert page.startswith('.TH REMUSDB 1 "" "remusdb 1.2"')
    for verb, command in cli.commands.items():
        assert f'.SS "remusdb {verb} ' in page
        for option in (one for one in command.params if isinstance(one, click.Option) and not one.hidden):
            assert option.opts[0] in page, (verb, option.opts)
    assert ".SH EXIT STATUS" in page and "8 cannot be protected" in page


def test_no_word_of_a_help_text_is_a_command_to_troff() -> None:
    @click.group(help="Does things.\n\n.so /etc/passwd is \\fBnot\\fR read")
    def group() -> None: ...

    page = man_page(group, "x", "1")
    assert "\n.so" not in page and r"\&.so" in page and r"\efBnot" in page


def test_the_rule_for_apparmor_is_what_the_check_looks_for(tmp_path: Path) -> None:
    shipped = (REPO / "packaging/apparmor/libvirt-qemu").read_text()
    (tmp_path / "remusdb").write_text(shipped)
    found = apparmor.look("<secmodel><model>apparmor</model></secmodel>", tmp_path, tmp_path / "none")
    assert found.confined and found.channel and found.monitor
    assert apparmor.CHANNEL_RULE in shipped and apparmor.MONITOR_RULE in shipped


def test_the_units_run_the_program_that_the_package_installs() -> None:
    for unit in (REPO / "packaging/systemd").glob("*.service"):
        assert " /usr/bin/remusdb " in unit.read_text().replace("=/usr", "= /usr"), unit
