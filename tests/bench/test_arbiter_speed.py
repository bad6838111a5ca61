# SPDX-License-Identifier: Apache-2.0
"""How long a claim takes with an etcd on loopback, its data on this disk."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from remusdb.arbiter.arbiter import Arbiter
from remusdb.config import Arbiter as Config
from remusdb.core.ownership import Verdict, go_solo, open_session
from tools.lab.etcd import Etcd

log = logging.getLogger(__name__)
PORT = 23794
COUNT = 1000


def test_claims_and_reads(tmp_path: Path) -> None:
    etcd = Etcd(None, tmp_path, PORT)
    etcd.start()
    try:
        arbiter = Arbiter(Config(endpoints=[etcd.url]))
        arbiter.claim("pg", open_session("a", 0))
        claims, reads = [], []
        for term in range(COUNT):
            began = time.perf_counter()
            assert arbiter.claim("pg", go_solo("a", term)).verdict is Verdict.WON
            claims.append(time.perf_counter() - began)
        for _ in range(COUNT):
            began = time.perf_counter()
            arbiter.read("pg")
            reads.append(time.perf_counter() - began)
    finally:
        etcd.kill()
    for what, times in (("claim", sorted(claims)), ("read", sorted(reads))):
        p50, p99 = times[COUNT // 2] * 1e3, times[COUNT * 99 // 100] * 1e3
        log.info("%s: p50 %.1f ms, p99 %.1f ms, worst %.1f ms", what, p50, p99, times[-1] * 1e3)
