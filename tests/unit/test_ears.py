# SPDX-License-Identifier: Apache-2.0
"""How many voices an agent keeps, and what it does with junk."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from remusdb.core.beats import Mouth, Offer, Way
from remusdb.transport.datagrams import Datagrams, come_through
from remusdb_agents.backup import ears as module
from remusdb_agents.backup.ears import PROBES_MOST, Ears, listen
from tests.waiting import eventually

LOOPBACK = "127.0.0.1"


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def ears(pauses: list[float]) -> Iterator[Ears]:
    made = Ears(LOOPBACK, 0, pauses.append)
    yield made
    made.close()


def port_of(ears: Ears) -> int:
    return int(ears._socket.getsockname()[1])


def answered(ears: Ears, offer: Offer, term: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.sendto(Mouth(Way.TO_AGENT, offer, term).next() or b"", (LOOPBACK, port_of(ears)))
        with contextlib.suppress(TimeoutError):
            return bool(sock.recv(100))
    return False


def test_a_vm_has_one_voice_and_the_newest_is_heard(ears: Ears) -> None:
    first, second, other = ears.voice("db1", 1), ears.voice("db1", 2), ears.voice("db2", 1)
    assert [answered(ears, voice.offer, term) for voice, term in ((first, 1), (second, 2), (other, 1))] == [
        False,
        True,
        True,
    ]
    assert (first.heard_at, bool(second.heard_at)) == (0.0, True)


def test_checks_are_bounded_and_keep_no_voice_of_a_vm_from_being_heard(ears: Ears) -> None:
    voice = ears.voice("db1", 1)
    offers = [ears.probe() for _ in range(PROBES_MOST + 5)]
    assert not come_through(offers[0], LOOPBACK, port_of(ears), 0.3), "the oldest went"
    assert come_through(offers[-1], LOOPBACK, port_of(ears))
    assert answered(ears, voice.offer, 1)


def test_junk_is_looked_at_no_faster_than_its_budget(ears: Ears, pauses: list[float]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(3 * module._BATCH):
            sock.sendto(b"junk", (LOOPBACK, port_of(ears)))
        eventually(lambda: len(pauses) >= 3, 10, "strangers are looked at without a pause")
    assert pauses[0] == pytest.approx(module._BATCH / module.JUNK_PER_S)


def test_a_port_that_is_taken_is_no_reason_not_to_start(ears: Ears, caplog: pytest.LogCaptureFixture) -> None:
    assert listen(LOOPBACK, port_of(ears)) is None
    assert "no heartbeat datagrams" in caplog.text


def test_a_primary_without_an_offer_or_an_address_sends_none() -> None:
    made = Datagrams()
    for offer, ends in ((None, (("127.0.0.1", 1), ("127.0.0.1", 2))), (Offer(1, bytes(32)), None)):
        made.follow(offer, 1, ends)
        made.beat()
        assert not made.offered and not made.heard
    made.close()
