# SPDX-License-Identifier: Apache-2.0
"""JSON that others wrote: a value, or a ValueError that says what is wrong with it, and nothing else. A path is a text.

msgspec alone may also raise RecursionError, for text that is nested deeper than the interpreter's stack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

Value = TypeVar("Value")


def parse_json(text: bytes | str, kind: type[Value]) -> Value:
    """`text` as a value of `kind`; ValueError for whatever is not one."""
    try:
        return msgspec.json.decode(text, type=kind, dec_hook=_path)
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc


def parse_object(text: bytes | str) -> dict[str, Any]:
    """Like `parse_json`, of an object whose fields are looked at later."""
    return parse_json(text, dict[str, Any])


def _path(kind: type, value: Any) -> Path:
    if kind is Path:
        return Path(value)
    raise TypeError(f"no way to read {kind}")
