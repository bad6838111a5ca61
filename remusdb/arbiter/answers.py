# SPDX-License-Identifier: Apache-2.0
"""What etcd's HTTP/JSON gateway answers, as far as it is used.

What etcd leaves out of an answer is false, zero or none: "there is no such key" and "the comparison did not hold" are
nothing but a header. So an answer counts only if there is nothing in it that etcd's has not: one with an `error` or a
`code` beside the header is an error, whatever its HTTP status says.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, TypeVar

import msgspec

# 64-bit numbers are text in the gateway's JSON. A revision is 1 or more: etcd begins with it.
Number = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,20}\Z")]
Revision = Annotated[str, msgspec.Meta(pattern=r"\A[1-9][0-9]{0,18}\Z")]


class Pair(msgspec.Struct, frozen=True):
    """A key as etcd has it, with `key` and `value` in base64."""

    key: str
    mod_revision: Revision
    value: str = ""

    @property
    def content(self) -> bytes:
        """The value. ValueError if the gateway's text is not base64."""
        return base64.b64decode(self.value, validate=True)


class Header(msgspec.Struct, frozen=True):
    """What stands at the head of each answer of etcd's own, and of no error."""

    cluster_id: Number
    revision: Revision


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a range: its keys."""

    header: Header
    kvs: list[Pair] = []
    more: bool = False
    count: Number = ""  # not checked where it is left out


class Changed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a transaction: whether its comparison held."""

    header: Header
    succeeded: bool = False
    responses: list[Any] = []


class Status(msgspec.Struct, frozen=True):
    """Of a member's status, which has more fields with each version of etcd: the leader that it follows (none: empty),
    and what it complains of."""

    header: Header
    leader: str = ""
    errors: list[str] = []


Answer = TypeVar("Answer", Found, Changed, Status)


class Failure(msgspec.Struct, frozen=True):
    """Of a question that failed: gRPC's code and words."""

    code: int = 0
    message: str = ""
