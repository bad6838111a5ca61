# SPDX-License-Identifier: Apache-2.0
"""What Prometheus scrapes. The daemons are asked at each scrape.

Invariant: no value is older than its scrape. What a daemon did not tell has no series; figures of epochs are there only
while epochs are cut, and none where the host daemon has not heard its worker. Times are seconds, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from remusdb import __version__
from remusdb.control.both import Told
from remusdb.control.status import ReplicaState, StandbyStatus, State, VmStatus
from remusdb.control.verdict import Status, is_kept
from remusdb.reasons import Code

VM = ("vm", "peer")
Value = float | int | None
Family = tuple[str, str, Callable[[Any], Value]]

# Of a VM that this host protects or ran: name, what it is, its value. None: no series.
HELD: Sequence[Family] = (  # while there is a session
    ("committed_age_seconds", "Age of the newest state that the backup holds.", lambda s: _s(s.committed_age_ms)),
    ("held_bytes", "Network output that waits for the backup now.", lambda s: s.held_bytes),
    ("held_frames", "Network frames that wait for the backup now.", lambda s: s.held_frames),
    ("epochs_in_flight", "Epochs that are under way to the backup.", lambda s: s.in_flight),
)
CUT: Sequence[Family] = (  # while epochs are cut
    ("pause_ratio", "Share of the time that the VM is paused, by the last hundred epochs.", lambda s: s.pause_share),
    ("epoch_interval_seconds", "Time between two epochs, by the last hundred.",
     lambda s: 1 / s.epochs_per_s if s.epochs_per_s else None),
    ("epoch_bytes", "What an epoch takes on the wire: the median.", lambda s: s.bytes_per_epoch),
    ("epoch_dirty_pages", "Pages of memory in an epoch: the median.", lambda s: s.dirty_pages),
    ("sent_bytes_per_second", "What epochs take on the wire, by the last hundred.", lambda s: s.bytes_per_s),
    ("clock_lag_seconds", "How late the guest's clock is because of the epochs.", lambda s: _s(s.clock_lag_ms)),
    ("standby_proven", "1: QEMU on the backup took this VM's state in a trial; 0: not, or not yet.",
     lambda s: int(bool(s.proven_at_ns) and not s.unproven)),
    ("standby_proven_timestamp_seconds", "When it last did, by the backup's clock.",
     lambda s: s.proven_at_ns / 1e9 if s.proven_at_ns else None),
)  # fmt: skip
COUNTED: Sequence[Family] = (
    ("epochs", "Epochs cut in this session.", lambda s: s.epoch),
    ("committed_epochs", "Epochs of this session that the backup holds, complete.", lambda s: s.committed),
    ("dropped_frames", "Network frames dropped in this session: there was no room to hold them.",
     lambda s: s.dropped_frames),
)  # fmt: skip
QUANTILES = (
    ("commit_latency_seconds", "From a cut until its output is released: what replies wait for.", "commit_ms"),
    ("epoch_pause_seconds", "How long the VM is paused for an epoch.", "pause_ms"),
)
REPLICA: Sequence[Family] = (
    ("committed_epoch", "The last epoch that is here, complete.", lambda s: s.committed),
    ("applied_epoch", "The last epoch that the replica's memory and disks have.", lambda s: s.applied),
    ("primary_silence_seconds", "How long the primary has been silent.", lambda s: _s(s.primary_silence_ms)),
    ("silence_limit_seconds", "After so long a silence the primary counts as dead.", lambda s: _s(s.silence_limit_ms)),
)


class Collector:
    """Asks at each scrape; a registry collects from it."""

    def __init__(self, ask: Callable[[], Told]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        """All families, of what the daemons say now."""
        told = self._ask()
        yield InfoMetricFamily("remusdb_build", "The console's version.", {"version": __version__})
        up = GaugeMetricFamily("remusdb_up", "1: this daemon answered this scrape; 0: it did not.", labels=["daemon"])
        for daemon in told.asked:
            up.add_metric([daemon], int(daemon not in told.errors))
        yield up
        found = told.judged()
        doubts = {doubt.vm for doubt in found.not_protected}
        yield from _protected(found.vms, doubts)
        yield from _states(found.vms)
        yield from _figures([one for one in found.vms if isinstance(one, VmStatus) and not _unheard(one)])
        yield from _replicas([one for one in found.vms if isinstance(one, StandbyStatus) and is_kept(one)])


def _protected(vms: Sequence[Status], doubts: set[str]) -> Iterator[Metric]:
    whole = GaugeMetricFamily(
        "remusdb_vm_protected", "1: the VM is protected; 0: it is to be, and is not. See `remusdb status`.", labels=VM
    )
    for one in vms:
        if one.vm in doubts or (isinstance(one, VmStatus) and one.state == "protected"):
            whole.add_metric(_labels(one), int(one.vm not in doubts))
    yield whole


def _states(vms: Sequence[Status]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "remusdb_vm_state", "1: the VM is in this state, as `remusdb status` names it.", labels=[*VM, "role", "state"]
    )
    why = GaugeMetricFamily("remusdb_vm_reason", "1: why, by its code in docs/json.md.", labels=[*VM, "role", "code"])
    trouble = GaugeMetricFamily(
        "remusdb_vm_trouble", "1: this is wrong while it is protected all the same.", labels=[*VM, "trouble"]
    )
    term = GaugeMetricFamily("remusdb_vm_term", "The newest term that this host knows.", labels=[*VM, "role"])
    for one in vms:
        labels = _labels(one)
        for name in get_args(State if isinstance(one, VmStatus) else ReplicaState):
            state.add_metric([*labels, one.role, name], int(name == one.state))
        if one.why is not None:
            why.add_metric([*labels, one.role, str(one.why.code)], 1)
        for name in one.troubles:
            trouble.add_metric([*labels, name], 1)
        term.add_metric([*labels, one.role], one.term)
    yield from (state, why, trouble, term)


def _figures(vms: Sequence[VmStatus]) -> Iterator[Metric]:
    session = [one for one in vms if one.state in ("protected", "held")]
    cutting = [one for one in vms if one.state == "protected"]
    for families, of in ((HELD, session), (CUT, cutting)):
        for family in families:
            yield _gauge("remusdb_vm_", family, of)
    for name, what, field in QUANTILES:
        each = GaugeMetricFamily(f"remusdb_vm_{name}", f"{what} By the last epochs.", labels=[*VM, "quantile"])
        for one in cutting:
            for quantile, key in (("0.5", f"{field}_p50"), ("0.99", f"{field}_p99")):
                if (value := getattr(one, key)) is not None:
                    each.add_metric([*_labels(one), quantile], value / 1000)
        yield each
    stage = GaugeMetricFamily(
        "remusdb_vm_epoch_stage_seconds", "Medians of what an epoch takes: see docs/json.md.", labels=[*VM, "stage"]
    )
    for one in cutting:
        for name, took_ms in one.stages_ms.items():
            stage.add_metric([*_labels(one), name], took_ms / 1000)
    yield stage
    for name, what, value_of in COUNTED:
        counter = CounterMetricFamily(f"remusdb_vm_{name}", what, labels=VM)
        for one in session:
            counter.add_metric(_labels(one), value_of(one) or 0)
        yield counter


def _replicas(kept: Sequence[StandbyStatus]) -> Iterator[Metric]:
    for family in REPLICA:
        yield _gauge("remusdb_replica_", family, kept)


def _gauge(prefix: str, family: Family, vms: Sequence[Status]) -> Metric:
    name, what, value_of = family
    gauge = GaugeMetricFamily(prefix + name, what, labels=VM)
    for one in vms:
        if (value := value_of(one)) is not None:
            gauge.add_metric(_labels(one), value)
    return gauge


def _labels(one: Status) -> list[str]:
    return [one.vm, one.peer or ""]


def _unheard(one: Status) -> bool:
    """What the host daemon tells of it is what it heard last, some time ago."""
    return one.why is not None and one.why.code == Code.WORKER_UNHEARD


def _s(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
