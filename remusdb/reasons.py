# SPDX-License-Identifier: Apache-2.0
"""Why a VM is in the state that status tells, and why something happened to it: a code, and what the code leaves open.

Whoever decides makes a `Reason`; `wording.py` alone turns one into English. Programs and tests look at the code.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Struct

from remusdb.core.bounds import for_people
from remusdb.errors import RemusError
from remusdb.says import says


class Code(StrEnum):
    """Each has its words, and what to do, in `wording.py`; docs/json.md lists them."""

    OTHER = "other"  # also one that is not known here: written by another version
    ERROR = "error"
    ERROR_HELD = "error-held"
    UNPROTECT_ASKED = "unprotect-asked"
    NOT_RUNNING = "not-running"

    # of the verdict on a host's VMs
    NO_BACKUP = "no-backup"
    NO_BACKUP_OFF = "no-backup-off"
    EXPOSED = "exposed"
    NOT_PROTECTED = "not-protected"
    HOST_SILENT = "host-silent"
    NO_DAEMON = "no-daemon"

    # a session begins, and goes well
    STARTING = "starting"
    REJOINING = "rejoining"
    PROTECTED_AGAIN = "protected-again"
    FOLLOWING = "following"
    RECONNECTED = "reconnected"
    COPY_RECONNECTED = "copy-reconnected"
    ADOPTED = "adopted"
    WORKER_UNHEARD = "worker-unheard"

    # something is wrong, and it goes on
    CUT_WAITS = "cut-waits"
    CLOCK_SLOW = "clock-slow"
    PROVEN = "proven"
    UNPROVEN_REFUSED = "unproven-refused"
    UNPROVEN_SILENT = "unproven-silent"
    UNPROVEN_UNABLE = "unproven-unable"
    SUSPENDED = "suspended"
    GUEST_SLEEPS = "guest-sleeps"
    GUEST_SHUT_DOWN = "guest-shut-down"
    GUEST_CRASHED = "guest-crashed"
    WATCHDOG = "watchdog"
    DUMPED = "dumped"
    DISK_FULL = "disk-full"
    DISK_ERROR = "disk-error"
    STOPPED = "stopped"
    RUNS_AGAIN = "runs-again"
    OUTPUT_DROPPED = "output-dropped"
    OUTPUT_FITS = "output-fits"
    ARBITER_UNFIT = "arbiter-unfit"
    ARBITER_FIT = "arbiter-fit"

    # the backup is away
    PEER_LOST = "peer-lost"
    COPY_WAITS = "copy-waits"
    PEER_UNREACHABLE = "peer-unreachable"
    PEER_UNREACHABLE_HELD = "peer-unreachable-held"
    PEER_DECIDING = "peer-deciding"
    PEER_RENOUNCED = "peer-renounced"
    PEER_UNHEARD_AT_END = "peer-unheard-at-end"

    # who goes on alone
    ALONE = "alone"
    GIVEN_BACK = "given-back"
    ALONE_FAILED = "alone-failed"
    ARBITER_REFUSES = "arbiter-refuses"
    ARBITER_SILENT = "arbiter-silent"
    ARBITER_IN_DOUBT = "arbiter-in-doubt"

    # who owns the VM
    OWNED_ELSEWHERE = "owned-elsewhere"
    QUARANTINED = "quarantined"
    OWNER_UNCONFIRMED = "owner-unconfirmed"
    OWNER_DISPUTED = "owner-disputed"
    TAKEN_OVER_HERE = "taken-over-here"
    OFF_UNDECIDED = "off-undecided"
    OFF = "off"

    # a session ends, or its worker
    CANNOT_PROTECT = "cannot-protect"
    WORKER_ENDED = "worker-ended"
    WORKER_LOST = "worker-lost"
    NO_WORKER = "no-worker"
    ABANDONED_HELD = "abandoned-held"
    QEMU_DIED = "qemu-died"
    HOST_STOPS = "host-stops"
    DEVICES_CHANGED = "devices-changed"
    ENDED = "ended"
    ENDED_BY_GUEST = "ended-by-guest"
    ENDED_BY_REBOOT = "ended-by-reboot"
    ENDED_BY_CRASH = "ended-by-crash"
    ENDED_BY_DESTROY = "ended-by-destroy"
    ENDED_BY_QUIT = "ended-by-quit"

    # on the backup
    NO_SESSION = "no-session"
    COPY_ARRIVES = "copy-arrives"
    PROTECTED_TO_HERE = "protected-to-here"
    FOLLOWS = "follows"
    SESSION_LOST = "session-lost"
    SESSION_BROKE = "session-broke"
    PRIMARY_ENDED_IT = "primary-ended-it"
    PRIMARY_SILENT_IN_COPY = "primary-silent-in-copy"
    REPLICA_BROKE = "replica-broke"
    NOT_STARTED = "not-started"
    AGENT_STOPPED = "agent-stopped"
    AGENT_RESTARTED = "agent-restarted"
    FORGOTTEN = "forgotten"
    OVERRULED = "overruled"
    FAILOVER_ASKED = "failover-asked"
    SWITCHOVER_ASKED = "switchover-asked"
    PRIMARY_SILENT = "primary-silent"
    PRIMARY_HEARD = "primary-heard"
    ARBITER_AWAITED = "arbiter-awaited"
    ARBITER_ANSWERED = "arbiter-answered"
    TAKEOVER_REFUSED = "takeover-refused"
    TAKEOVER_TRIED = "takeover-tried"
    TAKEOVER_FAILED = "takeover-failed"
    MAY_HAVE_RUN = "may-have-run"
    RESUMED_WARM = "resumed-warm"
    RESUMED_COLD = "resumed-cold"

    @classmethod
    def _missing_(cls, value: object) -> Code:
        """Of a file or a process of another version: never a reason not to read the rest."""
        return cls.OTHER


class Reason(Struct, frozen=True):
    """Why, as a value."""

    code: Annotated[Code, says("one of the list below")]
    params: Annotated[
        dict[str, str | Reason], says("what it leaves open: hosts, numbers, words of others, causes")
    ] = {}

    def __post_init__(self) -> None:
        """Words of others are cut, and safe to show."""
        for_people(self, "params")

    @classmethod
    def of(cls, code: Code, **params: object) -> Reason:
        """A code and its parameters, which `wording.py` names. A reason may be one: what caused this one."""
        return cls(code, {name: of if isinstance(of, Reason) else str(of) for name, of in params.items()})

    @classmethod
    def by(cls, exc: BaseException, code: Code = Code.ERROR) -> Reason:
        """An error: its id, its own words, and its hint. `code`: of those that take these."""
        id_, hint = (exc.id, exc.hint) if isinstance(exc, RemusError) else (type(exc).__name__, "")
        return cls.of(code, error=id_, why=exc, hint=hint)
