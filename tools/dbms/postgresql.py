# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL: psycopg, and pg_amcheck over data checksums."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import cast

import psycopg

from tools.dbms.base import Connection, Dbms

# A client that waits for its server, however long: no keepalive and no timeout of TCP ends its connection.
_PATIENT = "keepalives=0 tcp_user_timeout=0"


def connect(server: str) -> Connection:
    """A connection to the bank. Raises psycopg.OperationalError when there is none in 30 s."""
    made = psycopg.connect(f"host={server} user=postgres dbname=bank connect_timeout=30 {_PATIENT}")
    return cast(Connection, made)  # psycopg's own types want statements that are literals


def answers(server: str) -> list[str]:
    """A command that succeeds if PostgreSQL answers."""
    address = f"host={server} user=postgres dbname=bank connect_timeout=1"
    return ["psql", "-Atc", "SELECT 1", address]


def amcheck(server: str) -> list[str]:
    """What pg_amcheck finds wrong in the bank's tables and indexes."""
    program = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_amcheck"))[-1]
    options = ["--heapallindexed", "--parent-check", "--no-password"]
    command = [str(program), "-h", server, "-U", "postgres", *options, "bank"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode == 0:
        return []
    return [f"pg_amcheck: {line}" for line in (done.stdout + done.stderr).splitlines()[:10]] or ["pg_amcheck failed"]


POSTGRESQL = Dbms(
    key="postgresql",
    name="PostgreSQL",
    vm="pg",
    packages=(
        "postgresql",
        # for the test of the plug gate, which needs a kernel that has sch_plug: this VM's
        "python3",
        "python3-pyroute2",
    ),
    # libLLVM and bitcode are for JIT, which is off.
    left_out=(
        "/usr/lib/postgresql/*/lib/bitcode/*",
        "/usr/lib/x86_64-linux-gnu/libLLVM*",
        "/usr/lib/llvm-*",
    ),
    connect=connect,
    errors=(psycopg.Error,),
    answers=answers,
    # An index would hide a row that is there twice.
    before_reading=tuple(f"SET enable_{path} = off" for path in ("indexscan", "indexonlyscan", "bitmapscan")),
    damage=amcheck,
)
