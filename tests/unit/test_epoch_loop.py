# SPDX-License-Identifier: Apache-2.0
"""Epochs are cut on time and shipped in order, each of one instant; whatever breaks is told once, and ends it.

What touches a VM are fakes that write down what is done to them, and do what the test hands them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from remusdb.capture.cut import Cut
from remusdb.config import Protection
from remusdb.core.pipeline import Pipeline
from remusdb.core.release.frames import FlowKey, OpenFlow
from remusdb.core.release.settings import ReleaseSettings
from remusdb.errors import DevicesChanged, DiskError, GateError, VmError
from remusdb.reasons import Reason
from remusdb.worker.encoder import Encoder, EpochFrames
from remusdb.worker.epoch_loop import EpochLoop
from tests.waiting import LIMIT_S, eventually

TERM = 3
FLOW = OpenFlow(FlowKey(bytes(4), 5432, bytes(4), 40000), bytes(6), bytes(6), None, 1, 2).pack()
MOMENT_S = 0.15  # several epochs


class FakeLog:
    """The write log of one disk: its position is the number of bytes the guest wrote so far."""

    def __init__(self, vm: FakeVm) -> None:
        self._vm = vm
        self.pressed = False
        self.written = 0
        self.taken: list[int] = []

    @contextmanager
    def cutting(self) -> Iterator[None]:
        self._vm.note("unbounded")
        try:
            yield
        finally:
            self._vm.note("bounded")

    def position(self) -> int:
        self._vm.note("position")
        return self.written

    def take(self, upto: int, _timeout_s: float) -> bytes:
        self.taken.append(upto)
        return b""


class FakeVm:
    """A VM as the loop has it: capture, gates, clock, domain and devices, and what was done, in order."""

    def __init__(self, logs: int = 1, epoch_ms: int = 10) -> None:
        self.done: list[str] = []
        self.turn = threading.RLock()
        self.held = threading.Event()  # somebody else may hold the turn
        self.logs = [FakeLog(self) for _ in range(logs)]
        self.at_cut: Callable[[int], None] = lambda _epoch: None  # with the VM stopped
        self.before_stop: Callable[[Callable[[float], None]], None] = lambda _waiting: None
        self.cuts = 0
        self.devices_differ: Exception | None = None
        self.jobs: Any = []
        self.mirrors: list[Any] = []
        self.stop_fails: Exception | None = None
        self.release: ReleaseSettings | None = None
        self._epoch_ms = epoch_ms

    def note(self, what: str) -> None:
        self.done.append(what)

    def resources(self) -> Any:
        """In the place of the worker's resources."""
        return SimpleNamespace(
            spec=SimpleNamespace(protection=Protection(epoch_mode="fixed", epoch_ms=self._epoch_ms)),
            gates=SimpleNamespace(
                turn=self.turn,
                mark_begin=self._mark_begin,
                mark_wait=lambda: self.note("marked"),
                open_flows=lambda: [FLOW],
                release=lambda epoch: self.note(f"release {epoch}"),
            ),
            capture=SimpleNamespace(cut=self._cut, give_back=lambda _cut: None),
            clock=SimpleNamespace(halting=self._halting, held_until_now=lambda: self.note("clock goes on")),
            domain=SimpleNamespace(
                monitor="private",
                name="db1",
                nics=[],
                pid=os.getpid(),
                qmp=self._qmp,
                qmp_begun=lambda command: command,
                qmp_patiently=lambda *_: self.jobs,
            ),
            devices=SimpleNamespace(require_same=self._require_same, explained=lambda exc: DevicesChanged(str(exc))),
            logs=self.logs,
            mirrors=self.mirrors,
            encoder=Encoder([], "full"),
            patience_s=1.0,
            release=self.release,
            bell_fd=None,
        )

    def _mark_begin(self, epoch: int) -> None:
        assert self.turn.acquire(blocking=False), "nobody else may be at the gates between mark and mark"
        self.turn.release()
        self.note(f"mark {epoch}")

    def _cut(
        self, at_stop: Callable[[], None], before_start: Callable[[], None], waiting: Callable[[float], None]
    ) -> Cut:
        self.before_stop(waiting)
        self.cuts += 1
        self.note("stopped")
        at_stop()
        self.at_cut(self.cuts)
        before_start()
        self.note("runs")
        return Cut(b"state of cut %d" % self.cuts, [], time.monotonic_ns())

    @contextmanager
    def _halting(self) -> Iterator[None]:
        self.note("clock halts")
        yield

    def _qmp(self, command: str) -> None:
        if self.stop_fails is not None:
            raise self.stop_fails
        self.note(command)

    def _require_same(self, _devices: bytes) -> None:
        if self.devices_differ is not None:
            raise self.devices_differ


