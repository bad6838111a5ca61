# SPDX-License-Identifier: Apache-2.0
"""An etcd that answers nonsense, or with a real one's trouble: nothing but "it did not answer" comes of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from remusdb.arbiter.register import claim
from remusdb.core.ownership import Ownership, Rule, Verdict, take_over
from remusdb.errors import ArbiterSilent, ArbiterUnreachable
from tests.unit.etcd_gateway import DEEP, HEADER, RECORD, WON, Gateway, gateway_at_work, kvs

RULE = take_over("b", "a", 1)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with gateway_at_work() as gateway:
        yield gateway


NO_ANSWERS = {
    "deep": f'{{"header": {HEADER}, "more": {DEEP}}}',
    "deep in what is not known": f'{{"header": {HEADER}, "x": {DEEP}}}',
    "deep alone": DEEP,
    "not UTF-8": b'{"header": {"cluster_id": "\xff"}}',
    "not UTF-8 where it is not looked at": b'{"header": {"cluster_id": "7", "revision": "1", "x": "\xff"}, "x\xff": 1}',
    "empty": "",
    "null": "null",
    "a list": "[]",
    "NaN": "NaN",
    "cut off": RECORD[:-3],
    "no header": "{}",
    "no leader": f'{{"header": {HEADER}, "error": "no leader"}}',
    "no leader, with an empty list": f'{{"header": {HEADER}, "kvs": [], "error": "no leader"}}',
    "an error as an object": f'{{"header": {HEADER}, "error": {{"message": "no leader"}}}}',
    "an empty error": f'{{"header": {HEADER}, "error": ""}}',
    "a code": f'{{"header": {HEADER}, "code": 14, "message": "no leader"}}',
    "what has no meaning": f'{{"header": {HEADER}, "result": {{}}}}',
    "a header that says little": '{"header": {"cluster_id": "7"}}',
    "a header without a revision": '{"header": {"cluster_id": "7", "member_id": "1", "raft_term": "2"}}',
    "revision 0": f'{{"header": {HEADER.replace("41", "0")}}}',
    "a revision that is no number": f'{{"header": {HEADER.replace("41", "4_1")}}}',
    "a revision of 5000 digits": f'{{"header": {HEADER.replace("41", "4" * 5000)}}}',
    "a cluster that is no number": f'{{"header": {HEADER.replace(chr(34) + "7", chr(34) + "x" * 5000)}}}',
}  # fmt: skip
NO_RECORDS = {
    "keys that are null": f'{{"header": {HEADER}, "kvs": null}}',
    "counted, not shown": f'{{"header": {HEADER}, "count": "1"}}',
    "counted, shown as none": f'{{"header": {HEADER}, "kvs": [], "count": "1"}}',
    "more to come": f'{{"header": {HEADER}, "more": true}}',
    "another key's": kvs(b'{"owner": "a", "term": 1}', key=base64.b64encode(b"/remusdb/other").decode()),
    "no key's": f'{{"header": {HEADER}, "kvs": [{{"mod_revision": "4", "value": "e30="}}], "count": "1"}}',
    "two keys": RECORD.replace("}]", "}, " + RECORD[RECORD.index("[") + 1 : RECORD.index("]")] + "]"),
    "a value that is not base64": RECORD.replace('"value": "', '"value": "*'),
    "a value that is not ASCII": RECORD.replace('"value": "', '"value": "ä'),
    "a value without JSON": kvs(b"\0"),
    "a value that is not UTF-8": kvs(b'{"owner": "\xff", "term": 1}'),
    "a deep value": kvs(b'{"owner": "a", "term": 1, "x": ' + DEEP.encode() + b"}"),
    "a number of 5000 digits": kvs(b'{"owner": "a", "term": ' + b"1" * 5000 + b"}"),
    "term -1": kvs(b'{"owner": "a", "term": -1}'),
    "term 2^64": kvs(b'{"owner": "a", "term": 18446744073709551616}'),
    "term 2^64 - 1": kvs(b'{"owner": "a", "term": 18446744073709551615}'),
    "a term that is true": kvs(b'{"owner": "a", "term": true}'),
    "a term that is a fraction": kvs(b'{"owner": "a", "term": 1.5}'),
    "an owner without end": kvs(b'{"owner": "' + b"a" * 100_000 + b'", "term": 1}'),
    "no owner": kvs(b'{"term": 1}'),
    "revision 0": kvs(b'{"owner": "a", "term": 1}', "0"),
    "revision -1": kvs(b'{"owner": "a", "term": 1}', "-1"),
    "a revision with an underscore": kvs(b'{"owner": "a", "term": 1}', "1_0"),
    "a revision of 5000 digits": kvs(b'{"owner": "a", "term": 1}', "4" * 5000),
    "a revision that is to come": kvs(b'{"owner": "a", "term": 1}', "42"),
}
FAILURES = {
    "deep": DEEP,
    "deep message": f'{{"code": 8, "message": {DEEP}}}',
    "not UTF-8": b'{"message": "\xff"}',
    "empty": "",
    "a code that is text": '{"code": "x", "message": "no"}',
    "a code of 5000 digits": f'{{"code": {"1" * 5000}}}',
    "a long message": f'{{"code": 14, "message": "{"x" * 900_000}"}}',
    "a message that a terminal obeys": '{"code": 14, "message": "\\u001b]0;x\\u0007\\ud800\\n"}',
}


@pytest.mark.parametrize("body", [*NO_ANSWERS.values(), *NO_RECORDS.values()], ids=[*NO_ANSWERS, *NO_RECORDS])
def test_what_is_no_answer_is_not_taken_for_no_record(gateway: Gateway, body: str | bytes) -> None:
    gateway.says("kv/range", body)
    with pytest.raises(ArbiterUnreachable) as caught:
        gateway.arbiter.read("vm")
    assert caught.value.hint and len(str(caught.value)) < 1500
    found = gateway.arbiter.claim("vm", RULE)
    assert found.verdict is Verdict.UNREACHED and found.why


@pytest.mark.parametrize("body", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_of_a_change_without_an_answer_nothing_is_known(gateway: Gateway, body: str | bytes) -> None:
    """Neither a defeat nor a victory: etcd may have made it, and may still."""
    gateway.says("kv/range", RECORD)
    gateway.says("kv/txn", body)
    assert gateway.arbiter.claim("vm", RULE).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("body", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_error_that_cannot_be_read_is_an_error(gateway: Gateway, status: int, body: str | bytes) -> None:
    gateway.says("kv/range", (status, body))
    with pytest.raises(ArbiterUnreachable, match=str(status)) as caught:
        gateway.arbiter.read("vm")
    assert len(str(caught.value)) < 1500 and str(caught.value).isprintable()
    gateway.says("kv/range", RECORD)
    gateway.says("kv/txn", (status, body))
    assert gateway.arbiter.claim("vm", RULE).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("body", [*NO_ANSWERS.values(), *NO_RECORDS.values()], ids=[*NO_ANSWERS, *NO_RECORDS])
def test_a_change_that_was_made_stays_unknown_whatever_comes_then(gateway: Gateway, body: str | bytes) -> None:
    """In the middle of a takeover: the swap is done, its answer lost, and what is read then is nonsense."""
    gateway.says("kv/range", RECORD, body)
    gateway.says("kv/txn", (500, ""))
    assert gateway.arbiter.claim("vm", RULE).verdict is Verdict.UNKNOWN


def test_a_real_answer_is_one(gateway: Gateway) -> None:
    for empty in (f'{{"header": {HEADER}}}', f'{{"header": {HEADER}, "kvs": [], "more": false, "count": "0"}}'):
        gateway.says("kv/range", empty)
        assert gateway.arbiter.read("vm") is None
    gateway.says("kv/range", RECORD)
    gateway.says("kv/txn", WON)
    assert gateway.arbiter.read("vm") == Ownership("a", 1)
    assert gateway.arbiter.claim("vm", RULE).verdict is Verdict.WON
    gateway.says("kv/txn", f'{{"header": {HEADER}}}')  # proto3 leaves out what is false: somebody else was faster
    assert gateway.arbiter.claim("vm", RULE).verdict is not Verdict.WON


@pytest.mark.parametrize(
    "body", [*NO_ANSWERS.values(), *FAILURES.values()], ids=[*NO_ANSWERS, *(f"f {n}" for n in FAILURES)]
)
@pytest.mark.parametrize("status", [200, 500])
def test_health_is_told_whatever_the_members_say(gateway: Gateway, status: int, body: str | bytes) -> None:
    gateway.says("kv/txn", (status, body))
    gateway.says("maintenance/status", (status, body))
    health = gateway.arbiter.health()
    assert health.problem and health.hint and len(health.problem) < 1500


class Broken:
    """A register in which something fails that nobody thought of."""

    def __init__(self, reads: list[Ownership | Exception | None], swaps: list[bool | Exception]) -> None:
        self.reads, self.swaps = reads, swaps

    def read(self) -> tuple[Ownership | None, int]:
        found = self.reads.pop(0)
        if isinstance(found, Exception):
            raise found
        return found, 1

    def swap(self, revision: int, new: Ownership) -> bool:
        done = self.swaps.pop(0)
        if isinstance(done, Exception):
            raise done
        return done


A = Ownership("a", 1)


@pytest.mark.parametrize(
    ("reads", "swaps", "verdict"),
    [
        ([MemoryError()], [], Verdict.UNREACHED),
        ([RuntimeError("can't start new thread")], [], Verdict.UNREACHED),
        ([A, MemoryError()], [KeyError("x")], Verdict.UNKNOWN),
        ([A, MemoryError()], [ArbiterSilent("lost")], Verdict.UNKNOWN),
        ([A] * 5, [KeyError("x")] * 5, Verdict.UNKNOWN),
        ([A, Ownership("b", 2)], [KeyError("x")], Verdict.WON),
        ([A, Ownership("a", 2)], [KeyError("x")], Verdict.LOST),
    ],
)
def test_a_claim_has_a_verdict_whatever_fails(reads: list[Any], swaps: list[Any], verdict: Verdict) -> None:
    rule: Rule = RULE
    record: Any = Broken(reads, swaps)
    assert claim(record, rule).verdict is verdict
