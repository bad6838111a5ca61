# SPDX-License-Identifier: Apache-2.0
"""A name that a peer sends is never a path, and no HELLO that is refused touches a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remusdb.core.messages import Welcome
from remusdb.names import file_stem
from tests.hostile.rig import Rig
from tests.hostile.sayings import MIB, domain_xml, hello

# As VM names: what leads out of a folder, and what only looks like it.
BAD_NAMES = [
    "./pg",
    "../images/pg",
    "pg/",
    "pg/.",
    "other/quarantine-term3",
    "",
    "pg\0",
    "pg\n",
    "pg\x1b[31m",
    "pg\u202e",
    "a" * 5000,
]
# What libvirt takes as a name, and looks like a path to the eye alone: it is one file's name in the folder.
ODD_NAMES = ["..", ".", "...", ".hidden", "%2f", "..%2f..%2fpg", "\u2215etc", "pg\t", "%2E%2E"]
BAD_TARGETS = ["../victim", "/etc/x", ".", "..", "", "vda/", "vda\0", "x" * 300, ".hidden", "vd a", "vda\n"]


def victim(folder: Path, name: str = "vda.raw", size: int = 3_000_000) -> Path:
    """A disk that is the only copy of something."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(b"precious" * (size // 8))
    return path


@pytest.fixture
def with_victims(rig: Rig) -> Rig:
    """`pg` was taken over and runs here; another VM's disks are quarantined; a file lies elsewhere."""
    rig.remember("pg", role="promoted", term=7, owner="beta", peer="gamma", reason="took over")
    victim(rig.images / "pg")
    victim(rig.images / "other" / "quarantine-term3")
    victim(rig.elsewhere / "victim", "data.raw")
    rig.start()
    return rig


@pytest.mark.parametrize("who", ["alpha", "gamma"])
def test_no_name_of_a_vm_leads_to_a_file(with_victims: Rig, who: str) -> None:
    names = [str(with_victims.elsewhere / "victim"), "../elsewhere/victim", "pg/../pg"]
    with with_victims.unchanged():
        for name in [*BAD_NAMES, *names]:
            for target, size in (("vda", MIB), ("data", MIB), ("vda", 3_000_000)):
                disks = [{"target": target, "size": size, "allocated": 0}]
                with_victims.hello(hello(name, who, disks=disks), who)[0].close()
    assert not with_victims.fences


def test_an_odd_name_has_its_own_files(rig: Rig) -> None:
    rig.remember("pg", role="promoted", term=7, owner="beta", peer="gamma", reason="took over")
    victim(rig.images / "pg")
    victim(rig.elsewhere, "vda.raw")
    rig.start(made_up=True)
    before = rig.content()
    for name in ODD_NAMES:
        caller, answer = rig.hello(hello(name, "gamma"), "gamma")
        if isinstance(answer, Welcome):
            caller.say_bye(answer.term)
        caller.close()
    after = rig.content()
    mine = [rig.images / file_stem(name) for name in ODD_NAMES]
    mine += [rig.state_dir / "vms" / f"{file_stem(name)}.json" for name in ODD_NAMES]
    others = {name: told for name, told in after.items() if not {Path(name), Path(name).parent} & set(mine)}
    assert others == before
    assert all(Path(path).resolve().is_relative_to(rig.folder.resolve()) for path in after)


def test_a_name_that_is_not_a_vms_is_refused_in_words(agent: Rig) -> None:
    with agent.unchanged():
        for name in BAD_NAMES:
            refuse = agent.refused(hello(name, "gamma"), "gamma")
            assert not refuse.fenced and not refuse.renounced and refuse.term == 0, (name, refuse)


def test_no_target_of_a_disk_leads_to_a_file(with_victims: Rig) -> None:
    with with_victims.unchanged():
        for target in BAD_TARGETS:
            disks = [{"target": target, "size": MIB, "allocated": 0}]
            with_victims.refused(hello("new", "gamma", disks=disks, domain_xml=domain_xml("new")), "gamma")


def test_the_name_is_the_one_in_the_xml(agent: Rig) -> None:
    with agent.unchanged():
        for other in ("pg2", "", "../pg", "PG"):
            agent.refused(hello("pg", "gamma", domain_xml=domain_xml(other)), "gamma")
        agent.refused(hello("pg", "gamma", domain_xml="<domain type='kvm'><devices/></domain>"), "gamma")


def test_the_uuid_is_one_and_the_one_in_the_xml(agent: Rig) -> None:
    with agent.unchanged():
        for uuid in ("", "x", "../../x", "0" * 32, "9b8f9a52-b9a8-11f0-8000-000000000001", "\0" * 36):
            agent.refused(hello("pg", "gamma", uuid=uuid), "gamma")


def test_an_image_that_is_there_survives_a_session_that_is_not_agreed_on(rig: Rig) -> None:
    """Same name, role none: the file may become a base, but not before everything else was found to be in order."""
    victim(rig.images / "pg")
    rig.start()
    bad: list[dict[str, Any]] = [
        {"domain_xml": "<domain"},
        {"arbiter": "another"},
        {"disks": [{"target": "vda", "size": MIB}, {"target": "../x", "size": MIB}]},
        {"disks": [{"target": "vda", "size": MIB}, {"target": "vda", "size": MIB}]},
        {"disks": [{"target": "vda", "size": MIB}, {"target": "vdb", "size": 1 << 62}]},
        {"disks": [{"target": "vda", "size": MIB}, {"target": "vdb", "size": -1}]},
        {"blocks": [{"name": "pc.ram", "size": 1 << 50}]},
    ]
    with rig.unchanged():
        for changes in bad:
            rig.refused(hello("pg", "gamma", **changes), "gamma")
