# SPDX-License-Identifier: Apache-2.0
"""What `remusdb bench` says of a protected VM, made from what status said of it again and again."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from msgspec import Struct

from remusdb.control.status import Stages, VmStatus
from remusdb.says import says

PAGE_BYTES: Final = 4096


class Measured(Struct, frozen=True, kw_only=True):
    """One VM's protection, over some seconds. A number is null where there was nothing to measure."""

    vm: Annotated[str, says("its name in libvirt")]
    seconds: Annotated[float, says("for so long it was looked at")]
    states: Annotated[dict[str, int], says("how often it was seen in which state, about once a second")]
    epoch_mode: Annotated[str | None, says("when an epoch is cut")] = None
    epochs_per_s: Annotated[float | None, says("epochs that were committed in a second")] = None
    pause_ms_p50: Annotated[float | None, says("how long the VM is paused for a cut: the median")] = None
    pause_ms_p99: Annotated[float | None, says("the same, of which 1 % are longer: the most that was seen")] = None
    pause_share: Annotated[float | None, says("of all time it is paused for so much")] = None
    commit_ms_p50: Annotated[float | None, says("from a cut until its output is released: the median")] = None
    commit_ms_p99: Annotated[float | None, says("the same, of which 1 % take longer: the most that was seen")] = None
    dirty_pages: Annotated[float | None, says("pages of memory that are written in an epoch")] = None
    bytes_per_epoch: Annotated[float | None, says("what an epoch takes on the wire")] = None
    bytes_per_s: Annotated[float | None, says("what epochs take on the wire in a second")] = None
    wire_over_dirty: Annotated[float | None, says("bytes on the wire over bytes of the pages that were written")] = None
    delta_cache_hits: Annotated[float | None, says("share of the pages whose content before was remembered")] = None
    drt_reference_share: Annotated[float | None, says("share of the pages that went as references to a disk")] = None
    held_bytes: Annotated[int, says("the most that was seen waiting for the backup")] = 0
    dropped_frames: Annotated[int, says("network frames for which there was no room to wait, meanwhile")] = 0
    stages_ms: Stages = {}
    cpu_ms_per_s: Annotated[
        dict[str, float],
        says("CPU of the VM's processes on this host, ms in a second: `qemu`, `worker`, `gate`, `guard`, `nbdkit`"),
    ] = {}


def measured(looks: Sequence[VmStatus], seconds: float, cpu_ms_per_s: Mapping[str, float]) -> Measured:
    """From what status said in these `seconds`, at least twice, the oldest first.

    What status says are figures of the last hundred epochs: of medians this is the median, of what 1 % exceed the
    highest. What it says while the VM is not protected is of an earlier time, and left out.
    """
    first, last = looks[0], looks[-1]
    good = [look for look in looks if look.state == "protected"]
    pages, sent = _median(good, "dirty_pages"), _median(good, "bytes_per_epoch")
    return Measured(
        vm=last.vm,
        seconds=round(seconds, 1),
        states=dict(Counter(look.state for look in looks)),
        epoch_mode=last.epoch_mode,
        epochs_per_s=round((last.committed - first.committed) / seconds, 2) if last.term == first.term else None,
        pause_ms_p50=_median(good, "pause_ms_p50"),
        pause_ms_p99=_most(good, "pause_ms_p99"),
        pause_share=_median(good, "pause_share"),
        commit_ms_p50=_median(good, "commit_ms_p50"),
        commit_ms_p99=_most(good, "commit_ms_p99"),
        dirty_pages=pages,
        bytes_per_epoch=sent,
        bytes_per_s=_median(good, "bytes_per_s"),
        wire_over_dirty=round(sent / (pages * PAGE_BYTES), 4) if pages and sent is not None else None,
        delta_cache_hits=_median(good, "delta_cache_hits"),
        drt_reference_share=_median(good, "drt_reference_share"),
        held_bytes=max(look.held_bytes for look in looks),
        dropped_frames=max(0, last.dropped_frames - first.dropped_frames),
        stages_ms=good[-1].stages_ms if good else {},
        cpu_ms_per_s=dict(cpu_ms_per_s),
    )


def _values(looks: Sequence[VmStatus], name: str) -> list[float]:
    return [value for look in looks if (value := getattr(look, name)) is not None]


def _median(looks: Sequence[VmStatus], name: str) -> float | None:
    values = _values(looks, name)
    return round(statistics.median(values), 4) if values else None


def _most(looks: Sequence[VmStatus], name: str) -> float | None:
    return max(_values(looks, name), default=None)
