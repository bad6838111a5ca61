# SPDX-License-Identifier: Apache-2.0
"""What is looked at while a VM is protected, and told once: that it stands still, lost output, the arbiter."""

from __future__ import annotations

import threading
from typing import Any

import libvirt
import pytest

from remusdb.arbiter.health import Health
from remusdb.errors import VmError
from remusdb.net.gate import GateMetrics
from remusdb.reasons import Code, Reason
from remusdb.troubles import Troubles
from remusdb.vm.endwatch import CAUSES, EndWatch
from remusdb.vm.runstate import LIVES_ON, RunState, judge, run_state
from remusdb.wording import words
from remusdb.worker.lookout import CALM_S, SHUT_S, Lookout

MIB = 1 << 20


class Seen:
    """A lookout with nothing behind it, and what it told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.stays: list[bool] = []
        self.troubles = Troubles(lambda event, what, _reason: self.told.append((event, what)))
        self.lookout = Lookout(self.troubles, 64 * MIB, self.stays.append)


def test_a_trouble_is_told_once_however_often_it_is_seen() -> None:
    seen = Seen()
    for _ in range(3):
        seen.lookout.see_run_state(judge("paused"), 0.0)
    assert seen.told == [("trouble", "suspended")] and seen.troubles.names == ["suspended"]
    assert seen.troubles.reasons == [Reason.of(Code.SUSPENDED, stays=True)] and seen.stays == [True] * 3
    seen.lookout.see_run_state(None, 1.0)
    assert seen.troubles.names == ["suspended"], "what cannot be seen changes nothing"
    for _ in range(2):
        seen.lookout.see_run_state(RunState("running"), 1.0)
    assert seen.told[1:] == [("cleared", "suspended")] and seen.troubles.reasons == [] and seen.stays[-1] is False


def test_one_trouble_gives_way_to_another() -> None:
    seen = Seen()
    seen.lookout.see_run_state(RunState("io-error", Reason.of(Code.DISK_FULL, disks="vda")), 0.0)
    seen.lookout.see_run_state(judge("paused"), 0.0)
    assert seen.told == [("trouble", "io-error"), ("cleared", "io-error"), ("trouble", "suspended")]


def test_a_guest_that_shuts_down_is_no_trouble_unless_it_stays_so() -> None:
    """Its end is one event of its own; and `virsh reboot` lets it shut down before it is reset."""
    seen = Seen()
    down = judge("shutdown")
    seen.lookout.see_run_state(down, 10.0)
    seen.lookout.see_run_state(down, 10.0 + SHUT_S / 2)
    seen.lookout.see_run_state(RunState("running"), 13.0)
    seen.lookout.see_run_state(down, 20.0)
    assert seen.told == []
    seen.lookout.see_run_state(down, 20.0 + SHUT_S)
    assert seen.told == [("trouble", "stopped")]


def gate(dropped: int, held_mib: int) -> GateMetrics:
    return GateMetrics(held_bytes=held_mib * MIB, dropped_frames=dropped)


def test_dropped_output_is_told_once_an_episode() -> None:
    """TCP sends again all the while, and each time it is dropped: that is one episode until the gate has room."""
    seen = Seen()
    seen.lookout.see_gate(gate(7, 0), 0.0)  # of before
    assert seen.told == []
    seen.lookout.see_gate(gate(107, 64), 1.0)
    assert seen.troubles.reasons == [Reason.of(Code.OUTPUT_DROPPED, frames=100, mib=64)]
    seen.lookout.see_gate(gate(107, 64), 60.0)
    seen.lookout.see_gate(gate(207, 64), 61.0)
    assert seen.troubles.reasons == [Reason.of(Code.OUTPUT_DROPPED, frames=200, mib=64)]
    seen.lookout.see_gate(gate(207, 1), 61.0 + CALM_S / 2)
    assert seen.told == [("trouble", "output-dropped")]
    seen.lookout.see_gate(gate(207, 1), 62.0 + CALM_S)
    assert seen.told[1:] == [("cleared", "output-dropped")]
    seen.lookout.see_gate(gate(208, 64), 90.0)
    assert seen.told[2:] == [("trouble", "output-dropped")]
    assert seen.troubles.reasons == [Reason.of(Code.OUTPUT_DROPPED, frames=1, mib=64)]


def test_an_arbiter_that_could_not_decide_is_told() -> None:
    seen = Seen()
    for problem in ("", "etcd has used up its space", "etcd has no quorum", ""):
        seen.lookout.see_arbiter(Health(problem, "make room" if problem else ""))
    assert seen.told == [("trouble", "arbiter"), ("cleared", "arbiter")]


@pytest.mark.parametrize("status", ["paused", "shutdown", "guest-panicked", "watchdog", "internal-error", "anything"])
def test_what_somebody_or_something_stopped_stays_so_after_a_takeover(status: str) -> None:
    assert judge(status).stays and "it stays so after a takeover" in words(judge(status).why)


@pytest.mark.parametrize("status", LIVES_ON)
def test_what_ran_or_wants_to_lives_on(status: str) -> None:
    assert not judge(status).stays


class Vm:
    """A domain whose QEMU and libvirt say this."""

    name = "db"

    def __init__(self, status: str, state: Any = (), errors: Any = ()) -> None:
        self._status, self._state, self._errors = status, state, errors
        self.calls = self.handle = self

    def qmp(self, _command: str) -> dict[str, str]:
        return {"status": self._status}

    def call(self, _what: str, function: Any, *args: Any) -> Any:
        return function(*args)

    def state(self) -> Any:
        if not self._state:
            raise VmError("libvirt is away")
        return self._state

    def diskErrors(self, _flags: int) -> Any:
        if self._errors == "away":
            raise VmError("libvirt is away")
        return dict(self._errors)


def seen_of(*what: Any) -> RunState:
    vm: Any = Vm(*what)
    return run_state(vm)


def test_a_dump_is_no_suspension() -> None:
    """A VM that libvirt dumps just then is to run after a takeover."""
    dump = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_DUMP)
    assert seen_of("paused", dump) == RunState("paused", Reason.of(Code.DUMPED))
    assert seen_of("paused", (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)).stays
    assert seen_of("paused").stays, "QEMU's word counts where libvirt is away"
    assert seen_of("running") == RunState("running")


def test_which_disk_is_full_is_named() -> None:
    full = seen_of("io-error", (), {"vdb": libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE})
    assert full.what == "io-error" and full.why == Reason.of(Code.DISK_FULL, disks="vdb")
    broken = seen_of("io-error", (), {"vda": libvirt.VIR_DOMAIN_DISK_ERROR_UNSPEC})
    assert broken.why == Reason.of(Code.DISK_ERROR, disks="vda")
    assert seen_of("io-error", (), "away").why == Reason.of(Code.DISK_ERROR, disks="")


class Alive:
    """A connection to libvirt."""

    def isAlive(self) -> bool:
        return True


def ended(*events: tuple[str, str]) -> EndWatch:
    watch = EndWatch.__new__(EndWatch)
    watch._cause, watch._panicked, watch._destroyed = "", False, False
    watch._stopped, watch._told = threading.Event(), threading.Event()
    watch._connection = Alive()
    for event, details in events:
        watch._on_event(None, None, event, 0, 0, details, None)
    return watch


def test_why_a_vm_ends_is_qemus_word() -> None:
    for reason, code in CAUSES.items():
        watch = ended(("SHUTDOWN", f'{{"guest":true,"reason":"{reason}"}}'))
        assert watch.coming and watch.why is code
    assert ended().why is Code.ENDED and not ended().coming
    assert ended(("SHUTDOWN", "")).coming and ended(("SHUTDOWN", "[]")).why is Code.ENDED
    by_itself = ended(("SHUTDOWN", '{"reason":"guest-shutdown"}'), ("SHUTDOWN", '{"reason":"host-signal"}'))
    assert by_itself.why is Code.ENDED_BY_GUEST
    panicked = ended(("GUEST_PANICKED", "{}"), ("SHUTDOWN", '{"reason":"host-signal"}'))
    assert panicked.why is Code.ENDED_BY_CRASH
    assert not ended(("GUEST_PANICKED", "{}")).coming, "one that is kept, and then killed, was not wanted off"


def test_whose_signal_it_was_is_libvirts_word() -> None:
    """`virsh destroy` and a host that goes down both send SIGTERM; only the first wanted the VM off."""
    signal = ("SHUTDOWN", '{"guest":false,"reason":"host-signal"}')
    for detail, wanted in (("DESTROYED", True), ("SHUTDOWN", False), ("CRASHED", False)):
        watch = ended(signal)
        number = getattr(libvirt, f"VIR_DOMAIN_EVENT_STOPPED_{detail}")
        watch._on_lifecycle(None, None, libvirt.VIR_DOMAIN_EVENT_STOPPED, number, None)
        assert watch.by_signal and watch.was_destroyed() is wanted
    assert not ended(signal).was_destroyed(0.01), "libvirt says nothing"
    swallowed = ended()
    swallowed._on_lifecycle(
        None, None, libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED, None
    )
    assert swallowed.why is Code.ENDED_BY_DESTROY, "QEMU's event may be lost when libvirt ends it"
    assert not ended(("SHUTDOWN", '{"reason":"guest-shutdown"}'), signal).by_signal


def test_a_guest_that_is_reset_does_not_end() -> None:
    assert not ended(("SHUTDOWN", '{"reason":"guest-shutdown"}'), ("RESET", "{}")).coming
