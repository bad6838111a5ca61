# SPDX-License-Identifier: Apache-2.0
"""What the lab must know of a DBMS: what its VM is made of, how a client talks to it, and how damage shows.

The bank and its transactions are the same for all; their statements are plain SQL that each of them understands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


class Cursor(Protocol):
    """Of PEP 249, what the workload uses."""

    def execute(self, query: str, args: Any = None, /) -> object:
        """One statement, one round trip."""

    def fetchall(self) -> Sequence[Any]:
        """All rows of the last statement."""


class Connection(Protocol):
    """Of PEP 249, what the workload uses. A transaction begins by itself."""

    def cursor(self) -> AbstractContextManager[Cursor]:
        """A cursor, closed at the end of its block."""

    def commit(self) -> None:
        """Returns when the server has acknowledged."""

    def close(self) -> None:
        """Ends the connection; what was not committed is rolled back."""


@dataclass(frozen=True)
class Dbms:
    """One database system. Functions are given the address of the server."""

    key: str  # `make demo DB=key`, and the folder of its scripts in tools/lab/dbvm
    name: str  # as people write it
    vm: str  # what the lab calls a VM that has it
    packages: tuple[str, ...]  # Debian's, in the VM beside those of every VM
    left_out: tuple[str, ...]  # files of these packages that nothing in the VM reads, as dpkg's patterns
    connect: Callable[[str], Connection]  # to the bank, within 30 s; no time limit of the client's ends it later
    errors: tuple[type[Exception], ...]  # what `connect` and the connection raise
    answers: Callable[[str], list[str]]  # a command that succeeds, soon, if the server answers clients
    before_reading: tuple[str, ...]  # statements, so that SELECT reads a table itself and no index beside it
    damage: Callable[[str], list[str]]  # what the DBMS's own tools find wrong in its files; takes a minute at most