class Running:
    """The loop at work on a VM, with an agent that acknowledges what the test says."""

    def __init__(self, vm: FakeVm, window: int = 4) -> None:
        self.vm = vm
        self.lock = threading.Condition()
        self.pipeline = Pipeline(window)
        self.pipeline.begin(TERM)
        self.shipped: list[EpochFrames] = []
        self.failed: list[Exception] = []
        self.waits: list[Reason | None] = []
        self.no_room = threading.Event()
        self.may_ship = threading.Event()
        self.may_ship.set()
        outbox: Any = SimpleNamespace(ship=self._ship)
        metrics: Any = SimpleNamespace(
            wait=self.waits.append, cut=lambda *_: None, shipped=lambda *_: None, reached=lambda *_: None
        )
        self.loop = EpochLoop(self.pipeline, outbox, metrics, self.lock, self.failed.append)

    def __enter__(self) -> Running:
        self.loop.start(self.vm.resources())
        return self

    def __exit__(self, *_exc: object) -> None:
        self.may_ship.set()
        self.loop.stop()

    def _ship(self, frames: EpochFrames) -> None:
        assert self.may_ship.wait(LIMIT_S)
        self.shipped.append(frames)

    @property
    def numbers(self) -> list[int]:
        return [frames.epoch for frames in self.shipped]

    def ack(self, epoch: int) -> None:
        with self.lock:
            self.pipeline.ack(TERM, epoch)
            self.lock.notify_all()

    def ack_all(self, upto: int) -> None:
        """As an agent does that keeps up, until so many epochs were shipped."""

        def go_on() -> bool:
            self.ack(self.pipeline.captured)
            return len(self.shipped) >= upto

        eventually(go_on)


def test_each_epoch_has_the_marks_and_the_positions_of_its_own_stop() -> None:
    vm = FakeVm(logs=2)
    with Running(vm) as running:
        running.ack_all(5)
    one = ["unbounded", "unbounded", "stopped", "mark {}", "position", "position", "marked", "runs"]
    expected = [step.format(epoch) for epoch in range(1, 6) for step in [*one, "bounded", "bounded"]]
    assert vm.done[: len(expected)] == expected


def test_epochs_are_shipped_in_order_with_the_writes_of_their_own_instant() -> None:
    vm = FakeVm()

    def write(cut: int) -> None:
        vm.logs[0].written = 1000 * cut  # once the position was read: of the next epoch

    vm.at_cut = write
    with Running(vm) as running:
        running.ack_all(6)
        assert running.numbers[:6] == [1, 2, 3, 4, 5, 6]
        assert vm.logs[0].taken[:6] == [0, 1000, 2000, 3000, 4000, 5000]


@pytest.mark.parametrize("window", [1, 3])
def test_with_the_window_full_nothing_is_cut_and_an_acknowledgement_lets_one_more(window: int) -> None:
    vm = FakeVm()
    with Running(vm, window) as running:
        eventually(lambda: len(running.shipped) == window)
        time.sleep(MOMENT_S)
        assert vm.cuts == window
        running.ack(1)
        eventually(lambda: len(running.shipped) == window + 1)
        time.sleep(MOMENT_S)
        assert vm.cuts == window + 1


def test_nothing_queues_up_behind_a_sender_that_is_slow() -> None:
    vm = FakeVm()
    with Running(vm, window=2) as running:
        running.may_ship.clear()
        eventually(lambda: vm.cuts == 2)
        time.sleep(MOMENT_S)
        assert vm.cuts == 2
        running.may_ship.set()
        eventually(lambda: running.numbers == [1, 2])


def test_a_disk_log_that_fills_is_not_waited_for_until_the_epoch_is_due() -> None:
    vm = FakeVm(epoch_ms=600_000)
    with Running(vm) as running:
        eventually(lambda: running.numbers == [1])  # the first is due at once
        time.sleep(MOMENT_S)
        assert vm.cuts == 1
        vm.logs[0].pressed = True
        eventually(lambda: vm.cuts >= 2)


def test_epochs_that_were_late_are_not_made_up_for_at_once() -> None:
    """The guest would stand still for most of that time."""
    vm, epoch_s = FakeVm(epoch_ms=50), 0.05
    slow = threading.Event()

    def once(cut: int) -> None:
        if cut == 1:
            time.sleep(20 * epoch_s)
            slow.set()

    vm.at_cut = once
    with Running(vm, window=1000) as running:
        assert slow.wait(LIMIT_S)
        began = time.monotonic()
        time.sleep(4 * epoch_s)
        made = vm.cuts - 1
        assert made <= 1 + (time.monotonic() - began) / (epoch_s / 2)
        assert running.failed == []


