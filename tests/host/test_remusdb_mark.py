# SPDX-License-Identifier: Apache-2.0
"""The extension for a guest's PostgreSQL marks what belongs to an open transaction, and nothing else.

A real server in a Debian of its own, its packets seen on loopback. Under `release = "commit"` what is marked leaves
before the backup has it, so a mark on a reply to BEGIN, to COMMIT or a lone statement is an acknowledged row lost.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.host.marked import DSCP, PORT, Message, Wire
from tests.host.netlab import own_namespace, sh
from tools.lab import debian, pgbox
from tools.load import wait_for

pytestmark = pytest.mark.timeout(900)  # the first time a Debian is made for the server
REPO = Path(__file__).resolve().parents[2]
_START_S = 60.0
# `make dist-test` asks for all of them, so for every PostgreSQL that they have.
CODENAMES = list(pgbox.VERSIONS) if os.environ.get("REMUSDB_ALL_DEBIANS") else [debian.codename()]


@pytest.fixture(scope="module", params=CODENAMES)
def server(request: pytest.FixtureRequest) -> Iterator[None]:
    """PostgreSQL on loopback, which marks."""
    codename: str = request.param
    log = REPO / "build/test" / f"remusdb_mark-{codename}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    root = pgbox.ensure(codename, log.with_suffix(".build"))
    with own_namespace():
        sh("ip link set lo up")
        with pgbox.server(root, codename, f"remusdb_mark.dscp={DSCP}", log):
            wait_for(_answers, _START_S, f"PostgreSQL does not answer: see {log}", 0.2)
            yield


class Client:
    """Says SQL in the simple protocol, or statement by statement in the extended one; hears what came, and how."""

    def __init__(self) -> None:
        self.connection = psycopg.connect(f"host=127.0.0.1 port={PORT} user=postgres dbname=postgres", autocommit=True)
        with socket.socket(fileno=socket.dup(self.connection.fileno())) as same:
            self.wire = Wire(same.getsockname()[1])

    def say(self, *statements: str) -> list[Message]:
        """Each in a round trip of its own, except that all of one string go at once; what the last one brought."""
        for statement in statements:
            self.connection.pgconn.exec_(statement.encode())
            said = self.wire.messages()
        return said

    def ask(self, statement: str) -> list[Message]:
        """In the extended protocol: parse, bind, execute and sync in one packet."""
        self.connection.execute(statement, prepare=False, binary=True)
        return self.wire.messages()

    def close(self) -> None:
        """End the session."""
        self.connection.close()
        self.wire.close()


@pytest.fixture
def client(server: None) -> Iterator[Client]:
    """A session, and a table with a constraint that is looked at when it commits."""
    made = Client()
    made.say(
        "DROP TABLE IF EXISTS one, two",
        "CREATE TABLE one (key int PRIMARY KEY)",
        "CREATE TABLE two (key int REFERENCES one DEFERRABLE INITIALLY DEFERRED)",
    )
    yield made
    made.close()


def test_what_a_transaction_is_answered_is_marked_and_its_ends_are_not(client: Client) -> None:
    assert not _any(client.say("BEGIN"))
    assert _all(client.say("INSERT INTO one VALUES (1)"))
    assert _all(client.say("SELECT * FROM one"))
    assert _all(client.ask("SELECT count(*) FROM one"))
    assert _all(client.say("SAVEPOINT a", "SHOW timezone"))
    assert not _any(client.say("COMMIT"))
    assert not _any(client.say("SELECT 1"))
    assert not _any(client.say("BEGIN"))


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT", "END", "PREPARE TRANSACTION 'x'"])
def test_no_way_to_end_a_transaction_is_marked(client: Client, end: str) -> None:
    client.say("BEGIN")
    assert _all(client.say("INSERT INTO one VALUES (1)"))
    said = client.say(end)
    if end.startswith("PREPARE"):  # before anything is asserted: its locks outlive the session
        assert client.say("ROLLBACK PREPARED 'x'")[0].word == "ROLLBACK PREPARED"
    assert not _any(said)
    assert not _any(client.say("SELECT 1"))


@pytest.mark.parametrize("end", ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"])
def test_a_chain_ends_one_and_begins_another(client: Client, end: str) -> None:
    client.say("BEGIN")
    assert _all(client.say("INSERT INTO one VALUES (1)"))
    assert not _any(client.say(end))
    assert _all(client.say("SELECT 1"))
    assert not _any(client.say("COMMIT"))


def test_statements_of_their_own_are_never_marked(client: Client) -> None:
    said = client.say("INSERT INTO one SELECT generate_series(1, 1000)", "SELECT * FROM one a, one b LIMIT 100000")
    assert len(said) > 100_000 and not _any(said)
    assert not _any(client.ask("SELECT count(*) FROM one"))
    assert not _any(client.say("DO 'BEGIN INSERT INTO one VALUES (0); COMMIT; END'"))


@pytest.mark.parametrize("text", ["COMMIT; BEGIN; SELECT 1", "COMMIT; SELECT 1", "COMMIT; SELECT 1; SELECT 2; BEGIN"])
def test_what_comes_with_a_commit_is_not_marked(client: Client, text: str) -> None:
    """The reply to COMMIT waits in the server's buffer when the next statement begins."""
    client.say("BEGIN")
    assert _all(client.say("INSERT INTO one VALUES (1)"))
    assert not _any(client.say(text))


