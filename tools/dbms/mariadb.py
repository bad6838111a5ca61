# SPDX-License-Identifier: Apache-2.0
"""MariaDB: PyMySQL, CHECK TABLE for every table, and innochecksum for every file of InnoDB."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable
from contextlib import closing
from typing import cast

import pymysql

from tools.dbms.base import Connection, Dbms

_PORT = 3306
_CHECKSUMS_PORT = 3307  # tools/lab/dbvm/mariadb/checksums.sh
_CHECKSUMS_S = 120.0  # the server's end and some 20 files, emulated
_TABLES = """
SELECT CONCAT('`', table_schema, '`.`', table_name, '`') FROM information_schema.tables
WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('information_schema', 'performance_schema')
"""
# The server speaks first. An interpreter that imports next to nothing is started fast, beside a VM that boots.
_GREETED = f"import socket, sys; s = socket.create_connection((sys.argv[1], {_PORT}), 1); sys.exit(len(s.recv(5)) < 5)"


def connect(server: str) -> Connection:
    """A connection to the bank. Raises pymysql.err.OperationalError when there is none in 30 s."""
    # No time limit for an answer is PyMySQL's own choice. Its keepalives begin after two hours.
    made = pymysql.connect(host=server, port=_PORT, user="bank", database="bank", connect_timeout=30)
    return cast(Connection, made)


def answers(server: str) -> list[str]:
    """A command that succeeds if MariaDB greets."""
    return [sys.executable, "-I", "-S", "-c", _GREETED, server]


def damage(server: str) -> list[str]:
    """What CHECK TABLE … EXTENDED of every table, the error log and InnoDB's checksums say; the server is restarted.

    Raises pymysql.Error or OSError when the server or its VM does not answer.
    """
    rows: list[tuple[str, str, str, str]] = []
    with closing(connect(server)) as connection, connection.cursor() as cursor:
        cursor.execute(_TABLES)
        for (table,) in cursor.fetchall():
            cursor.execute(f"CHECK TABLE {table} EXTENDED")
            rows += cursor.fetchall()
    return table_complaints(rows) + file_complaints(_checksums(server))


def table_complaints(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """What is wrong by the answers to CHECK TABLE: rows of table, operation, kind, text."""
    rows = list(rows)
    wrong = [
        f"CHECK TABLE {table}: {kind}: {text}" for table, _, kind, text in rows if (kind, text) != ("status", "OK")
    ]
    ours = {"bank.accounts", "bank.ledger"} - {row[0] for row in rows}
    return wrong[:10] + [f"CHECK TABLE was not answered for {table}" for table in sorted(ours)]


def file_complaints(told: str) -> list[str]:
    """What is wrong by the words of checksums.sh: nothing, if its last line alone is there and counts some files."""
    *wrong, last = told.splitlines() or [""]
    word, _, count = last.partition(" ")
    if word != "checked" or not count.isdecimal():
        return [*wrong[:10], f"innochecksum did not come to its end: {last}"]
    return wrong[:10] or ([] if int(count) else ["innochecksum was shown no file"])


def _checksums(server: str) -> str:
    with socket.create_connection((server, _CHECKSUMS_PORT), _CHECKSUMS_S) as connection:
        with connection.makefile() as told:
            return told.read()


MARIADB = Dbms(
    key="mariadb",
    name="MariaDB",
    vm="maria",
    # The server alone. mariadb-client-core has a program that the making of its system tables needs.
    packages=("mariadb-server-core", "mariadb-client-core"),
    left_out=(),
    connect=connect,
    errors=(pymysql.Error, OSError),
    answers=answers,
    before_reading=(),  # InnoDB's table is its primary key, and the bank has no other
    damage=damage,
)
