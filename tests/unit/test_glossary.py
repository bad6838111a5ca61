# SPDX-License-Identifier: Apache-2.0
"""docs/glossary.md and the code use the same words: states, phases, roles, events, commands and reason codes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import click
import pytest

from remusdb.cli.main import cli
from remusdb.control.status import ReplicaState, State
from remusdb.core.pipeline import PrimaryState
from remusdb.core.roles import Role
from remusdb.core.standby import Phase
from remusdb.history import EventName
from remusdb.reasons import Code
from remusdb.troubles import Trouble
from remusdb.wording import WORDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/glossary.md").read_text()
STATES = {*get_args(State), *get_args(ReplicaState)}
INSIDE = {*(one.value for one in PrimaryState), *(one.value for one in Phase), *get_args(Role)}
EVENTS = set(get_args(EventName))
VERBS = set(cli.commands)
TROUBLES = {name for kind in get_args(Trouble) for name in get_args(kind)}
CODES = {code.value for code in Code}
# Plain English in reason codes and names of commands, and names of things that are not ours. A word of the trade that
# comes new does not go here: it is explained in the glossary.
PLAIN = set(
    """
    abandoned again answered arrives asked at awaited bench broke by cannot certs clock config crash crashed deciding
    destroy devices diagnose died disk disputed doubt down dropped dumped elsewhere empty end ended ending error failed
    fit fits forget forgotten full given guest have heard here history idle in inspect io it may no none not off
    other overruled prepare qemu quit ready reboot reconnected refused refuses rejoining restarted resumed run running
    runs setup shut silent sleeps slow started starting stopped stops suspended to tried unable unconfirmed undecided
    unfit unheard unreachable unsettled waits watchdog
    """.split()
)


def rows(section: str) -> list[list[str]]:
    """The tables of a section, without their heads."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [at for at, row in enumerate(cells) if set(row[0]) <= {"-"}]
    return [row for at, row in enumerate(cells) if at not in rules and at + 1 not in rules]


def names(cell: str) -> list[str]:
    return [name.strip(" `") for name in cell.split(",") if name.strip()]


TERMS = {name for word, also, *_ in rows("Words") for name in [*names(word), *names(also)]}
DEFINED = {piece for term in TERMS for piece in term.split()}
BANNED = sorted({name for *_, others in rows("Words") + rows("Plain words") for name in names(others)})
DOCUMENTS = [
    *("README.md", "SECURITY.md", "docs/accepted.md", "docs/architecture.md", "docs/check.md", "docs/configuration.md"),
    *("docs/fault-matrix.md", "docs/guarantees.md", "docs/hooks.md", "docs/json.md", "docs/rehearse.md"),
]


def test_the_tables_of_states_and_events_are_whole() -> None:
    assert {name for cell, _ in rows("States") for name in names(cell)} == STATES
    assert {name for cell, _ in rows("Events") for name in names(cell)} == EVENTS


def test_what_the_code_names_inside_is_explained() -> None:
    text = set(re.findall(r"`([\w-]+)`", PAGE))
    assert INSIDE <= text | STATES


@pytest.mark.parametrize("kind", [STATES, EVENTS, VERBS, TROUBLES, CODES], ids=lambda kind: min(kind))
def test_each_name_is_made_of_words_that_are_defined(kind: set[str]) -> None:
    unknown = {name: left for name in kind if (left := set(name.split("-")) - DEFINED - PLAIN)}
    assert not unknown, "explain the word in docs/glossary.md, or use one that is there"


def test_plain_words_are_used_and_not_explained_twice() -> None:
    used = {piece for name in STATES | EVENTS | VERBS | INSIDE | TROUBLES | CODES for piece in name.split("-")}
    assert not PLAIN - used and not PLAIN & DEFINED


@pytest.mark.parametrize("term", sorted(TERMS))
def test_each_word_of_the_glossary_is_used_by_the_code(term: str) -> None:
    found = re.compile(rf"(?<![a-z]){re.sub(r'[ _]', '[ _-]', term)}(?![a-z])", re.IGNORECASE)
    sources = [*ROOT.glob("remusdb/**/*.py"), *ROOT.glob("agents/**/*.py")]
    assert any(found.search(source.read_text()) for source in sources)


def shown() -> dict[str, str]:
    """What a user reads: reasons and hints, the help of each command, documents."""
    found = {f"reason {code}": " ".join(both) for code, both in WORDS.items()}
    for name, command in cli.commands.items():
        options = [one.help or "" for one in command.params if isinstance(one, click.Option)]
        found[f"help of {name}"] = " ".join([command.help or "", *options])
    return found | {name: (ROOT / name).read_text() for name in DOCUMENTS}


@pytest.mark.parametrize("word", BANNED)
def test_a_word_that_has_a_better_one_is_not_used(word: str) -> None:
    said = re.compile(rf"\b{word}\b", re.IGNORECASE)
    assert not [where for where, text in shown().items() if said.search(text)]
