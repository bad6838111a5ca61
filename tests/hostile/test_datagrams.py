# SPDX-License-Identifier: Apache-2.0
"""Heartbeat datagrams of those who have no key: they cost next to nothing, change nothing, and are not answered."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator

import psutil

from remusdb.core.beats import BYTES, MAGIC, VERSION, Mouth, Offer, Way
from tests.hostile.rig import AGENT, SOURCES, Rig, eventually
from tests.hostile.sayings import honest

FLOOD = 40_000
ANSWER_S = 5.0
QUIET_S = 0.3


@contextlib.contextmanager
def mouth_at(source: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((source, 0))
        made.settimeout(ANSWER_S)
        yield made


def answered(sock: socket.socket, port: int, data: bytes, within_s: float) -> bool:
    sock.settimeout(within_s)
    sock.sendto(data, (AGENT, port))
    with contextlib.suppress(TimeoutError):
        return len(sock.recv(2 * BYTES)) == BYTES
    return False


def junk(chance: random.Random) -> bytes:
    head = MAGIC + bytes([VERSION, 1, 0, 0])
    return chance.choice([head + chance.randbytes(BYTES - 8), chance.randbytes(BYTES), chance.randbytes(1400), b""])


def silence_ms(rig: Rig) -> int:
    (found,) = rig.status()
    return int(found["primary_silence_ms"])


def test_a_flood_of_datagrams_leaves_nothing_behind_and_takes_little(agent: Rig) -> None:
    chance = random.Random(1)
    with agent.unchanged(), mouth_at(SOURCES["alpha"]) as sock:
        process = psutil.Process(agent.pid)
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        for _ in range(FLOOD):
            with contextlib.suppress(OSError):
                sock.sendto(junk(chance), (AGENT, agent.port))
        eventually(lambda: agent.serves("gamma"), "the agent is deaf")
        share = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)
        assert share < 0.5, f"{100 * share:.0f} % of a CPU"
        sock.settimeout(QUIET_S)
        with contextlib.suppress(TimeoutError):
            raise AssertionError(f"a stranger was answered: {sock.recv(2000)!r}")


def test_only_the_primary_s_own_newest_datagram_is_a_sign_of_life(rig: Rig) -> None:
    rig.start(made_up=True)
    caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
    caller.commit(welcome.term, 1)
    eventually(lambda: rig.status()[0]["state"] == "ready", "epoch 1 does not arrive")
    offer, term = welcome.datagrams, welcome.term
    assert offer is not None
    mouth = Mouth(Way.TO_AGENT, offer, term)
    first, second, third = (mouth.next() or b"" for _ in range(3))
    strangers = [
        Mouth(Way.TO_AGENT, Offer(offer.session, bytes(32)), term).next(),
        Mouth(Way.TO_AGENT, Offer(offer.session ^ 1, offer.key), term).next(),
        Mouth(Way.TO_AGENT, offer, term - 1).next(),
        Mouth(Way.TO_PRIMARY, offer, term).next(),
    ]
    with mouth_at(SOURCES["gamma"]) as mine, mouth_at(SOURCES["alpha"]) as other:
        time.sleep(1.0)
        assert silence_ms(rig) > 900
        assert answered(mine, rig.port, second, ANSWER_S)
        assert silence_ms(rig) < 500
        time.sleep(1.0)
        for data in [*strangers, second, first]:
            assert data is not None and not answered(other, rig.port, data, QUIET_S)
        assert silence_ms(rig) > 1000, "a stranger, a replay or a late one counts as life"
        assert answered(other, rig.port, third, ANSWER_S), "the key says who it is, whatever its address"


def test_a_connection_s_key_is_worth_nothing_after_the_next(rig: Rig) -> None:
    rig.start(made_up=True)
    caller, first = rig.welcomed(honest("pg", "gamma"), "gamma")
    caller.commit(first.term, 1)
    eventually(lambda: rig.status()[0]["state"] == "ready", "epoch 1 does not arrive")
    caller.say_bye(first.term)
    _, second = rig.welcomed(honest("pg", "gamma"), "gamma")
    assert first.datagrams and second.datagrams and first.datagrams != second.datagrams
    with mouth_at(SOURCES["gamma"]) as sock:
        old, new = (Mouth(Way.TO_AGENT, one.datagrams, one.term).next() for one in (first, second) if one.datagrams)
        assert old and new and not answered(sock, rig.port, old, QUIET_S)
        assert answered(sock, rig.port, new, ANSWER_S)
