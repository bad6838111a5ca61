# SPDX-License-Identifier: Apache-2.0
"""remusdb(1), made from the command line itself: each verb with its words and its options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

FILES = {
    "/etc/remusdb/host.toml": "Configuration of the daemon that protects this host's VMs.",
    "/etc/remusdb/agent.toml": "Configuration of the agent that keeps other hosts' VMs.",
    "/etc/remusdb/tls/": "This host's certificate and key, and the CA's certificate.",
    "/etc/remusdb/hooks.d/": "Executables that are told what happens.",
    "/var/lib/remusdb/": "What this host durably knows of each VM, their histories, and replica images.",
    "/usr/share/doc/remusdb/": "The documents, and examples of both configurations.",
}


def man_page(group: click.Group, name: str, version: str) -> str:
    """The page, in troff."""
    context = click.Context(group, info_name=name)
    lines = [f'.TH {name.upper()} 1 "" "{_text(f"{name} {version}")}" "User Commands"', ".SH NAME"]
    head, _, rest = inspect.cleandoc(group.help or "").partition("\n\n")
    lines += [_text(f"{name} - {head[0].lower()}{head[1:].rstrip('.')}"), ".SH SYNOPSIS"]
    lines += [f".B {name}", _text(" ".join(group.collect_usage_pieces(context))), ".SH DESCRIPTION"]
    lines += [*_paragraphs(rest or head), *_options(group, context), ".SH COMMANDS"]
    lines += _commands(group, context)
    if group.epilog:
        lines += [".SH EXIT STATUS", *_paragraphs(group.epilog)]
    lines += [".SH FILES"]
    for path, what in FILES.items():
        lines += [".TP", f".I {_text(path)}", _text(what)]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for verb, command in sorted(group.commands.items()):
        inner = click.Context(command, info_name=verb, parent=context)
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
            continue
        yield f'.SS "{_text(" ".join([inner.command_path, *command.collect_usage_pieces(inner)]))}"'
        yield from _paragraphs(command.help or "")
        yield from _options(command, inner)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and parameter.name != "help":
            yield from (".TP", f".B {_text(record[0])}", _text(" ".join(record[1].split())))


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of click's help: one that begins with a backspace keeps its lines."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[:1] in (["\b"], [r"\b"]):
            yield from (".PP", ".nf", *map(_text, lines[1:]), ".fi")
        elif any(lines):
            yield from (".PP", _text(" ".join(lines)))


def _text(text: str) -> str:
    """A line of text that troff prints as it is."""
    escaped = (
        text.replace("\b", "").replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga").replace('"', r"\(dq")
    )
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
