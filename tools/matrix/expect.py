# SPDX-License-Identifier: Apache-2.0
"""What each fault must end in, in each phase, and why. One table; everything else only compares.

Outcomes, of the VM that `primary` ran and `backup` protected:

    protected   it runs where it ran, and the backup can take it over again
    rejoined    the backup runs it; the old primary has learned that, has no VM, and says "fenced"
    taken over  the backup runs it; the old primary cannot be asked, or has not learned it yet
    solo        it runs where it ran, alone, and speaks
    held        it runs where it ran, and does not speak
    down        it runs nowhere; what was acknowledged is on a disk
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tools.matrix.faults import FAULTS, Fault
from tools.matrix.phases import Phase

TAKEOVER_S = 15.0  # 0.5 s of silence, and what an emulated VM takes to answer on a busy machine
REJOIN_S = 40.0  # its host may have to boot first
RESYNC_S = 90.0  # the copy of what differs, and the daemon's patience between tries
SOLO_S = 15.0  # solo_after_ms, and finding out that the backup is gone


@dataclass(frozen=True)
class Expect:
    """`end`: outcomes that are right in the end. `under`: while a fault lasts that does not end by itself."""

    end: tuple[str, ...]
    why: str
    within_s: float = REJOIN_S
    under: tuple[str, ...] = ()
    under_s: float = TAKEOVER_S
    restarts: bool = False  # the VM may have to boot again: connections break, no acknowledged row is lost


@dataclass(frozen=True)
class DoesNotApply:
    """The cell makes no sense."""

    why: str


def _moves(why: str, under: tuple[str, ...] = ()) -> Expect:
    return Expect(("rejoined",), why, under=under)


def _stays(why: str, under: tuple[str, ...] = ()) -> Expect:
    return Expect(("protected",), why, RESYNC_S, under, SOLO_S)


def _either(why: str, under: tuple[str, ...] = ()) -> Expect:
    return Expect(("protected", "rejoined"), why, RESYNC_S, under)


# Of a VM that is protected: idle, under load, and while an epoch is applied. The kind of work changes nothing.
_PROTECTED: dict[str, Expect] = {
    "host-kill": _moves(
        "the backup hears nothing for silence_ms; the host boots and learns the newer term", ("taken over",)
    ),
    "host-stop": _moves("5 s are more than silence_ms; what goes on afterwards is of an older term", ()),
    "qemu-kill": _moves("the worker sees it, or falls silent; the host itself learns the newer term"),
    "qemu-stop": _either("the worker beats on while QEMU stands still: it waits, or gives the VM to the backup"),
    "daemon-kill": _stays("the worker goes on by itself, and the next daemon adopts it"),
    "daemon-stop": _stays("the daemon is not needed between two orders"),
    "worker-kill": _either("the backup takes over after silence_ms, unless the daemon's next worker is faster"),
    "worker-stop": _moves("5 s are more than silence_ms, and it can release nothing afterwards"),
    "agent-kill": _stays("the primary goes solo in the arbiter, or resyncs when the agent is back"),
    "agent-stop": _stays("the primary goes solo or waits; when the agent goes on, they are together again"),
    "backup-kill": _stays("the primary goes solo in the arbiter, and resyncs when the host is back", ("solo",)),
    "backup-stop": _stays("the primary goes solo in the arbiter, and resyncs when the host goes on"),
    "standby-kill": _stays("the agent gives the replica up and says so; the primary starts again"),
    "standby-stop": _stays("the agent writes into its memory from outside: it need not run"),
    "etcd-kill": _stays("the pair is healthy: nobody asks the arbiter"),
    "etcd-stop": _stays("the pair is healthy: nobody asks the arbiter"),
    "link-cut": _moves("the backup has the arbiter, the primary has nobody", ("taken over",)),
    "link-out": _moves("nobody hears the primary, so it can ask nobody", ("taken over",)),
    "link-in": _moves("the primary hears no acknowledgement and no arbiter; its silence follows", ("taken over",)),
    "link-delay": _stays("every reply is later by that; the heartbeats come as often as before", ("protected",)),
    "link-loss": _either(
        "TCP sends again; two losses in a row may last longer than silence_ms, and a takeover is safe, too",
        ("protected", "taken over", "rejoined"),
    ),
    "link-short": _either("heartbeats beside the connection outlast it; a busy machine may make the blink longer"),
    "link-reset": _stays("the session resumes in the same term, or another begins"),
    "backuplink-cut": _stays("the primary has the arbiter, the backup has nobody", ("solo",)),
    "backuplink-out": _stays("the backup can ask nobody for the VM; the primary goes solo", ("solo",)),
    "backuplink-in": _stays("the backup hears no arbiter, so it cannot take over; the primary goes solo", ("solo",)),
}

_NO_REPLICA = "nothing can take over yet, so output is not held"
_SYNC: dict[str, Expect] = {
    "host-kill": Expect(
        ("down",),
        "there is no replica yet: the VM is on its disk, to be started by whoever starts VMs",
        REJOIN_S,
        ("down",),
        restarts=True,
    ),
    "qemu-kill": Expect(("down",), "there is no replica yet: the VM is on its disk", REJOIN_S, restarts=True),
    **dict.fromkeys(
        ("host-stop", "qemu-stop", "daemon-kill", "daemon-stop", "worker-kill", "worker-stop"),
        _stays(f"{_NO_REPLICA}; the copy goes on or begins again"),
    ),
    **dict.fromkeys(
        ("agent-kill", "agent-stop", "standby-kill", "standby-stop", "backup-stop", "link-short", "link-reset"),
        _stays(f"{_NO_REPLICA}; the copy goes on or begins again"),
    ),
    "backup-kill": _stays(
        f"{_NO_REPLICA}; the copy begins again once the host is back", ("solo", "failed", "unprotected", "seeding")
    ),
    "etcd-kill": _stays("the session was entered in the arbiter when it began"),
    "etcd-stop": _stays("the session was entered in the arbiter when it began"),
    **dict.fromkeys(
        ("link-cut", "link-out", "link-in", "backuplink-cut", "backuplink-out", "backuplink-in"),
        _stays(
            f"{_NO_REPLICA}; the copy goes on, or begins again, once the link is back",
            ("solo", "failed", "unprotected", "seeding"),
        ),
    ),
    "link-delay": _stays("the copy takes longer", ("protected", "seeding")),
    "link-loss": _stays("the copy takes longer", ("protected", "seeding")),
}

_DEAD_ALREADY = "the primary's QEMU is dead already: that is why there is a promotion"
_PROMOTION: dict[str, Expect | DoesNotApply] = {
    "qemu-kill": DoesNotApply(_DEAD_ALREADY),
    "qemu-stop": DoesNotApply(_DEAD_ALREADY),
    "worker-kill": _moves("the old primary has no VM any more, and nothing to say"),
    "host-kill": _moves("the old primary has no VM any more, and nothing to say", ("taken over",)),
    **dict.fromkeys(
        ("host-stop", "daemon-kill", "daemon-stop", "worker-stop"),
        _moves("the old primary has no VM any more, and nothing to say"),
    ),
    **dict.fromkeys(
        ("link-cut", "link-out", "link-in", "link-delay", "link-loss"),
        _moves("the old primary is not asked for anything", ("taken over", "rejoined")),
    ),
    **dict.fromkeys(("link-short", "link-reset"), _moves("the old primary is not asked for anything")),
    "agent-kill": Expect(
        ("rejoined", "down"),
        "what was in the agent's memory is lost: the VM runs already, or is booted from a disk",
        REJOIN_S,
        restarts=True,
    ),
    "agent-stop": _moves("the takeover goes on when the agent does"),
    "backup-kill": Expect(
        ("down", "rejoined"), "both hosts are dead: the VM is on both disks", REJOIN_S, ("down",), restarts=True
    ),
    "backup-stop": _moves("the takeover goes on when its host does"),
    "standby-kill": Expect(
        ("rejoined", "down"),
        "the memory is lost: the VM is booted from the replica's disks, or not at all",
        REJOIN_S,
        restarts=True,
    ),
    "standby-stop": Expect(
        ("rejoined",),
        "QEMU answers again after 5 s, or the VM is booted from the replica's disks",
        REJOIN_S,
        restarts=True,
    ),
    "etcd-kill": _moves("it decides once the arbiter is back"),
    "etcd-stop": _moves("it decides once the arbiter answers"),
    **dict.fromkeys(
        ("backuplink-cut", "backuplink-out", "backuplink-in"),
        _moves("the arbiter was asked already, or is asked once the link is back", ("taken over", "rejoined", "down")),
    ),
}


_SAFE, _UNSAFE, _NOTHING = "PROTECTED", "NOT PROTECTED", "NOTHING TO PROTECT"
# (where the VM is, on the old primary) -> how `remusdb status` may begin there. Else: anything but PROTECTED.
_FIRST: dict[tuple[str, bool], tuple[str, ...]] = {
    ("protected", True): (_SAFE,),
    ("protected", False): (_NOTHING,),
    ("rejoined", True): (_NOTHING,),
    ("rejoined", False): (_UNSAFE,),
    ("taken over", True): (_UNSAFE, _NOTHING),  # it may know by now
    ("taken over", False): (_UNSAFE,),
    ("down", True): (_UNSAFE, _NOTHING),
    ("down", False): (_UNSAFE, _NOTHING),
    # the other outcomes, which are states of the primary's: nobody else is asked
    **{(state, True): (_UNSAFE,) for state in ("solo", "held", "seeding", "failed", "unprotected")},
}


def first_word(line: str) -> str:
    """How a first line of `remusdb status` begins."""
    return next((word for word in (_SAFE, _UNSAFE, _NOTHING) if line.startswith(f"{word}  ")), line[:40])


def wrong_words(outcome: str, said: Mapping[bool, str], reprotected: bool = False) -> list[str]:
    """Complaints of what `status` begins with, on the old primary (True) and its backup, of the hosts that were asked.

    `reprotected`: the old backup runs the VM, and the old primary protects it by now.
    """
    found = []
    for on_primary, word in said.items():
        may = _FIRST.get((outcome, on_primary), (_UNSAFE, _NOTHING))
        if reprotected:
            may = (_NOTHING,) if on_primary else (_SAFE,)
        if word not in may:
            where = "old primary" if on_primary else "backup"
            found.append(f"status on the {where} begins with {word!r}, where the VM is {outcome}: {' or '.join(may)}")
    if outcome == "down" and len(said) == 2 and _UNSAFE not in said.values():
        found.append(f"the VM is down, and status on neither host begins with {_UNSAFE!r}")
    return found


def expected(fault: Fault, phase: Phase) -> Expect | DoesNotApply:
    """What the cell must end in."""
    table: dict[str, Expect] | dict[str, Expect | DoesNotApply] = _PROTECTED
    if phase is Phase.SYNC:
        table = _SYNC
    elif phase is Phase.PROMOTION:
        table = _PROMOTION
    return table[fault.key]


def cells() -> list[tuple[Fault, Phase]]:
    """All cells, row by row."""
    return [(fault, phase) for fault in FAULTS.values() for phase in Phase]


# One of every kind, in at most 8 minutes: each phase, each way to end, the arbiter, and both sides of each link.
CI = (
    "host-kill/under load",
    "qemu-kill/idle",
    "host-stop/under load",
    "daemon-kill/under load",
    "agent-kill/under load",
    "standby-kill/promotion",
    "worker-kill/initial sync",
    "etcd-kill/promotion",
    "link-in/apply",
    "link-reset/under load",
)
