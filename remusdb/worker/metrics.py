# SPDX-License-Identifier: Apache-2.0
"""The metrics of one protection session, and the status that is made of them."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from remusdb.capture.clock import ClockMetrics
from remusdb.control.status import Heartbeat, State, VmStatus
from remusdb.core.cadence import Why
from remusdb.core.messages import Proof
from remusdb.core.pipeline import Pipeline
from remusdb.net.gate import GateMetrics
from remusdb.reasons import Code, Reason
from remusdb.troubles import Troubles
from remusdb.wording import hint, words
from remusdb.worker.resources import Resources
from remusdb.worker.spec import ProtectionSpec

log = logging.getLogger(__name__)

LIVE = ("seeding", "protected", "held")  # states of a session that has not ended
Stage = Literal["encode", "send", "ack", "release"]
STARTING = Reason.of(Code.STARTING)
KEPT_EPOCHS = 2000  # the window of the percentiles
KEPT_STAGES = 200
FIGURES_S = 1.0
SHOWN_CUTS = 100  # of which it is shown how many there are in a second, and why


@dataclass
class Metrics:
    """What the session's threads note; read by status. Times in ms, sizes in bytes."""

    troubles: Troubles
    state: State = "seeding"
    why: Reason = STARTING
    waits_for: Reason | None = None  # what keeps epochs from being cut just now; told instead while protected
    pause_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_EPOCHS))
    epoch_bytes: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT_EPOCHS))
    dirty_pages: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT_EPOCHS))
    commit_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_EPOCHS))
    cuts: deque[tuple[float, Why]] = field(default_factory=lambda: deque(maxlen=SHOWN_CUTS))
    cached: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=SHOWN_CUTS))
    referred: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=SHOWN_CUTS))
    stages_ms: dict[str, deque[float]] = field(default_factory=dict)
    cut_at: dict[int, float] = field(default_factory=dict)
    committed_cut_at: float | None = None
    seeded_bytes: int | None = None
    same_bytes: int | None = None
    proven: Proof | None = None
    unproven: Reason | None = None  # why the standby is not proven: told beside the other while protected
    _last_at: dict[int, float] = field(default_factory=dict)  # of the epochs on their way
    _figured: dict[str, Any] = field(default_factory=dict)
    _figured_at: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, state: State, why: Reason) -> None:
        """Enter a state, with why."""
        with self.lock:
            self.state, self.why = state, why

    def disks(self, seeded_bytes: int, same_bytes: int) -> None:
        """The initial sync of the disks took so many bytes on the wire; so many of their data were there already."""
        log.info("disks: %d bytes sent, %d bytes were there already", seeded_bytes, same_bytes)
        with self.lock:
            self.seeded_bytes, self.same_bytes = seeded_bytes, same_bytes

    def proof(self, proof: Proof | None, unproven: Reason | None) -> None:
        """What is known of the standby; `unproven`: why it is not proven."""
        with self.lock:
            self.proven = proof if proof is not None and proof.verdict == "proven" else self.proven
            self.unproven = unproven

    def wait(self, why: Reason | None) -> None:
        """Epochs are not cut for now, with why; they are again: None."""
        with self.lock:
            self.waits_for = why

    def paused(self, pause_ms: float) -> None:
        """The VM stood still for so long."""
        with self.lock:
            self.pause_ms.append(pause_ms)

    def cut(self, epoch: int, pages: int, why: Why, stages_ms: Mapping[str, float]) -> None:
        """An epoch was cut just now; each part of that took so long."""
        now = time.monotonic()
        with self.lock:
            self.dirty_pages.append(pages)
            self.cut_at[epoch] = self._last_at[epoch] = now
            self.cuts.append((now, why))
            for stage, took_ms in stages_ms.items():
                self._stage(stage, took_ms)

    def reached(self, epoch: int, stage: Stage) -> None:
        """An epoch came so far on its way from the cut to the commit: how long that took is noted."""
        now = time.monotonic()
        with self.lock:
            before = self._last_at.get(epoch)
            if before is not None:  # of an acknowledgement for several epochs, the newest counts
                self._last_at[epoch] = now
                self._stage(stage, 1000 * (now - before))

    def shipped(self, payload_bytes: int, cached: tuple[int, int], referred: tuple[int, int] | None = None) -> None:
        """An epoch was encoded to so many bytes; what so many of its pages held before was known, of how many; and so
        many went as references, of all (None: none may)."""
        with self.lock:
            if referred is not None:
                self.referred.append(referred)
            self.epoch_bytes.append(payload_bytes)
            self.cached.append(cached)

    def committed(self, epoch: int) -> None:
        """The agent holds everything up to `epoch`, and what these had of output has been let go."""
        self.reached(epoch, "release")
        now = time.monotonic()
        with self.lock:
            self._last_at = {number: at for number, at in self._last_at.items() if number > epoch}
            for number in [number for number in self.cut_at if number <= epoch]:
                self.committed_cut_at = self.cut_at.pop(number)
                self.commit_ms.append(1000 * (now - self.committed_cut_at))

    def status(self, rest: VmStatus) -> VmStatus:
        """A status of these metrics, and of the rest."""
        with self.lock:
            live = self.state in LIVE
            age = None if self.committed_cut_at is None else 1000 * (time.monotonic() - self.committed_cut_at)
            proven, protected = self.proven, self.state == "protected"
            why = self.waits_for if protected and self.waits_for else self.why
            besides = [self.unproven] if protected and self.unproven else []
            wrong = [*self.troubles.reasons, *filter(None, [self.waits_for]), *besides] if protected else []
            per_s = _per_second([at for at, _why in self.cuts])
            every = [*(self.troubles.reasons if live else []), why, *besides]
            return replace(
                rest,
                state=self.state,
                reason=_in_words(every),
                weakness=_in_words(wrong),
                why=why,
                hint="; ".join(dict.fromkeys(filter(None, (hint(one, rest.vm) for one in every)))),
                troubles=self.troubles.names if live else [],
                committed_age_ms=None if age is None else round(age, 1),
                epochs_per_s=per_s,
                pause_share=_in_a_second(self.pause_ms, per_s, unit=1e-3),
                bytes_per_s=_in_a_second(self.epoch_bytes, per_s),
                epochs_for=dict(Counter(why.value for _at, why in self.cuts)),
                **self._figures(time.monotonic()),
                delta_cache_hits=_share(self.cached),
                drt_references=sum(some for some, _ in self.referred) if self.referred else None,
                drt_reference_share=_share(self.referred),
                seeded_bytes=self.seeded_bytes,
                same_bytes=self.same_bytes,
                proven_at_ns=proven.at_ns if proven else None,
                proven_epoch=proven.epoch if proven else None,
                proven_ms=proven.took_ms if proven else None,
                unproven=words(self.unproven) if self.state in ("protected", "held") else "",
            )

    def _stage(self, stage: str, took_ms: float) -> None:
        self.stages_ms.setdefault(stage, deque(maxlen=KEPT_STAGES)).append(took_ms)

    def _figures(self, now: float) -> dict[str, Any]:
        """The percentiles of the last epochs, looked at once a second: they are what costs something in a status."""
        if now - self._figured_at >= FIGURES_S:
            self._figured_at = now
            self._figured = {
                "commit_ms_p50": _percentile(self.commit_ms, 50),
                "commit_ms_p99": _percentile(self.commit_ms, 99),
                "pause_ms_p50": _percentile(self.pause_ms, 50),
                "pause_ms_p99": _percentile(self.pause_ms, 99),
                "bytes_per_epoch": _percentile(self.epoch_bytes, 50),
                "dirty_pages": _percentile(self.dirty_pages, 50),
                "stages_ms": {name: _percentile(took, 50) or 0.0 for name, took in self.stages_ms.items()},
            }
        return self._figured


