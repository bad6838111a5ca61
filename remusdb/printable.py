# SPDX-License-Identifier: Apache-2.0
"""Text that another host, a guest or a file made, made safe: cut to a length, and without what a terminal obeys.

Such text is never refused for how it looks: a reason that cannot be shown as it came is still a reason.
"""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

TEXT_MAX_BYTES: Final = 1024  # of a reason or a hint from a peer; ours are under 400, those that quote QEMU under 700
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_NOT_ASCII: Final = re.compile(r"[^\n -~]+")  # what json.dumps leaves as it is; a newline is of the layout
_CUT: Final = "\N{HORIZONTAL ELLIPSIS}"


def printable(text: str, most: int = TEXT_MAX_BYTES) -> str:
    """`text` as one line of at most `most` bytes of UTF-8, safe for a terminal, a log and JSON.

    A tab or a line's end becomes a space; any other character that is not printable (escapes, NUL, what turns the
    direction of writing, lone surrogates) the replacement character. Cut text ends with an ellipsis, where `most`
    (>= 0) has room for one. To apply it twice changes nothing.
    """
    head = text[: most + 1]  # a character has a byte at least: nothing behind it can count, however long the text is
    shown = "".join(map(_shown, head))
    if len(text) <= most and len(shown.encode()) <= most:
        return shown
    cut = _CUT if most >= len(_CUT.encode()) else ""
    return shown.encode()[: most - len(cut.encode())].decode(errors="ignore") + cut


def _shown(char: str) -> str:
    if char.isprintable():
        return char
    return " " if char in "\t\n\r\v\f\x85\u2028\u2029" or char.isspace() else REPLACEMENT


def json_text(value: object, indent: int | None = None) -> str:
    """`value` (what msgspec encodes) as JSON in plain ASCII, which no terminal obeys.

    Nothing is lost but lone surrogates, which no other program could read: they become question marks.
    """
    plain = msgspec.to_builtins(value, enc_hook=str, str_keys=True)
    text = json.dumps(plain, indent=indent, ensure_ascii=False).encode(errors="replace").decode()
    return _NOT_ASCII.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
