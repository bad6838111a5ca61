# SPDX-License-Identifier: Apache-2.0
"""Records what real servers answer, for the tests of the readers of commit protection:

    python -m tools.streams postgresql PORT > tests/unit/data/release/postgresql15.json
    python -m tools.streams mariadb PORT > tests/unit/data/release/mariadb1011.json

against a server on loopback that lets user postgres, or root, in without a password; table and procedures `remus_*` are
made in it. One object: by scenario, a list of [what was asked, what the server then sent, in hex].
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pymysql

Answers = list[list[str]]
PG_SETUP = """
drop table if exists remus_t; create table remus_t (id serial primary key, a int);
insert into remus_t (a) select * from generate_series(1, 50);
create or replace procedure remus_p() language plpgsql as 'begin commit; insert into remus_t (a) values (1); end';
create or replace procedure remus_row(inout x int) language plpgsql as 'begin x := 7; end'"""
PG_SIMPLE = {
    "plain": ["BEGIN", "SELECT * FROM remus_t", "UPDATE remus_t SET a = a + 1", "SELECT 1", "COMMIT", "SELECT 1"],
    "chain": ["BEGIN", "SELECT 1", "COMMIT AND CHAIN", "SELECT 2", "ROLLBACK AND CHAIN", "SELECT 3", "COMMIT"],
    "batch": ["BEGIN", "SELECT 1; COMMIT; BEGIN; SELECT 2", "SELECT 3", "ROLLBACK"],
    "error": ["BEGIN", "SELECT 1/0", "SELECT 1", "ROLLBACK"],
    "savepoint": ["BEGIN", "SAVEPOINT s", "SELECT 1/0", "ROLLBACK TO s", "SELECT 1", "RELEASE s", "COMMIT"],
    "prepared": ["BEGIN", "SELECT 1", "PREPARE TRANSACTION 'x'", "COMMIT PREPARED 'x'", "SELECT 1"],
    "call": ["CALL remus_p()", "BEGIN", "CALL remus_row(1)", "SELECT 1", "CALL remus_p()", "SELECT 1", "ROLLBACK"],
    "notify": ["LISTEN remus", "BEGIN", "NOTIFY remus", "SELECT 1", "COMMIT", "SELECT 1"],
    "settings": ["BEGIN", "SET LOCAL application_name = 'x'", "SELECT 1", "COMMIT", "SELECT 1"],
    "notice": ["BEGIN", "BEGIN", "SELECT 1", "COMMIT"],
    "cursor": ["BEGIN", "DECLARE c CURSOR FOR SELECT * FROM remus_t", "FETCH 20 FROM c", "CLOSE c", "COMMIT"],
    "copy": ["BEGIN", "COPY remus_t TO STDOUT", "SELECT 1", "COMMIT"],
    "bulk": ["BEGIN", "SELECT repeat('x', 300) FROM generate_series(1, 80)", "COMMIT"],
}
MY_SETUP = [
    "CREATE DATABASE IF NOT EXISTS remus",
    "USE remus",
    "DROP TABLE IF EXISTS remus_t",
    "CREATE TABLE remus_t (id INT AUTO_INCREMENT PRIMARY KEY, a INT) ENGINE=InnoDB",
    "CREATE OR REPLACE TABLE remus_u (a INT) ENGINE=InnoDB",
    "INSERT INTO remus_t (a) VALUES (1), (2), (3), (4)",
    "CREATE OR REPLACE PROCEDURE remus_p() BEGIN COMMIT; START TRANSACTION; UPDATE remus_t SET a = a + 1; END",
    "CREATE OR REPLACE PROCEDURE remus_row() BEGIN COMMIT; START TRANSACTION; SELECT 5; END",
]
MY_SIMPLE = {
    "plain": [
        *("BEGIN", "SELECT * FROM remus_t", "UPDATE remus_t SET a = a + 1", "INSERT INTO remus_t (a) VALUES (7)"),
        *("INSERT INTO remus_u VALUES (1)", "DELETE FROM remus_u", "SELECT 1", "COMMIT", "SELECT 1"),
    ],
    "chain": ["BEGIN", "SELECT 1", "COMMIT AND CHAIN", "SELECT 2", "ROLLBACK AND CHAIN", "SELECT 3", "COMMIT"],
    "begin": ["BEGIN", "SELECT 1", "START TRANSACTION", "SELECT 2", "COMMIT"],
    "call": ["BEGIN", "SELECT 1", "CALL remus_p()", "SELECT 2", "CALL remus_row()", "SELECT 3", "COMMIT"],
    "error": ["BEGIN", "SELECT 1", "SELECT nothing", "SELECT 2", "SELECT 3", "ROLLBACK"],
    "batch": ["BEGIN", "SELECT 1; COMMIT; BEGIN; SELECT 2", "SELECT 3", "ROLLBACK"],
    "implicit": ["BEGIN", "SELECT 1", "ANALYZE TABLE remus_t", "SELECT 2", "BEGIN", "ALTER TABLE remus_u ADD b INT"],
    "manual": [
        "SET autocommit = 0",
        "SELECT * FROM remus_t",
        "SELECT 1",
        "ANALYZE TABLE remus_t",
        "SELECT 1",
        "COMMIT",
    ],
    "compound": ["BEGIN", "BEGIN NOT ATOMIC COMMIT; START TRANSACTION; UPDATE remus_t SET a = 3; END", "COMMIT"],
    "bulk": ["BEGIN", "SELECT REPEAT('x', 300), seq FROM seq_1_to_80", "SELECT 1", "COMMIT"],
}


@contextlib.contextmanager
def recorded(server: int) -> Iterator[tuple[int, Callable[[], bytes]]]:
    """A port that leads to `server`, and what takes from it what came from there since the last time."""
    kept = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as door:

        def carry(source: socket.socket, target: socket.socket, keep: bool) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    if keep:
                        kept.extend(data)
                    target.sendall(data)

        def serve() -> None:
            client, _ = door.accept()
            other = socket.create_connection(("127.0.0.1", server))
            threading.Thread(target=carry, args=(client, other, False), daemon=True).start()
            carry(other, client, True)

        threading.Thread(target=serve, daemon=True).start()

        def taken() -> bytes:
            data = bytes(kept)
            kept.clear()
            return data

        yield door.getsockname()[1], taken


def postgresql(server: int) -> dict[str, Answers]:
    """Scenarios in the simple protocol, and a pipeline in the extended one."""
    host = "host=127.0.0.1 user=postgres dbname=postgres sslmode=prefer gssencmode=disable port={}"
    with psycopg.connect(host.format(server), autocommit=True) as setup:
        setup.execute(PG_SETUP)
    found = {}
    for name, queries in PG_SIMPLE.items():
        with recorded(server) as (port, taken), psycopg.connect(host.format(port), autocommit=True) as client:
            found[name] = [["", taken().hex()]]
            for query in queries:
                result = client.pgconn.exec_(query.encode())
                while "COPY" in query and client.pgconn.get_copy_data(0)[0] > 0:
                    pass
                while "COPY" in query and client.pgconn.get_result() is not None:
                    pass
                del result
                found[name].append([query, taken().hex()])
    with recorded(server) as (port, taken), psycopg.connect(host.format(port), autocommit=True) as client:
        found["extended"] = [["", taken().hex()]]
        for query in ("BEGIN", "SELECT a FROM remus_t WHERE id = $1", "COMMIT"):
            client.pgconn.exec_params(query.encode(), [b"1"] if "$1" in query else [])
            found["extended"].append([query, taken().hex()])
        with client.pipeline():
            for query in ("BEGIN", "SELECT 1", "COMMIT", "SELECT 2"):
                client.execute(query)
        found["extended"].append(["BEGIN, SELECT, COMMIT, SELECT in a pipeline", taken().hex()])
    return found


def mariadb(server: int) -> dict[str, Answers]:
    """Scenarios in the text protocol, with old EOF packets: PyMySQL has no other, and no compression."""
    first: Any = pymysql.connect(host="127.0.0.1", port=server, user="root", autocommit=True)
    for query in MY_SETUP:
        first.query(query)
    found = {}
    for name, queries in MY_SIMPLE.items():
        with recorded(server) as (port, taken):
            flag = pymysql.constants.CLIENT.MULTI_STATEMENTS
            client: Any = pymysql.connect(host="127.0.0.1", port=port, user="root", database="remus", client_flag=flag)
            found[name] = [["", taken().hex()]]
            for query in queries:
                with contextlib.suppress(pymysql.Error):
                    client.query(query)
                    while client._result.has_next:  # noqa: SLF001 - next_result() alone waits where none follows
                        client.next_result()
                found[name].append([query, taken().hex()])
            client.close()
    return found


if __name__ == "__main__":
    made = {"postgresql": postgresql, "mariadb": mariadb}[sys.argv[1]](int(sys.argv[2]))
    json.dump(made, sys.stdout, indent=1)
    print()
