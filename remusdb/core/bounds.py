# SPDX-License-Identifier: Apache-2.0
"""How large what another host says may be: the types and checks that its messages are made of."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from remusdb.errors import CannotProtect
from remusdb.printable import TEXT_MAX_BYTES, printable

NUMBER_MAX: Final = 1 << 62  # an i64 with room to add to; as terms

Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
Label = Annotated[str, Meta(pattern=r"^[\x20-\x7e]{0,128}\Z")]  # versions, machine types, roles, ids

PATH_MAX_BYTES: Final = 4096  # limits.h


def fits(text: str, what: str, most: int) -> None:
    """CannotProtect, which names `what`, where the text has more than `most` bytes."""
    if len(text) > most or len(text.encode(errors="surrogatepass")) > most:
        raise CannotProtect(f"{what} has more than {most} bytes")


def for_people(message: msgspec.Struct, *fields: str, most: int = TEXT_MAX_BYTES) -> None:
    """In a `__post_init__`: have the texts in these fields, and those in lists and dicts there, printable and short
    (`most` bytes each)."""
    for field in fields:
        value = getattr(message, field)
        shown = _shown(value, most)
        if shown != value:
            msgspec.structs.force_setattr(message, field, shown)


def _shown(value: Any, most: int) -> Any:
    if isinstance(value, str):
        return printable(value, most)
    if isinstance(value, list):
        return [_shown(one, most) for one in value]
    if isinstance(value, dict):
        return {key: _shown(one, most) for key, one in value.items()}
    return value
