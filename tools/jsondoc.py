# SPDX-License-Identifier: Apache-2.0
"""Writes docs/json.md from the types: what `--json` prints, and what the control sockets carry.

python -m tools.jsondoc
"""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from remusdb.cli.diagnose import Bundled
from remusdb.cli.inspect import Capture
from remusdb.control.api import (
    AGENT,
    HOST,
    Checked,
    Evacuated,
    Exported,
    Forgotten,
    Prepared,
    Rehearsed,
    Switched,
    TakenOver,
)
from remusdb.control.codec import Failed, Progress, Request
from remusdb.control.status import VmStatus
from remusdb.control.verdict import Vms
from remusdb.history import VmEvents
from remusdb.measured import Measured
from remusdb.reasons import Code
from remusdb.wording import WORDS

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
PRINTED: dict[str, type[Struct]] = {
    "status": Vms,
    "protect": VmStatus,
    "reprotect": VmStatus,
    "switchover": Switched,
    "evacuate": Evacuated,
    "failover": TakenOver,
    "rehearse": Rehearsed,
    "export": Exported,
    "history": VmEvents,
    "bench": Measured,
    "check": Checked,
    "prepare": Prepared,
    "forget": Forgotten,
    "diagnose": Bundled,
    "inspect": Capture,
}
UNITS = {
    r"_ms(_|$)": "ms", r"_at_ns$|^at_ns$": "ns since 1970", r"(^|_)bytes(_|$)": "bytes", r"_kib$": "KiB",
    r"_ppm$": "ppm", r"^seconds$": "s",
}  # fmt: skip
PLAIN: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}

HEAD = """\
# JSON

Made from the types by `python -m tools.jsondoc`: change those (`remusdb/control/status.py`, `remusdb/control/api.py`,
`remusdb/history.py`, `remusdb/measured.py`), not this page. Every key is always there. Keys, and words for states and
events, may be added: ignore those that you do not know.

## What `--json` prints

An error is not printed as JSON: it is words on stderr, and an exit code (`remusdb --help`). `status --json` prints its
JSON with exit code 3, too: a VM is not protected; `inspect --json` with 1: it found a fault. `config check FILE --json`
prints every setting in effect, by the names in [configuration.md](configuration.md).

| command | prints |
|---|---|
"""
SOCKETS = """
## The control sockets

`/run/remusdb/host.sock` and `agent.sock`, for root; and for the group `console_group`, which may ask for what
[the console](console.md) needs and is refused the rest. One JSON object a line, one request a connection. A request is
its `op` with its arguments beside it: `{"op": "protect", "vm": "db1", "to": "beta"}`; what is not known here is
refused.
Then come any number of lines with `"is": "progress"` and the keys of a [Progress](#progress), and one
`{"is": "done", "result": ...}`, or one with `"is": "failed"` and the keys of a [Failed](#failed).

| socket | op | arguments | result |
|---|---|---|---|
"""


CODES = """
## Codes

Of a [Reason](#reason). What is in braces are its parameters; a part in brackets is left out where there is none.

| code | in words | what to do |
|---|---|---|
"""


def page() -> str:
    """The whole of it."""
    rows = [f"| `remusdb {command} --json` | {_link(kind)} |\n" for command, kind in PRINTED.items()]
    asked = [("host", kind) for kind in HOST] + [("agent", kind) for kind in AGENT]
    ops = [f"| {socket} | `{kind.op()}` | {_arguments(kind)} | {_link(kind.reply())} |\n" for socket, kind in asked]
    found: dict[str, type[Struct]] = {}
    for kind in (*PRINTED.values(), *(kind.reply() for _, kind in asked), Progress, Failed):
        _collect(kind, found)
    types_ = [f"\n## {name}\n\n{_about(kind)}\n\n{_table(kind)}" for name, kind in sorted(found.items())]
    return HEAD + "".join(rows) + SOCKETS + "".join(ops) + "".join(types_) + CODES + "".join(map(_code, Code))


def _code(code: Code) -> str:
    said, to_do = (re.sub(r"\[\w+\?", "[", text).replace("|", "\\|") for text in WORDS[code])
    return f"| `{code}` | {said} | {to_do} |\n"


def _about(kind: type[Struct]) -> str:
    return " ".join(str(kind.__doc__).split())


def _link(kind: type[Struct]) -> str:
    return f"[{kind.__name__}](#{kind.__name__.lower()})" if kind.__struct_fields__ else "`{}`"


def _arguments(kind: type[Request[Any]]) -> str:
    """Of one op, after what it is for."""
    each = [f"`{key}` ({words}: {meaning})" for key, words, meaning in _keys(kind)]
    return f"{_about(kind)} {', '.join(each)}"


def _table(kind: type[Struct]) -> str:
    rows = [f"| `{key}` | {words} | {meaning} |\n" for key, words, meaning in _keys(kind)]
    return "| key | type | meaning |\n|---|---|---|\n" + "".join(rows)


def _keys(kind: type[Struct]) -> list[tuple[str, str, str]]:
    """Key, type with its unit, meaning. ValueError for a key without a meaning."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in msgspec.structs.fields(kind):
        of, meaning = _bare(hints[field.name])
        if not meaning:
            raise ValueError(f"{kind.__name__}.{field.name}: what it means is not said")
        unit = next((f", {unit}" for name, unit in UNITS.items() if re.search(name, field.encode_name)), "")
        found.append((field.encode_name, _words(of, unit), meaning))
    return found


def _bare(hint: Any) -> tuple[Any, str]:
    """A type without what it is annotated with, and of that the meaning."""
    if get_origin(hint) is not Annotated:
        return hint, ""
    inner, *notes = get_args(hint)
    of, meaning = _bare(inner)
    return of, next((note.description for note in notes if isinstance(note, Meta) and note.description), meaning)


def _words(hint: Any, unit: str = "") -> str:
    of, _ = _bare(hint)
    origin, args = get_origin(of), get_args(of)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in _literals(of))
    if origin in (Union, types.UnionType):
        if all(get_origin(_bare(arg)[0]) is Literal for arg in args):
            return ", ".join(f"`{word}`" for word in _literals(of))
        return " or ".join(_words(arg, unit if _bare(arg)[0] is not type(None) else "") for arg in args)
    if origin is list:
        return f"list of {_words(args[0])}"
    if origin is dict:
        return f"object of {_words(args[1])}"
    if isinstance(of, type) and issubclass(of, Struct):
        return _link(of)
    if of is Code:
        return "[code](#codes)"
    return PLAIN[getattr(of, "__supertype__", of)] + unit


def _literals(of: Any) -> list[str]:
    """The words of a Literal, or of a union of some."""
    return [str(word) for arg in get_args(of) for word in (_literals(arg) if get_origin(arg) is Literal else [arg])]


def _collect(hint: Any, found: dict[str, type[Struct]]) -> None:
    """Every struct in a type that has keys."""
    of, _ = _bare(hint)
    if isinstance(of, type) and issubclass(of, Struct) and not get_args(of):
        if of.__name__ in found or not of.__struct_fields__:
            return
        found[of.__name__] = of
        for inner in get_type_hints(of, include_extras=True).values():
            _collect(inner, found)
    for arg in get_args(of):
        _collect(arg, found)


if __name__ == "__main__":
    PAGE.write_text(page())
