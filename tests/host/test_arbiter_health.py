# SPDX-License-Identifier: Apache-2.0
"""Whether an arbiter would take a change: real etcds with their space used up, without quorum, and well."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from remusdb.arbiter.arbiter import Arbiter
from remusdb.config import Arbiter as Config
from remusdb.core.ownership import Verdict, open_session
from tests.host.test_arbiter import TIMEOUT_MS, arbiter_at, encoded, free_port, raw
from tools.lab.etcd import Etcd

QUOTA_BYTES = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Etcd]:
    etcd = Etcd(None, tmp_path, free_port(), {"quota-backend-bytes": str(QUOTA_BYTES)})
    etcd.start()
    yield etcd
    etcd.kill()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Etcd, Etcd]]:
    """A cluster of two members: without either there is no quorum."""
    ports = [free_port()]
    while len(ports) < 2 or abs(ports[0] - ports[1]) < 2:
        ports = [ports[0], free_port()]
    cluster = ",".join(f"m{port}=http://127.0.0.1:{port + 1}" for port in ports)
    members = []
    for port in ports:
        folder = tmp_path / str(port)
        folder.mkdir()
        settings = {"name": f"m{port}", "initial-cluster": cluster, "election-timeout": "1000"}
        members.append(Etcd(None, folder, port, {**settings, "heartbeat-interval": "100"}))
    with ThreadPoolExecutor(2) as pool:
        for started in [pool.submit(member.start) for member in members]:
            started.result()
    yield members[0], members[1]
    for member in members:
        member.kill()


def revision(etcd: Etcd) -> str:
    return str(raw(etcd, "range", {"key": encoded("x")})["header"]["revision"])


def maintain(etcd: Etcd, call: str, question: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{etcd.url}/v3/{call}", json.dumps(question).encode())
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


def fill(etcd: Etcd, key: str = "") -> None:
    """Until it refuses: each time another key, or the same again."""

    def put() -> None:
        for number in range(100):
            raw(etcd, "put", {"key": encoded(key or f"fill{number}"), "value": encoded("z" * 100_000)})

    with pytest.raises(urllib.error.HTTPError) as refused:
        put()
    assert refused.value.code == 429
    refused.value.close()


def test_one_that_is_well_says_so_and_is_not_changed(small: Etcd) -> None:
    before = revision(small)
    health = arbiter_at(small.url).health()
    assert (health.problem, health.hint, health.weak) == ("", "", ())
    assert revision(small) == before


def test_space_used_up_is_told_and_the_hint_makes_room(small: Etcd) -> None:
    """Reads pass all the while. What the hint says is done in its order, through the same gateway."""
    arbiter = arbiter_at(small.url)
    fill(small, "again and again")
    assert arbiter.read("pg") is None
    health = arbiter.health()
    assert health.problem == "etcd has used up its space and accepts no change"
    assert arbiter.claim("pg", open_session("a", 1)).verdict is not Verdict.WON
    compact = re.search(
        rf"etcdctl --endpoints={re.escape(small.url)} compact (\d+); .* defrag; .* disarm;", health.hint
    )
    assert compact, health.hint
    maintain(small, "kv/compaction", {"revision": compact[1], "physical": True})
    maintain(small, "maintenance/defragment", {})
    (alarm,) = maintain(small, "maintenance/alarm", {"action": "GET"})["alarms"]
    maintain(small, "maintenance/alarm", {"action": "DEACTIVATE", **alarm})
    assert arbiter.health().problem == ""
    assert arbiter.claim("pg", open_session("a", 1)).verdict is Verdict.WON


def test_a_quota_that_nobody_has_run_into_yet_is_told(small: Etcd, tmp_path: Path) -> None:
    """etcd raises its alarm at the first write that is refused: here nobody wrote since.

    Three times 100 kB are more than the later quota, and less than the first also where etcd commits after each: its
    file is then twice as large, by pages that it has not given back yet.
    """
    for number in range(3):
        raw(small, "put", {"key": encoded(f"fill{number}"), "value": encoded("z" * 100_000)})
    small.stop()
    less = Etcd(None, tmp_path, int(small.url.rpartition(":")[2]), {"quota-backend-bytes": "200000"})
    less.start()
    try:
        assert "alarms" not in maintain(less, "maintenance/alarm", {"action": "GET"})
        assert "used up its space" in arbiter_at(less.url).health().problem
    finally:
        less.kill()


def test_without_quorum_it_says_who_answers(two: tuple[Etcd, Etcd]) -> None:
    one, other = two
    arbiter = Arbiter(Config(endpoints=[one.url, other.url], timeout_ms=TIMEOUT_MS))
    assert arbiter.health().weak == ()
    other.kill()
    deadline = time.monotonic() + 10  # its leader takes an election timeout to see that it leads nobody
    while "no quorum" not in (health := arbiter.health()).problem:
        assert health.problem and time.monotonic() < deadline, health
    assert health.problem == "etcd has no quorum: 1 of 2 endpoints answer, and have no leader"
    assert "start etcd's other members" in health.hint
    assert any(told.startswith(f"{other.url}: ") and "refused" in told for told in health.weak)


def test_an_endpoint_that_is_not_there_is_weak_only(small: Etcd) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    health = arbiter_at(gone, small.url).health()
    assert health.problem == "" and len(health.weak) == 1 and health.weak[0].startswith(gone)
    nobody = arbiter_at(gone).health()
    assert "does not answer" in nobody.problem and gone in nobody.problem and nobody.hint
