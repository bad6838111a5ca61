# SPDX-License-Identifier: Apache-2.0
"""Which gate a host can have, and one handle for all interfaces of a VM."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from remusdb.core.release.settings import ReleaseSettings
from remusdb.errors import GateError
from remusdb.net.gate import Gate, GateMetrics
from remusdb.net.links import Links
from remusdb.net.pluggate import WINDOW, PlugGate
from remusdb.net.tapgate import TapGate
from remusdb.net.tc import Tc

HELD_MAX_BYTES = 64 << 20

GateKind = Literal["auto", "tap", "plug"]


def make_gate(
    kind: GateKind,
    tap: str,
    held_max_bytes: int = HELD_MAX_BYTES,
    *,
    guest_mac: str | None = None,
    window: int = WINDOW,
    release: ReleaseSettings | None = None,
    bell_fd: int | None = None,
) -> Gate:
    """A gate for the VM's tap, not yet installed; `auto` takes plug where the kernel can do it.

    Only the tap gate can let frames go early (`release`), and ring `bell_fd` when one must wait.

    With more than `window` epochs in flight a plug gate lets frames go late, never early.
    """
    if release is not None:
        return TapGate(tap, held_max_bytes, guest_mac=guest_mac, release=release, bell_fd=bell_fd)
    if kind == "plug" or (kind == "auto" and plug_works()):
        return PlugGate(tap, held_max_bytes, guest_mac=guest_mac, window=window)
    return TapGate(tap, held_max_bytes, guest_mac=guest_mac)


def plug_works() -> bool:
    """Try it for real: an IFB device that has a plug qdisc, made and removed again."""
    name = f"rpt{os.getpid()}"
    with Links() as links, Tc() as tc:
        try:
            links.add_ifb(name)
            tc.add_plug(links.get(name).index, limit_bytes=1)
        except GateError:
            return False
        finally:
            links.delete(name)
    return True


class GateGroup:
    """All interfaces of one VM as one gate. A call that fails on one of them is still made on the others.

    Any thread may call: a gate process answers one question at a time, so each call takes its `turn`. Whoever has it
    may make several calls that nobody comes between, as the marks of a cut must be made.
    """

    def __init__(self, gates: Sequence[Gate]) -> None:
        self.gates = tuple(gates)
        self.turn = threading.RLock()

    def install(self) -> None:
        done: list[Gate] = []
        with self.turn:
            try:
                for gate in self.gates:
                    gate.install()
                    done.append(gate)
            except BaseException:
                for gate in done:
                    gate.remove()
                raise

    def adopt(self) -> None:
        self._all(lambda gate: gate.adopt())

    def hold(self) -> None:
        self._all(lambda gate: gate.hold())

    def mark(self, epoch: int) -> None:
        with self.turn:
            self.mark_begin(epoch)
            self.mark_wait()

    def mark_begin(self, epoch: int) -> None:
        """With `turn` held, until `mark_wait` returned."""
        self._all(lambda gate: gate.mark_begin(epoch))

    def mark_wait(self) -> None:
        self._all(lambda gate: gate.mark_wait())

    def release(self, epoch: int, early_until: float = 0.0) -> None:
        self._all(lambda gate: gate.release(epoch, early_until))

    def open_flows(self) -> list[bytes]:
        """Of each interface, in their order, the flows that were open at the last mark, packed."""
        with self.turn:
            return [gate.open_flows() for gate in self.gates]

    def open_all(self) -> None:
        self._all(lambda gate: gate.open_all())

    def drop_held(self) -> None:
        self._all(lambda gate: gate.drop_held())

    def remove(self) -> None:
        self._all(lambda gate: gate.remove())

    def metrics(self) -> GateMetrics:
        """The sum over all interfaces."""
        with self.turn:
            each = [gate.metrics() for gate in self.gates]
        return GateMetrics(
            held_frames=sum(metrics.held_frames for metrics in each),
            held_bytes=sum(metrics.held_bytes for metrics in each),
            released_frames=sum(metrics.released_frames for metrics in each),
            dropped_frames=sum(metrics.dropped_frames for metrics in each),
            early_frames=sum(metrics.early_frames for metrics in each),
            addresses=tuple(dict.fromkeys(address for metrics in each for address in metrics.addresses)),
        )

    def _all(self, call: Callable[[Gate], None]) -> None:
        failed: Exception | None = None
        with self.turn:
            for gate in self.gates:
                try:
                    call(gate)
                except Exception as error:  # raised below, once every gate was told
                    failed = failed or error
        if failed:
            raise failed
