# SPDX-License-Identifier: Apache-2.0
"""Runbooks: how they are read, that each is whole, and that its commands are ones that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from remusdb.cli.main import cli
from remusdb.wording import WORDS
from tests.runbooks import INDEX, Command, Happens, parse, runbooks, says

BOOKS = [parse(path.stem, path.read_text()) for path in runbooks()]
NAMES = {
    "primary-host-died", "backup-host-died", "status-says-not-protected", "output-held", "both-hosts-up-after-a-cut",
    "planned-maintenance", "host-reboot", "upgrade", "database-slow-since-protected", "guest-clock-behind",
    "restore-from-quarantined-disk", "arbiter-down", "disk-full", "change-the-VM",
}  # fmt: skip
NOT_RUN = {"apt install ./remusdb_*.deb", "chronyc makestep"}
PROGRAMS = {
    "remusdb", "virsh", "systemctl", "qemu-img", "printf", "sed", "rm", "df"
}  # fmt: skip

TEXT = """\
# It is broken

<!-- situation: db1 runs; host a dies -->

1. Look.

   ```console
   a$ remusdb status
   VM   STATE ...
   ...
   b$ virsh domstate db1
   running

   ```
<!-- then: host a boots -->
```console not run: there is none
c$ sudo reboot
```
```toml
[host]
```
<!-- situation: db1 is protected -->
```console
a$ true
```
"""


def test_commands_with_what_they_print_in_their_situations() -> None:
    book = parse("x", TEXT)
    first, second = book.situations
    assert first.begins == ["db1 runs", "host a dies"] and second.begins == ["db1 is protected"]
    assert first.steps == [
        Command("a", "remusdb status", ("VM   STATE ...", "..."), 8),
        Command("b", "virsh domstate db1", ("running",), 11),
        Happens("host a boots"),
    ]
    assert [command.text for command in book.commands()] == ["remusdb status", "virsh domstate db1", "true"]
    assert book.skipped == {"sudo reboot": "there is none"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```console\na$ x\n```", "x:2: before any situation"),
        ("<!-- situation: s -->\n```console\nx\n```", "x:3: a block begins with a prompt"),
        ("<!-- situation: s -->\n```console\na$ x\n", "a block has no end"),
        ("<!-- then: s -->", "x:1: before any situation"),
    ],
)
def test_what_is_no_runbook_says_where(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse("x", text)


@pytest.mark.parametrize(
    ("printed", "output", "fits"),
    [
        ([], "whatever", True),
        (["VM  STATE ..."], "VM   STATE   REASON\n\n", True),
        (["VM STATE ..."], "VM STATE\n", True),
        (["VM STATE"], "VM STATE REASON\n", False),
        (["a", "...", "b"], "a\nb\n", True),
        (["a", "...", "b"], "a\nx\ny\nb\n", True),
        (["a", "...", "b"], "a\nx\ny\n", False),
        (["..."], "", True),
        (["db1 ... held ... b"], "db1 primary held 1 b\n", True),
        (["db1 ... held"], "db1\nheld\n", False),
        (["kept {'vda': '/x.raw'}"], "kept    {'vda': '/x.raw'}", True),
        (["x (1.0 GiB)", "..."], "x (1x0 GiB)", False),
    ],
)
def test_what_fits(printed: list[str], output: str, fits: bool) -> None:
    assert says(printed, output) is fits


def test_there_is_one_for_each_symptom_and_the_index_has_all() -> None:
    assert {book.name for book in BOOKS} == NAMES
    assert set(re.findall(r"\]\(([\w-]+)\.md\)", INDEX.read_text())) == NAMES
    assert "docs/runbooks" in (INDEX.parents[2] / "README.md").read_text()


@pytest.mark.parametrize("path", runbooks(), ids=lambda path: path.stem)
def test_it_says_what_a_tired_reader_needs(path: Path) -> None:
    text, book = path.read_text().lower(), parse(path.stem, path.read_text())
    assert book.commands() and all(one.steps for one in book.situations)
    for heading in ("what you see", "what to do", "how to know that it is over", "what not to do"):
        if path.stem == "change-the-VM" and heading == "what to do":
            continue  # its headings are what one wants to do
        assert re.search(rf"^##+ .*{heading}", text, re.MULTILINE), heading
    assert "why" in text
    for link in re.findall(r"\]\(([^)#]+\.md)", path.read_text()):
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_its_commands_are_there(book: object) -> None:
    """Each verb with its options parses; nothing is run."""
    assert isinstance(book, type(BOOKS[0]))
    for text in book.skipped:
        assert text in NOT_RUN
    for command in book.commands():
        words = shlex.split(command.text.partition(" > ")[0].partition(" >> ")[0])
        assert words[0] in PROGRAMS, command
        if words[0] == "remusdb":
            require_parses(words[1:])


def test_what_hints_name_is_there() -> None:
    said = " ".join(hint for _, hint in WORDS.values())
    named = set(re.findall(r"docs/runbooks/([\w-]+)\.md", said))
    assert named and named <= NAMES


def test_commands_in_running_text_are_there_too() -> None:
    for path in [*runbooks(), INDEX]:
        for text in re.findall(r"`remusdb ([a-z][^`]*)`", path.read_text()):
            words = shlex.split(text)
            if len(words) > 1 or words[0] in ("status", "evacuate"):
                require_parses(words)
            else:
                assert words[0] in cli.commands, text


def require_parses(words: list[str]) -> None:
    verb: click.Command = cli
    context: click.Context | None = None
    while isinstance(verb, click.Group):
        verb, words = verb.commands[words[0]], words[1:]
    context = click.Context(verb, info_name=verb.name)
    with context:
        verb.parse_args(context, list(words))