def test_large_results_of_a_transaction_are_marked_and_its_commit_is_not(client: Client) -> None:
    client.say("INSERT INTO one SELECT generate_series(1, 1000)", "BEGIN")
    said = client.say("SELECT * FROM one a, one b LIMIT 300000")
    assert len(said) > 300_000 and _all(said)
    assert not _any(client.say("COMMIT"))


def test_a_failed_transaction_is_answered_without_a_mark(client: Client) -> None:
    client.say("BEGIN", "SELECT 1")
    client.say("SELECT 1 / 0")
    for statement in ("SELECT 1", "SAVEPOINT a", "ROLLBACK"):
        assert not _any(client.say(statement))


def test_a_commit_that_fails_tells_so_at_the_earliest_as_part_of_what_is_lost(client: Client) -> None:
    """Its error may be marked (the transaction is gone on both hosts), the state that follows may not."""
    client.say("BEGIN", "INSERT INTO two VALUES (7)")
    said = client.say("COMMIT")
    assert [message.kind for message in said] == ["E", "Z"] and said[1].marked is False
    assert not _any(client.say("SELECT count(*) FROM two"))


def test_a_pipelined_next_transaction_leaves_no_mark_on_the_commit_before_it(client: Client) -> None:
    """The client says COMMIT, BEGIN and more before it has read anything, again and again."""
    with client.connection.pipeline() as pipeline:
        for key in range(200):
            for statement in ("BEGIN", f"INSERT INTO one VALUES ({key})", "SELECT * FROM one", "COMMIT"):
                client.connection.execute(statement)
                pipeline.sync()
    for message in client.wire.messages():
        if message.word in ("BEGIN", "COMMIT") or (message.kind, message.body) == ("Z", b"I"):
            assert message.marked is False
    assert not client.wire.again or not any(marked for _payload, marked in client.wire.again)


def test_what_the_kernel_still_had_to_send_is_not_marked(server: None) -> None:
    """The client takes nothing for a while, and has asked for a transaction after a large statement of its own."""
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", PORT))
        slow.settimeout(10)
        words = b"user\0postgres\0database\0postgres\0\0"
        slow.sendall(struct.pack("!II", 8 + len(words), 3 << 16) + words)
        while not slow.recv(4096).endswith(b"Z\0\0\0\5I"):
            pass
        wire = Wire(slow.getsockname()[1])
        for text in (b"SELECT repeat('x', 30000)", b"BEGIN", b"SELECT 1"):
            slow.sendall(b"Q" + struct.pack("!I", 5 + len(text)) + text + b"\0")
        time.sleep(0.5)  # until the server has written all that
        while not slow.recv(4096).endswith(b"Z\0\0\0\5T"):
            pass
        time.sleep(0.1)
        said = [message for message in wire.messages() if message.kind == "D"]
        wire.close()
    assert len(said[0].body) > 30000 and said[0].marked is False


def test_a_server_without_the_setting_marks_nothing(client: Client) -> None:
    client.say("ALTER SYSTEM SET remusdb_mark.dscp = 0", "SELECT pg_reload_conf()")
    try:
        wait_for(lambda: client.say("SHOW remusdb_mark.dscp")[1].body.endswith(b"0"), 10, "not reloaded", 0.1)
        assert not _any(client.say("BEGIN", "SELECT 1"))
    finally:
        client.say("ROLLBACK", "ALTER SYSTEM RESET remusdb_mark.dscp", "SELECT pg_reload_conf()")


def _any(said: list[Message]) -> bool:
    assert said
    return any(message.marked is not False for message in said)


def _all(said: list[Message]) -> bool:
    assert said
    return all(message.marked for message in said)


def _answers() -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1):
        return True
    return False
