# SPDX-License-Identifier: Apache-2.0
"""What status tells of the epochs: how long each part of one took, and how much of what was sent was known."""

from __future__ import annotations

import pytest

from remusdb.capture.cut import STAGES
from remusdb.control.status import VmStatus
from remusdb.core.cadence import Why
from remusdb.reasons import Code, Reason
from remusdb.troubles import Troubles
from remusdb.worker import metrics as module
from remusdb.worker.metrics import Metrics


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    monkeypatch.setattr(module, "FIGURES_S", 0.0)
    return Metrics(Troubles(lambda *_: None))


def told(metrics: Metrics) -> VmStatus:
    return metrics.status(VmStatus(vm="db1", state="protected"))


def cut(metrics: Metrics, epoch: int) -> None:
    metrics.cut(epoch, 7, Why.CLOCK, dict.fromkeys(STAGES, 1.5))


def test_each_part_of_an_epoch_is_told(metrics: Metrics) -> None:
    cut(metrics, 1)
    metrics.reached(1, "encode")
    metrics.reached(1, "send")
    metrics.reached(1, "ack")
    metrics.committed(1)
    stages = told(metrics).stages_ms
    assert list(stages) == [*STAGES, "encode", "send", "ack", "release"]
    assert all(stages[name] == 1.5 for name in STAGES)
    assert told(metrics).commit_ms_p50 is not None


def test_an_acknowledgement_for_several_epochs_counts_once_and_leaves_nothing(metrics: Metrics) -> None:
    for epoch in (1, 2, 3):
        cut(metrics, epoch)
        metrics.reached(epoch, "encode")
    for _ in range(2):  # it may come twice
        metrics.reached(2, "ack")
        metrics.committed(2)
    assert len(metrics.stages_ms["release"]) == 1 and list(metrics._last_at) == [3]
    metrics.reached(9, "ack")
    assert len(metrics.stages_ms["ack"]) == 1, "of an epoch that is not known nothing is told"


def test_the_share_of_known_pages_is_of_all_of_them(metrics: Metrics) -> None:
    assert told(metrics).delta_cache_hits is None
    metrics.shipped(100, (0, 0))
    assert told(metrics).delta_cache_hits is None
    metrics.shipped(100, (30, 40))
    metrics.shipped(100, (60, 60))
    assert told(metrics).delta_cache_hits == 0.9


def test_references_are_counted_over_the_last_epochs_and_nothing_is_said_where_there_are_none(metrics: Metrics) -> None:
    metrics.shipped(100, (0, 0))
    assert told(metrics).drt_references is None and told(metrics).drt_reference_share is None
    for _ in range(150):
        metrics.shipped(100, (1, 1), (3, 4))
    assert told(metrics).drt_references == 300 and told(metrics).drt_reference_share == 0.75


def test_percentiles_are_looked_at_once_in_a_while(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.paused(2.0)
    assert told(metrics).pause_ms_p50 == 2.0
    monkeypatch.setattr(module, "FIGURES_S", 3600.0)
    metrics.paused(4.0)
    assert told(metrics).pause_ms_p50 == 2.0
    monkeypatch.setattr(module, "FIGURES_S", 0.0)
    assert told(metrics).pause_ms_p50 == 3.0


def test_what_a_second_takes_is_of_the_last_hundred_cuts(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(metrics).pause_share is None and told(metrics).bytes_per_s is None
    now = iter(range(1000))
    monkeypatch.setattr("remusdb.worker.metrics.time.monotonic", lambda: next(now) / 20)
    for epoch in range(1, 301):  # the first ones were dearer
        cut(metrics, epoch)
        metrics.paused(40.0 if epoch <= 200 else 5.0)
        metrics.shipped(9000 if epoch <= 200 else 1000, (0, 0))
    seen = told(metrics)
    assert (seen.epochs_per_s, seen.pause_share, seen.bytes_per_s) == (20.0, 0.1, 20000.0)


def test_what_is_wrong_while_it_is_protected_is_told_by_itself(metrics: Metrics) -> None:
    """Whatever reads it need not look for it in the sentence that has all the rest."""
    metrics.set("protected", Reason.of(Code.FOLLOWING, peer="beta"))
    assert told(metrics).weakness == ""
    metrics.troubles.say("suspended", Reason.of(Code.SUSPENDED))
    metrics.proof(None, Reason.of(Code.UNPROVEN_SILENT, peer="beta", seconds=30))
    status = told(metrics)
    assert status.weakness == "it is suspended; the standby is not proven: agent beta did not report within 30 s"
    assert "epoch by epoch to beta" in status.reason
    metrics.wait(Reason.of(Code.CUT_WAITS, who="QEMU", seconds=7))
    assert "QEMU has not answered for 7 s; output waits" in told(metrics).weakness
    metrics.set("held", Reason.of(Code.PEER_LOST, why="beta is silent", peer="beta"))
    assert told(metrics).weakness == "", "then it is not protected at all"
