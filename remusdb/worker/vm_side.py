# SPDX-License-Identifier: Apache-2.0
"""What a session has done with its VM: its gates, its epochs, its end.

Owns the VM's resources and the knowledge whether there are gates. Any thread may ask for their metrics; all else is
done by the session's thread, as `core/primary.py` decided. What takes long is done apart, and its result posted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from remusdb.core import primary_events as events
from remusdb.errors import GateError, RemusError
from remusdb.net.gate import GateMetrics
from remusdb.reasons import Code, Reason
from remusdb.state import VmState
from remusdb.threads import apart
from remusdb.vm.autostart import autostart_back, autostart_off
from remusdb.worker import vm_end
from remusdb.worker.epoch_loop import EpochLoop
from remusdb.worker.mailbox import Mailbox
from remusdb.worker.resources import Resources
from remusdb.worker.tapwatch import open_taps, shut_taps

log = logging.getLogger(__name__)

CUT_S = 10.0  # stopping the VM, and cutting its last epoch


class VmSide:
    """Of one session."""

    def __init__(self, resources: Resources, epochs: EpochLoop, mailbox: Mailbox) -> None:
        self._resources = resources
        self._epochs = epochs
        self._mailbox = mailbox
        self._gates = resources.gates
        self._gated = threading.Event()

    # --- gates ---

    def adopt_gates(self) -> None:
        """Take over the gates that an earlier worker left shut; where there are none, it died just before."""
        try:
            # Nobody watched meanwhile.
            shut_taps(self._resources.domain.pid, [nic.tap for nic in self._resources.domain.nics])
            with self._gates.turn:
                self._gates.adopt()
                self._gated.set()
        except GateError as exc:
            log.info("no gate of an earlier session to adopt: %s", exc)
        else:
            self._mailbox.post(events.Adopted())

    def install_gates(self) -> None:
        """Gates that let everything pass. GateError if they cannot be made."""
        with self._gates.turn:
            self._gates.install()
            self._gated.set()

    def hold_output(self) -> None:
        """From here on whatever the VM sends waits."""
        self._gates.hold()

    def release(self, epoch: int) -> None:
        """Let go what is marked with this epoch or an earlier one. GateError: a gate died, which releases nothing."""
        self._gates.release(epoch, self._epochs.early_until(epoch))

    def open_gates(self) -> None:
        """Let everything go, and whatever follows."""
        self._gates.open_all()
        open_taps(self._resources.domain.pid)

    def drop_held(self) -> None:
        """What waits never goes out, and nothing more does. A gate that died is shut anyway."""
        with contextlib.suppress(GateError):
            self._gates.drop_held()

    def take_down(self, *, open_gates: bool) -> None:
        """Take away all that protection added to the VM; the gates only with `open_gates`."""
        with self._gates.turn:
            self._gated.clear()
            self._resources.close(remove_gates=open_gates)

    def gate_metrics(self) -> GateMetrics:
        """The gates' counters; a gate that is not there, or died, has none."""
        with self._gates.turn:
            if not self._gated.is_set():
                return GateMetrics()
            try:
                metrics = self._gates.metrics()
            except GateError:
                return GateMetrics()
        self._epochs.addresses = metrics.addresses
        return metrics

    # --- epochs ---

    def start_epochs(self) -> None:
        """Cut the first epoch at once, and so on. NoThread."""
        if self._resources.devices is not None:
            self._resources.devices.arm()
        self._epochs.start(self._resources)

    def stop_and_cut(self) -> None:
        """Stop the VM, cut one more epoch and no other: `LastCut`, or `NotCut`."""

        def work() -> events.Event:
            try:
                return events.LastCut(self._epochs.cut_last(CUT_S))
            except RemusError as exc:
                return events.NotCut(str(exc))

        self._apart(work, events.NotCut("it failed"))

    def cut_on(self) -> None:
        """After `stop_and_cut`: epochs as before."""
        self._epochs.go_on()

    def start_vm(self) -> None:
        """It was stopped for a switchover. VmError."""
        self._resources.domain.qmp("cont")

    # --- its end ---

    def look(self) -> None:
        """Whether QEMU is there: `VmLives` or `VmEnds`."""
        self._apart(lambda: vm_end.look(self._resources), events.VmLives())

    def ask_who_ended_it(self) -> None:
        """Of a QEMU that is gone: `VmEnded`."""
        run_dir = self._resources.spec.run_dir
        unknown = events.VmEnded(wanted=False, with_host=False, why=Reason.of(Code.ENDED))
        self._apart(lambda: vm_end.who_ended_it(self._resources, run_dir), unknown)

    # --- libvirt's autostart ---

    def autostart_off(self, state: VmState) -> bool:
        """See to it that libvirt does not start the VM by itself; whether it would have, as it was found."""
        return state.autostart or self._resources.calls.call("autostart", autostart_off, self._resources.domain.handle)

    def autostart_back(self) -> None:
        """As it was found: on."""
        self._resources.calls.call("autostart", autostart_back, self._resources.domain.handle, True)

    def _apart(self, find_out: Callable[[], events.Event], otherwise: events.Event) -> None:
        """`find_out` in a thread of its own, whose event is posted; `otherwise` if it fails."""

        def work() -> None:
            try:
                event = find_out()
            except Exception:  # task boundary: the session waits for an answer
                log.exception("it cannot be found out")
                event = otherwise
            self._mailbox.post(event)

        apart(work, name="find-out")