def status_of(
    spec: ProtectionSpec,
    pipeline: Pipeline,
    resources: Resources | None,
    metrics: Metrics,
    held: GateMetrics,
    heartbeat: Heartbeat,
) -> VmStatus:
    """What the worker knows of its VM. `heartbeat`: by what its agent is heard."""
    clock = resources.clock.metrics() if resources else ClockMetrics()
    return metrics.status(
        VmStatus(
            vm=spec.vm,
            peer=spec.peer.name,
            term=pipeline.term,
            epoch=pipeline.captured,
            committed=pipeline.committed,
            epoch_mode=spec.protection.epoch_mode,
            epoch_ms=spec.protection.epoch_ms,
            heartbeat=heartbeat,
            window=spec.protection.window,
            in_flight=pipeline.in_flight,
            held_frames=held.held_frames,
            held_bytes=held.held_bytes,
            dropped_frames=held.dropped_frames,
            release=spec.protection.release,
            early_frames=held.early_frames,
            monitor=resources.domain.monitor if resources else None,
            gate=resources.gate_kind if resources else spec.protection.gate,
            encoding=spec.protection.encoding,
            accel=resources.domain.accel if resources else None,
            clock_lag_ms=clock.lag_ms,
            clock_lost_ppm=clock.lost_ppm,
            clock_slow=clock.slow,
            page_kib=resources.domain.page_kib if resources else None,
        )
    )


def _per_second(moments: list[float]) -> float | None:
    """How often something happens that happened at these moments."""
    took = moments[-1] - moments[0] if len(moments) > 1 else 0.0
    return round((len(moments) - 1) / took, 1) if took else None


def _in_a_second(values: deque[float] | deque[int], per_s: float | None, unit: float = 1.0) -> float | None:
    """The newest of these values together, by second; one comes with each cut."""
    newest = list(islice(reversed(values), SHOWN_CUTS))
    return round(unit * per_s * sum(newest) / len(newest), 4) if newest and per_s is not None else None


def _in_words(reasons: list[Reason]) -> str:
    return "; ".join(words(one) for one in reasons)


def _percentile(values: deque[float] | deque[int], percent: float) -> float | None:
    return round(float(np.percentile(np.array(values), percent)), 2) if values else None


def _share(parts: deque[tuple[int, int]]) -> float | None:
    """Of (some, of how many), all of them together."""
    whole = sum(of for _, of in parts)
    return round(sum(some for some, _ in parts) / whole, 4) if whole else None
