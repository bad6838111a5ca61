# SPDX-License-Identifier: Apache-2.0
"""What the documents list is what there is: settings with defaults, operations of the control sockets, modules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remusdb.config import AgentConfig, Arbiter, HostConfig, Peer, Primary

ROOT = Path(__file__).parents[2]
MAPS: dict[tuple[type, str], tuple[str, type | None]] = {
    (HostConfig, "peers"): ("peers.NAME", Peer),
    (AgentConfig, "primaries"): ("primaries.NAME", Primary),
    (HostConfig, "vms"): ("vms.NAME.*", None),
    (AgentConfig, "disks"): ("disks.VM.TARGET", None),
}
MISSING = msgspec.NODEFAULT


def settings(kind: type, prefix: str = "") -> dict[str, Any]:
    """Each key that a configuration takes, and its default."""
    found: dict[str, Any] = {}
    for key in msgspec.structs.fields(kind):
        name, inner = MAPS.get((kind, key.name), (prefix + key.name, key.type))
        if key.name == "arbiter":
            found["arbiter.*"] = MISSING
        elif isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            found |= settings(inner, f"{name}.")
        else:
            found[name] = key.default
    return found


def documented(section: str) -> dict[str, str]:
    """Each key in the tables of a section of docs/configuration.md, and the default that it is said to have."""
    text = (ROOT / "docs/configuration.md").read_text()
    (part,) = [part for part in text.split("\n## ")[1:] if part.startswith(section)]
    rows = [row.split("|")[1:3] for row in part.splitlines() if row.startswith("| `")]
    keys = [(key, default) for names, default in rows for key in re.findall(r"`([^`]+)`", names)]
    assert len(keys) == len(dict(keys)), "a key is told twice"
    return dict(keys)


@pytest.mark.parametrize(
    ("section", "kind", "prefix"),
    [("host.toml", HostConfig, ""), ("agent.toml", AgentConfig, ""), ("`[arbiter]`", Arbiter, "arbiter.")],
)
def test_each_setting_is_documented_once_with_its_default(section: str, kind: type, prefix: str) -> None:
    real, told = settings(kind, prefix), documented(section)
    assert set(told) == set(real)
    for key, default in real.items():
        if isinstance(default, bool):
            assert told[key].strip() == str(default).lower(), key
        elif isinstance(default, int | str):
            assert re.match(rf" `?{re.escape(str(default))}`?( \(|$)", told[key].rstrip()), key


def test_each_module_of_the_agent_is_in_the_table() -> None:
    text = (ROOT / "docs/architecture.md").read_text().partition("## Modules of the agent")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)`", text)
    real = {path.stem for path in (ROOT / "agents").rglob("*.py")} - {"__init__"}
    assert set(named) == real


def test_each_folder_of_code_is_in_the_table_of_folders() -> None:
    table = (ROOT / "docs/architecture.md").read_text().partition("## Folders")[2].partition("\n## ")[0]
    told = {
        name for line in table.splitlines() for name in re.findall(r"`((?:remusdb|agents|tools|tests)/[^`]+)`", line)
    }
    of = ("remusdb", "agents/remusdb_agents", "tools", "tests")
    there = {f"{top}/{path.parent.name}" for top in of for path in (ROOT / top).glob("*/__init__.py")}
    assert there == told
