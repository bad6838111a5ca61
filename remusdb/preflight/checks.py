# SPDX-License-Identifier: Apache-2.0
"""What a preflight check is: a value, told by `check` and enforced by `protect`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from remusdb.says import says

Level = Literal["required", "advice"]


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at before a VM is protected."""

    name: Annotated[str, says("see check.md")]
    ok: Annotated[bool, says("nothing is wrong with it")]
    level: Annotated[
        Level, says("required: without it `protect` fails; advice: protection works without it, less well")
    ]
    detail: Annotated[str, says("what was found")]
    hint: Annotated[str, says("what to do where it is not `ok`")] = ""


def required(name: str, problems: list[str], good: str, hint: str) -> Check:
    """A precondition: met if nothing is wrong."""
    return Check(name, not problems, "required", "; ".join(problems) or good, hint if problems else "")


def advice(name: str, problem: str, good: str, hint: str) -> Check:
    """Something that protection works without, but not as well."""
    return Check(name, not problem, "advice", problem or good, hint if problem else "")
