# SPDX-License-Identifier: Apache-2.0
"""Pages that are made from the code are of the code as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from remusdb.cli.main import cli
from remusdb.config import AgentConfig, Arbiter, HostConfig
from remusdb.console.config import Console
from tools import clidoc, configdoc

ROOT = Path(__file__).parents[2]


def test_the_command_lines_page_is_current() -> None:
    """Made in a process of its own: click keeps the `--help` of whoever asked a verb for it first."""
    made = "from tools import clidoc; print(clidoc.page(), end='')"
    page = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert clidoc.PAGE.read_text() == page, "python -m tools.clidoc"


def test_each_verb_is_in_it_and_in_the_readme() -> None:
    page, readme = clidoc.PAGE.read_text(), (ROOT / "README.md").read_text()
    for verb in cli.commands:
        assert f"\n## remusdb {verb}\n" in page
        assert verb in ("agent", "host") or f"remusdb {verb}" in readme, verb


def test_the_settings_page_is_current() -> None:
    assert configdoc.PAGE.read_text() == configdoc.page(), "python -m tools.configdoc"


def test_every_setting_has_words_and_no_words_are_left_over() -> None:
    known = [*configdoc.settings(HostConfig), *configdoc.settings(AgentConfig)]
    keys = {one.key for one in known} | {one.key for one in configdoc.settings(Arbiter, "arbiter.")}
    keys |= {one.key for one in configdoc.settings(Console, "console.")}
    assert keys == set(configdoc.WORDS)
    assert set(configdoc.WITHOUT) <= keys


@pytest.mark.parametrize("name", ["README.md", "docs/compare.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link