# --- what a COMMIT says ---


def test_the_guests_addresses_and_that_it_stands_still_go_with_the_epoch() -> None:
    vm = FakeVm()
    with Running(vm) as running:
        running.loop.addresses, running.loop.stays = ("192.0.2.1",), True
        running.ack_all(4)
        last = running.shipped[-1].commit
        assert (last.addresses, last.stays) == (["192.0.2.1"], True)


# --- libvirt or QEMU does not answer ---


def test_while_a_stop_is_waited_for_others_come_to_the_gates() -> None:
    """What was committed before must still go out."""
    vm = FakeVm()
    lent, go_on = threading.Event(), threading.Event()

    def away(waiting: Callable[[float], None]) -> None:
        if vm.cuts == 1 and not go_on.is_set():
            waiting(2.5)
            lent.set()
            assert go_on.wait(LIMIT_S)

    vm.before_stop = away
    with Running(vm) as running:
        running.ack(1)
        eventually(lambda: bool(running.pipeline.captured))
        running.ack(1)
        assert lent.wait(LIMIT_S)
        assert vm.turn.acquire(timeout=LIMIT_S), "somebody releases"
        assert any(told is not None and told.params["seconds"] == "2.5" for told in running.waits)
        go_on.set()
        time.sleep(MOMENT_S)
        assert "mark 2" not in vm.done, "it is marked while another one is at the gates"
        vm.turn.release()
        running.ack_all(3)
        assert running.waits[-1] is None


def test_a_cut_that_waits_for_whoever_takes_all_down_is_called_off_and_is_no_failure() -> None:
    vm = FakeVm()
    lent, go_on = threading.Event(), threading.Event()

    def away(waiting: Callable[[float], None]) -> None:
        waiting(1.0)
        lent.set()
        assert go_on.wait(LIMIT_S)

    vm.before_stop = away
    with Running(vm) as running:
        assert lent.wait(LIMIT_S)
        with vm.turn:
            running.loop.stop()
            go_on.set()
            eventually(lambda: "bounded" in vm.done, otherwise="the cut waits for the turn")
        assert running.failed == [] and "mark 1" not in vm.done


# --- what breaks ---


def stands_still(running: Running) -> None:
    """What was cut is shipped, and nothing more is cut, though there is room."""
    cuts = running.vm.cuts
    eventually(lambda: len(running.shipped) == running.pipeline.captured)
    running.ack(running.pipeline.captured)
    time.sleep(MOMENT_S)
    assert running.vm.cuts == cuts and len(running.shipped) == running.pipeline.captured


def test_a_cut_that_fails_ends_the_epochs_and_is_told_once() -> None:
    vm, failure = FakeVm(), VmError("QEMU stopped handing its device state")

    def fail(cut: int) -> None:
        if cut == 3:
            raise failure

    vm.at_cut = fail
    with Running(vm) as running:
        eventually(lambda: bool(running.failed))
        stands_still(running)
        assert running.failed == [failure] and running.pipeline.captured == 2


def test_a_gate_that_fails_may_be_a_device_that_was_taken_out() -> None:
    vm = FakeVm()
    vm.at_cut = lambda _cut: (_ for _ in ()).throw(GateError("vnet3 is gone"))
    with Running(vm) as running:
        eventually(lambda: bool(running.failed))
        assert isinstance(running.failed[0], DevicesChanged)


def test_another_device_in_the_state_keeps_its_epoch_from_being_shipped() -> None:
    vm = FakeVm()
    vm.devices_differ = DevicesChanged("devices changed: disk vdb was attached")
    with Running(vm) as running:
        eventually(lambda: bool(running.failed))
        assert running.failed == [vm.devices_differ] and running.shipped == []


@pytest.mark.parametrize(
    ("jobs", "works"),
    [
        ([{"device": "copy-vda-x", "type": "mirror", "ready": True, "actively-synced": True}], True),
        ([{"device": "copy-vda-x", "type": "mirror", "ready": True, "actively-synced": False}], False),
        ([], False),
        ([{"device": "copy-vdb-x", "type": "mirror", "ready": True, "actively-synced": True}], False),
    ],
    ids=["synced", "not synced", "gone", "another disk's"],
)
def test_an_epoch_whose_mirror_has_ended_is_never_shipped(jobs: list[dict[str, Any]], works: bool) -> None:
    vm = FakeVm()
    vm.jobs, vm.mirrors = jobs, [SimpleNamespace(target="vda")]
    with Running(vm) as running:
        eventually(lambda: bool(running.failed or running.shipped))
        if works:
            assert running.failed == []
        else:
            assert isinstance(running.failed[0], DiskError) and "disk vda" in str(running.failed[0])
            assert running.shipped == []


