# SPDX-License-Identifier: Apache-2.0
"""The Vagrantfile is one that Vagrant takes, and stands for the hosts that the box was made for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.lab.paths import REPO
from tools.machines.box import ADDRESSES
from tools.machines.validate import validate

VAGRANTFILE = REPO / "vagrant" / "Vagrantfile"


@pytest.mark.timeout(1200)  # Debian 13 makes itself a small Debian 12 first
def test_vagrant_takes_the_file(tmp_path: Path) -> None:
    said = validate(VAGRANTFILE, tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.timeout(1200)
def test_a_mistake_in_it_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(VAGRANTFILE.read_text().replace("libvirt.cpus = 2", "libvirt.cpu_count = 2"))
    said = validate(wrong, tmp_path / "work")
    assert said.returncode != 0
    assert "cpu_count" in said.stdout + said.stderr


def test_certificates_are_made_for_the_addresses_that_it_gives() -> None:
    (table,) = re.findall(r"^ADDRESSES = \{(.*)\}", VAGRANTFILE.read_text(), re.MULTILINE)
    assert dict(re.findall(r'"(\w+)" => "([\d.]+)"', table)) == ADDRESSES
