# SPDX-License-Identifier: Apache-2.0
"""What a MySQL or MariaDB server says. Not read yet: all of it waits."""

from __future__ import annotations


class MySqlReader:
    """Of one connection, from its first byte."""

    def __init__(self) -> None:
        self.open = False

    def read(self, payload: bytes, dscp: int) -> bool:
        """See Reader."""
        return False
