# SPDX-License-Identifier: Apache-2.0
"""docs/json.md says what is so: it is made of the types as they are, and real answers have its keys and types."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from remusdb.cli.main import cli
from remusdb.config import HostConfig
from remusdb.control import ControlServer, api
from remusdb.control.codec import plain
from remusdb.core.messages import Welcome
from remusdb.reasons import Code, Reason
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.registry import Registry
from tests.unit.host_daemon_rig import Running
from tests.unit.test_registry import Stream, context
from tests.unit.test_replica import hello
from tools import jsondoc

__all__ = ["context"]  # the fixture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/json.md").read_text()
FITS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "true or false": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def section(name: str) -> dict[str, str]:
    """Each key in the table of a type, and its type."""
    (part,) = [part for part in PAGE.split("\n## ")[1:] if part.startswith(f"{name}\n")]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \| ", part, re.MULTILINE))


def require(value: Any, words: str) -> None:
    """AssertionError unless the page's words for a type fit the value, and all that is in it."""
    if words.startswith(("list of ", "object of ")):
        what, _, inner = words.partition(" of ")
        assert isinstance(value, list if what == "list" else dict), (value, words)
        for one in value.values() if isinstance(value, dict) else value:
            require(one, inner)
    elif " or " in words and words != "true or false":
        require_any(value, words.split(" or "))
    elif words == "[code](#codes)":
        assert f"\n| `{value}` | " in PAGE.partition("\n## Codes\n")[2]
    elif words.startswith("["):
        keys = section(words[1 : words.index("]")])
        assert set(value) == set(keys), words
        for key, of in keys.items():
            require(value[key], of)
    elif words.startswith("`"):
        assert f"`{value}`" in words
    else:
        assert FITS[words.partition(",")[0]](value), (value, words)


def require_any(value: Any, kinds: list[str]) -> None:
    for kind in kinds:
        try:
            return require(value, kind)
        except (AssertionError, TypeError):
            continue
    raise AssertionError(f"{value} is none of {kinds}")


def test_it_is_made_of_the_types_as_they_are() -> None:
    assert jsondoc.page() == PAGE, "run: python -m tools.jsondoc"


def test_each_op_of_the_daemons_is_there() -> None:
    for named, daemon in ((api.HOST, "remusdb/host"), (api.AGENT, "agents/remusdb_agents/backup")):
        real = re.findall(r"^ +(\w+): self\._", (ROOT / daemon / "daemon.py").read_text(), re.MULTILINE)
        assert sorted(kind.__name__ for kind in named) == sorted(real) != []


def test_each_verb_with_json_is_there() -> None:
    real = {name for name, verb in cli.commands.items() for option in verb.params if option.name == "as_json"}
    assert set(jsondoc.PRINTED) == real


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["protect", "db1", "--to", "beta"], "VmStatus"),
        (["status"], "Vms"),
        (["status", "db1"], "Vms"),
        (["check", "db1"], "Checked"),
        (["prepare", "db1"], "Prepared"),
        (["evacuate", "--if-host-stops"], "Evacuated"),
    ],
)
def test_what_a_host_daemon_answers(daemon: Running, config: HostConfig, arguments: list[str], kind: str) -> None:
    if arguments[0] != "protect":
        daemon.protect("db1")
    told = CliRunner().invoke(cli, ["--run-dir", str(config.host.run_dir), *arguments, "--json"])
    require(json.loads(told.stdout), f"[{kind}]")


def test_what_an_agent_answers(context: Context, run_dir: Path) -> None:
    registry = Registry(context)
    context.store.update(
        "old", role="promoted", term=3, owner="b", peer="a", quarantined_disks={"vda": "/kept/vda.raw"}
    )
    with registry.using("vm") as replica:
        stream: Any = Stream()
        assert isinstance(replica.greet(stream, hello()), Welcome)
        require(plain(registry.status(None)), "list of [StandbyStatus]")
        answer = api.AgentVms(vms=registry.status(None))
        server = ControlServer(run_dir / "agent.sock", {api.AgentStatus: lambda _asked, _progress: answer})
        server.start()
        try:
            told = CliRunner().invoke(cli, ["--run-dir", str(run_dir), "status", "--json"])
        finally:
            server.close()
    assert [one["vm"] for one in json.loads(told.stdout)["vms"]] == ["old", "vm"]
    require(json.loads(told.stdout), "[Vms]")


def test_what_history_prints(daemon: Running, config: HostConfig) -> None:
    daemon.protect("db1")
    record = daemon.daemon.supervisor.managed("db1")
    daemon.daemon.supervisor.tell(record, "adopted", "protected", Reason.of(Code.ADOPTED))
    assert daemon.daemon.history.flush(20)
    told = CliRunner().invoke(cli, ["history", "db1", "--state-dir", str(config.host.state_dir), "--json"])
    events = json.loads(told.stdout)["events"]
    assert [event["event"] for event in events] == ["adopted"]
    require(json.loads(told.stdout), "[VmEvents]")
