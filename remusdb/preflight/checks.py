# SPDX-License-Identifier: Apache-2.0
"""What a preflight check is: a value, told by `check` and enforced by `protect`."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["required", "advice"]


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. `detail` is what was found; `hint` is what to do if it is not `ok`."""

    name: str
    ok: bool
    level: Level
    detail: str
    hint: str = ""


def required(name: str, problems: list[str], good: str, hint: str) -> Check:
    """A precondition: met if nothing is wrong."""
    return Check(name, not problems, "required", "; ".join(problems) or good, hint if problems else "")


def advice(name: str, problem: str, good: str, hint: str) -> Check:
    """Something that protection works without, but not as well."""
    return Check(name, not problem, "advice", problem or good, hint if problem else "")
