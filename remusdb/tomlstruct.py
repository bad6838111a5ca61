# SPDX-License-Identifier: Apache-2.0
"""TOML tables to frozen structs, with errors that name the full key path.

msgspec validates; this walks the tables itself because msgspec names a key inside a map only as `[...]`, and
because someone who mistyped a key wants to hear the name that was meant.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from remusdb.errors import ConfigError

Table = Mapping[str, Any]
S = TypeVar("S", bound=msgspec.Struct)


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables; every way of not being readable is a ConfigError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}", hint="name a file with --config") from exc
    except RecursionError as exc:
        raise ConfigError(f"{path}: is nested too deeply") from exc
    except ValueError as exc:  # also of what is not UTF-8, and of a number that is too long
        raise ConfigError(f"{path}: is not TOML: {exc}") from exc


def subtable(file: Path, table: Table, key: str, path: str | None = None) -> dict[str, Any]:
    """The table under `key`, empty if it is not there, refused if it is something else."""
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {path or key}: expected a table, got {_kind(value)}")
    return value


def refuse_unknown(file: Path, table: Table, known: Iterable[str], path: str = "") -> None:
    """Refuse the first key that has no meaning, naming the nearest one that has."""
    names = list(known)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"did you mean `{_join(path, near[0])}`?" if near else f"known here: {', '.join(names)}"
            raise ConfigError(f"{file}: {_join(path, key)}: unknown key", hint=hint)


def decode(file: Path, table: Table, into: type[S], path: str) -> S:
    """One table as `into`, whose fields are plain values (or maps of them)."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(into)}
    refuse_unknown(file, table, fields, path)
    values = {}
    for key, field in fields.items():
        if key in table:
            values[field.name] = _value(file, table[key], field.type, _join(path, key))
        elif field.required:
            raise ConfigError(f"{file}: {_join(path, key)}: is missing")
    return into(**values)


def _value(file: Path, value: object, kind: Any, path: str) -> Any:
    try:
        return msgspec.convert(value, kind, dec_hook=_absolute_path)
    except msgspec.ValidationError as exc:
        why, _, where = str(exc).partition(" - at ")
        inner = where.strip("`").removeprefix("$")
        raise ConfigError(f"{file}: {path}{inner}: {why[:1].lower()}{why[1:]}") from exc


def _absolute_path(kind: type, value: object) -> Path:
    """msgspec hands over what it does not know: here, paths. A daemon's working directory means nothing."""
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"expected a path, got {_kind(value)}")
    if not value.startswith("/"):
        raise ValueError(f"expected an absolute path, got `{value}`")
    if "\0" in value:
        raise ValueError("a path has no NUL")
    return Path(value)


def _kind(value: object) -> str:
    names: dict[type, str] = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "an array"}
    return names.get(type(value), type(value).__name__)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