def test_what_fails_after_the_end_is_nobodys_business() -> None:
    vm = FakeVm()
    stopping, go_on = threading.Event(), threading.Event()

    def fail(_cut: int) -> None:
        stopping.set()
        assert go_on.wait(LIMIT_S)
        raise VmError("the VM is gone")

    vm.at_cut = fail
    with Running(vm) as running:
        assert stopping.wait(LIMIT_S)
        running.loop.stop()
        go_on.set()
        eventually(lambda: "bounded" in vm.done)
        assert running.failed == []


# --- the last epoch before a switchover ---


def test_the_last_epoch_is_cut_of_a_vm_that_was_stopped_for_good() -> None:
    vm = FakeVm(epoch_ms=600_000)
    with Running(vm) as running:
        eventually(lambda: running.numbers == [1])
        running.ack(1)
        last = running.loop.cut_last(LIMIT_S)
        assert last == 2
        at = vm.done.index("stop")
        assert vm.done[at - 1] == "clock halts" and vm.done.index("mark 2") > at
        eventually(lambda: running.numbers == [1, 2])
        assert not running.shipped[-1].commit.stays, "it ran until it was stopped for this"
        stands_still(running)


def test_a_switchover_that_is_called_off_goes_on_with_the_next_epoch() -> None:
    vm = FakeVm()
    with Running(vm) as running:
        running.ack_all(1)
        running.ack(running.pipeline.captured)
        last = running.loop.cut_last(LIMIT_S)
        stands_still(running)
        assert "clock goes on" not in vm.done
        running.loop.go_on()
        eventually(lambda: "clock goes on" in vm.done)
        running.ack_all(last + 2)
        assert running.numbers[: last + 2] == list(range(1, last + 3))


def test_a_vm_that_does_not_stop_is_told_to_whoever_asked_and_ends_the_epochs() -> None:
    vm = FakeVm()
    vm.stop_fails = VmError("stop: QEMU does not answer")
    with Running(vm) as running:
        with pytest.raises(VmError, match="QEMU does not answer"):
            running.loop.cut_last(LIMIT_S)
        eventually(lambda: running.failed == [vm.stop_fails])


def test_a_last_epoch_for_which_there_is_no_room_is_not_waited_for_without_end() -> None:
    vm = FakeVm()
    with Running(vm, window=1) as running:
        eventually(lambda: running.numbers == [1])
        with pytest.raises(VmError, match=r"not stopped and cut within 0\.1 s"):
            running.loop.cut_last(0.1)
        assert "stop" not in vm.done


def test_each_epoch_names_the_connections_that_were_open_and_gives_a_lease_from_its_cut() -> None:
    vm = FakeVm()
    vm.release = ReleaseSettings(mark=1)
    with Running(vm) as running:
        running.loop.silence_s = 0.5
        began = time.monotonic()
        running.ack_all(3)
        assert [frames.commit.open_flows for frames in running.shipped[:3]] == [[FLOW]] * 3
        until = running.loop.early_until(3)
        assert began < until < time.monotonic() + 0.5
        assert running.loop.early_until(3) == 0.0, "the same epoch gives no second one"


def test_a_vm_without_commit_protection_names_none_and_has_no_lease() -> None:
    vm = FakeVm()
    with Running(vm) as running:
        running.loop.silence_s = 0.5
        running.ack_all(2)
        assert running.shipped[0].commit.open_flows == []
        assert running.loop.early_until(2) == 0.0


def test_the_last_epoch_names_none_so_nothing_goes_early_before_a_newer_one_is_committed() -> None:
    vm = FakeVm()
    vm.release = ReleaseSettings(mark=1)
    with Running(vm) as running:
        running.loop.silence_s = 0.5
        running.ack_all(2)
        last = running.loop.cut_last(LIMIT_S)
        eventually(lambda: running.numbers[-1:] == [last])
        assert running.shipped[-1].commit.open_flows == []
        assert "release 0" in vm.done
        assert running.loop.early_until(last) == 0.0
        running.ack(last)
        running.loop.go_on()
        running.ack_all(len(running.shipped) + 1)
        newer = running.numbers[-1]
        assert running.loop.early_until(newer) > 0.0
