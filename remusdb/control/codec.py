# SPDX-License-Identifier: Apache-2.0
"""What goes over a control channel, typed at both ends: the daemons' sockets, and the one between daemon and worker.

    who asks ── Request ─▶ │ ◀─ Progress, any number of times ─ │ ◀─ one Done or Failed ── who does it

Each is one JSON object a line. A request is strict: an unknown op, another type or an unknown key is a UsageError that
says so. Of an answer, which may come from a worker that is newer than its daemon, keys that are not known here are
dropped; all else is strict, too. How long a line may be is in `lines.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct

from remusdb.control.lines import encoded
from remusdb.errors import BadFrame, RemusError, UsageError, error_of
from remusdb.jsontext import parse_json
from remusdb.says import says

Reply = TypeVar("Reply")
T = TypeVar("T")


class Request(
    Struct, Generic[Reply], frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag=str.lower
):
    """What somebody asks for. A subclass is tagged with its op, and names the type of its answer: `Request[Reply]`."""

    __orig_bases__: ClassVar[tuple[Any, ...]]

    @classmethod
    def op(cls) -> str:
        """The word it goes by."""
        return str(cls.__struct_config__.tag)

    @classmethod
    def reply(cls) -> type[Reply]:
        """What it is answered with."""
        kind: type[Reply] = cls.__orig_bases__[0].__args__[0]
        return kind


class Nothing(Struct, frozen=True):
    """The answer that there is nothing to say but that it is done."""


class Progress(Struct, frozen=True, kw_only=True, tag_field="is", tag="progress"):
    """How far something long is."""

    step: Annotated[str, says("what is done now, in words")]
    done: Annotated[float, says("so much of it")] = 0
    total: Annotated[float, says("all of it; 0: not known")] = 0
    unit: Annotated[str, says("of both")] = ""


class Failed(Struct, frozen=True, kw_only=True, tag_field="is", tag="failed"):
    """It was not done."""

    id: Annotated[str, says("of the kind of error: the list is in `remusdb/errors.py`")]
    message: Annotated[str, says("what is wrong, in words")]
    hint: Annotated[str, says("what to do")] = ""
    of: Annotated[str, says("of a worker that may have more than one command: the op")] = ""

    @classmethod
    def by(cls, exc: RemusError, of: str = "") -> Failed:
        """An error as it goes over the channel."""
        return cls(id=exc.id, message=str(exc), hint=exc.hint, of=of)

    def error(self) -> RemusError:
        """It again, as an exception of its own class."""
        return error_of(self.id, self.message, self.hint)


class Done(Struct, frozen=True, kw_only=True, tag_field="is", tag="done"):
    """It was done: `result` is the reply of the request, as JSON. `of`: see Failed."""

    result: Raw
    of: str = ""

    @classmethod
    def by(cls, result: object, of: str = "") -> Done:
        """A reply as it goes over the channel."""
        return cls(result=Raw(encoded(result)), of=of)

    def value(self, asked: Request[Reply]) -> Reply:
        """The reply to what was asked. BadFrame where it is none."""
        return decode(bytes(self.result), type(asked).reply())


ProgressFn = Callable[[Progress], None]


def decode(line: bytes, kind: type[T]) -> T:
    """A line as a value of this type. BadFrame for what is none."""
    try:
        return parse_json(line, kind)
    except ValueError as exc:
        raise BadFrame(f"a control line cannot be read: {exc}") from exc


def read_answer(line: bytes) -> Progress | Done | Failed:
    """One line of what comes back. BadFrame for what is none."""
    answer: Progress | Done | Failed = decode(line, Progress | Done | Failed)  # type: ignore[arg-type]  # a union
    return answer


class _Head(Struct, frozen=True):
    op: str


class Requests:
    """The requests that one end understands."""

    def __init__(self, kinds: Iterable[type[Request[Any]]]) -> None:
        self._kinds = {kind.op(): kind for kind in kinds}

    def read(self, line: bytes) -> Request[Any]:
        """A line as one of them; UsageError says what is wrong with it."""
        try:
            op = parse_json(line, _Head).op
        except ValueError as exc:
            raise UsageError(f'a request is one line, {{"op": TEXT, ...}}: {exc}') from exc
        if op not in self._kinds:
            raise UsageError(f"unknown op `{op}`", hint=f"known here: {', '.join(sorted(self._kinds))}")
        try:
            return parse_json(line, self._kinds[op])
        except ValueError as exc:
            raise UsageError(f"`{op}`: {exc}") from exc


def plain(value: object) -> Any:
    """A reply as `--json` shows it, and docs/json.md has it."""
    return msgspec.to_builtins(value, enc_hook=str)
