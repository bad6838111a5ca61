# SPDX-License-Identifier: Apache-2.0
"""Heartbeat datagrams: one that is forged, comes again, late, from another session or an older term says nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from remusdb.core import beats
from remusdb.core.beats import BYTES, COUNTER_MAX, KEY_BYTES, Ear, Mouth, Offer, Way, interval_s, session_of
from remusdb.core.messages import Welcome, pack, unpack
from remusdb.errors import BadFrame

OFFER = Offer(7, bytes(range(KEY_BYTES)))
TERM = 3


def mouth(offer: Offer = OFFER, term: int = TERM, way: Way = Way.TO_AGENT) -> Mouth:
    return Mouth(way, offer, term)


def ear() -> Ear:
    return Ear(Way.TO_AGENT, OFFER, TERM)


def said(speaker: Mouth, count: int = 1) -> list[bytes]:
    made = [speaker.next() for _ in range(count)]
    return [one for one in made if one is not None]


def test_each_is_heard_once_and_has_its_fixed_size() -> None:
    listener, datagrams = ear(), said(mouth(), 50)
    assert all(listener.take(one) for one in datagrams)
    assert {len(one) for one in datagrams} == {BYTES}
    assert not any(listener.take(one) for one in datagrams), "replayed"


def test_a_late_one_says_nothing_and_keeps_no_later_one_from_being_heard() -> None:
    listener = ear()
    first, second, third, fourth = said(mouth(), 4)
    assert [listener.take(one) for one in (first, third, second, fourth)] == [True, True, False, True]


OTHERS: dict[str, Callable[[], bytes]] = {
    "a forged one": lambda: said(mouth(Offer(7, bytes(KEY_BYTES))))[0],
    "an older term": lambda: said(mouth(term=TERM - 1))[0],
    "a newer term": lambda: said(mouth(term=TERM + 1))[0],
    "another session": lambda: said(mouth(Offer(8, OFFER.key)))[0],
    "its own, sent back": lambda: said(mouth(way=Way.TO_PRIMARY))[0],
    "a longer one": lambda: said(mouth())[0] + b"\0",
    "a shorter one": lambda: said(mouth())[0][:-1],
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_other_end_of_this_connection_did_not_say_in_this_term_is_not_heard(name: str) -> None:
    listener = ear()
    assert not listener.take(OTHERS[name]())
    assert listener.newest == 0 and listener.take(said(mouth())[0])


def test_one_changed_bit_anywhere_makes_it_nothing() -> None:
    (good,) = said(mouth())
    for bit in range(8 * BYTES):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        assert not ear().take(changed), f"bit {bit}"


def test_a_number_that_was_made_up_does_not_deafen() -> None:
    """Without the key a counter is nobody's word: a forged high one must not make all that follow look old."""
    listener, speaker = ear(), mouth()
    forged = bytearray(said(speaker)[0])
    forged[24:32] = b"\xff" * 8
    assert not listener.take(forged)
    assert listener.take(said(speaker)[0])


def test_numbers_are_used_up_and_never_begin_again() -> None:
    speaker, listener = mouth(), ear()
    speaker._counter = COUNTER_MAX - 1
    (last,) = said(speaker)
    assert listener.take(last) and listener.newest == COUNTER_MAX
    assert speaker.next() is None and speaker.next() is None


def test_junk_is_told_without_a_key_and_no_junk_is_heard() -> None:
    chance = random.Random(1)
    listener = ear()
    for _ in range(2000):
        junk = chance.randbytes(chance.choice((0, 1, BYTES - 1, BYTES, BYTES, BYTES, BYTES + 1, 1500)))
        assert session_of(junk) is None
        assert not listener.take(junk)


def test_no_mac_is_reckoned_for_what_is_of_another_session_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = ear()
    (good,), (other,) = said(mouth()), said(mouth(Offer(8, OFFER.key)))
    assert listener.take(good)
    monkeypatch.setattr(beats, "_mac", lambda _key, _fields: pytest.fail("work for a stranger"))
    assert not listener.take(good)
    assert not listener.take(other)


def test_the_key_is_in_no_text_of_an_offer() -> None:
    assert repr(OFFER.key) not in repr(OFFER) and str(OFFER.key) not in f"{OFFER}"


def test_datagrams_come_more_often_than_heartbeats_and_never_as_a_flood() -> None:
    assert interval_s(0.1) == pytest.approx(0.025)
    assert interval_s(0.001) == beats.LEAST_INTERVAL_S


def test_hosts_of_which_one_is_older_understand_each_other_without_datagrams() -> None:
    new = Welcome("0.2.0", "beta", 3, 0, False, 500, datagrams=OFFER)
    fields = [(one.name, one.type, one.default) for one in msgspec.structs.fields(Welcome) if one.name != "datagrams"]
    older = msgspec.defstruct("Welcome", [(name, kind) for name, kind, _ in fields[:6]])
    heard = unpack(older, pack(new))
    assert [getattr(heard, name) for name, *_ in fields[:6]] == ["0.2.0", "beta", 3, 0, False, 500]
    assert unpack(Welcome, pack(heard)).datagrams is None
    assert unpack(Welcome, pack(new)).datagrams == OFFER


@pytest.mark.parametrize("offer", [{"session": 1, "key": b"short"}, {"session": -1, "key": bytes(32)}, {"session": 1}])
def test_an_offer_that_cannot_be_is_refused(offer: dict[str, object]) -> None:
    fields = msgspec.to_builtins(Welcome("0.2.0", "beta", 3, 0, False, 500))
    with pytest.raises(BadFrame):
        unpack(Welcome, msgspec.msgpack.encode({**fields, "datagrams": offer}))
