# SPDX-License-Identifier: Apache-2.0
"""What this host does about a VM whose replica it keeps: events in, effects out. No thread, clock, socket or file.

When is an epoch acknowledged? When it came whole, in order, over the connection that feeds the standby, in the term in
force, while nobody decides whether this host takes over (SEEDING, READY): `_committed`, `_applied`. Nothing else sends
an ACK. One that came with too much waiting before it is acknowledged once that is applied.

When may the replica become the VM? When it is READY (whole up to its last committed epoch), the arbiter, where there is
one, gave this host the VM or an operator's word stands for it, and the newer term is on the disk; then exactly the last
committed epoch is resumed, or its disks are booted, or the VM is given back: backup_takeover.py.

Who is told what? The primary is told that it may go on alone (RENOUNCE, or `renounced` in a refusal) only once that is
durable: backup_end.py. Another host is told that this one has the VM (`fenced`) only while it runs here; in between,
"deciding". A HELLO makes a new owner only as core/succession.py allows: backup_hello.py. Who asked for a takeover or a
switchover hears what came of it.

The phases are in core/standby.py. Of one VM one event is worked off at a time (see backup_events.py); an effect that
was begun may end at any time after, so each rule looks at the phase again.
"""

from __future__ import annotations

from remusdb.core import backup_end as ending
from remusdb.core import backup_hello as hello
from remusdb.core import backup_switchover as switchover
from remusdb.core import backup_takeover as takeover
from remusdb.core.backup_effects import Apply, AwaitRoom, Prove, Send, Tell
from remusdb.core.backup_events import (
    Announced,
    Applied,
    ArbiterRead,
    ArbiterWaits,
    Broken,
    Bye,
    Claimed,
    Committed,
    CopySilent,
    Declined,
    Drained,
    Durable,
    Event,
    Forget,
    Found,
    Gone,
    Hailed,
    LookedIfThere,
    LookedUp,
    Lost,
    NotResumed,
    NotStarted,
    Quarantined,
    Read,
    Recover,
    Runs,
    Started,
    Stop,
    SwitchoverAsked,
    TakeOver,
    TakeoverFailed,
)
from remusdb.core.backup_state import Effects, State
from remusdb.core.messages import Standing
from remusdb.core.standby import Phase
from remusdb.core.wire import FrameType
from remusdb.names import require_name
from remusdb.reasons import Code, Reason
from remusdb.wording import words


class Backup:
    """One VM on this host. Its properties are for status and for whoever performs."""

    def __init__(self, vm: str, host: str, durable: Durable, prefix: str = "") -> None:
        """`durable`: what the state file says; `prefix`: of the arbiter's keys, for a hint."""
        self.now = State(vm, host, durable, prefix)

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        return self.now.standby.phase

    @property
    def rereads(self) -> bool:
        """Whether the state file counts: there is no replica here, and other processes of this host may change it."""
        return self.phase in (Phase.EMPTY, Phase.PROMOTED, Phase.UNSETTLED)

    @property
    def busy(self) -> bool:
        """Whether something of it is only in this process. Of a promoted VM that is its metrics."""
        return self.phase is not Phase.EMPTY or self.now.asker is not None

    @property
    def unfinished(self) -> tuple[bool, bool]:
        """Whether an agent that is gone left it in the middle of something: at all, or where there is an arbiter."""
        durable = self.now.durable
        asked = durable.role == "none" and durable.peer != "" and durable.owner == durable.peer
        return durable.role in ("standby", "promoting"), asked

    def follows(self, line: int, term: int) -> bool:
        """Whether frames of this term that come over this connection are used."""
        return line == self.now.line and self.now.standby.accepts(term)

    def standing(self) -> Standing:
        """What this host is to the VM, for another host that asks before it does anything."""
        my = self.now
        undecided = self.phase.takes_over or self.phase is Phase.UNSETTLED
        owner = "" if undecided else my.standby.owner or my.durable.owner
        return Standing(require_name(my.vm), my.standby.term, owner, my.durable.role, words(my.why), my.durable.uuid)

    def handle(self, event: Event) -> Effects:
        """What is to be done about it, one effect after the other."""
        my = self.now
        match event:
            case Committed():
                yield from self._committed(event)
            case Applied():
                yield from self._applied(event)
            case Read(durable):
                if self.rereads:
                    my.read(durable)
            case Hailed():
                yield from hello.hailed(my, event)
            case LookedUp():
                yield from hello.looked_up(my, event)
            case Quarantined():
                yield from hello.quarantined(my, event)
            case Started():
                yield from hello.started(my)
            case NotStarted():
                yield from hello.came_to_nothing(my, event)
            case Gone():
                yield from ending.gone(my)
                if my.beginning is not None:
                    yield from hello.begin(my)
            case Lost():
                yield from ending.lost(my, event)
            case Bye(line, reason, forget):
                if line == my.line:
                    why = Reason.of(Code.PRIMARY_ENDED_IT, why=reason)
                    yield from ending.give_up(my, why, line, forget=forget)
            case Broken(term, reason):
                if term == my.session_term:
                    yield from ending.give_up(my, Reason.of(Code.REPLICA_BROKE, why=reason), my.line)
            case CopySilent():
                yield from ending.copy_silent(my, event)
            case Stop():
                yield from ending.stop(my, event)
            case Recover():
                yield from ending.recover(my, event)
            case Forget():
                yield from ending.forget(my, event)
            case LookedIfThere():
                yield from ending.looked_if_there(my, event)
            case TakeOver():
                yield from takeover.take_over(my, event)
            case ArbiterRead():
                yield from takeover.arbiter_read(my, event)
            case ArbiterWaits():
                yield from takeover.arbiter_waits(my, event)
            case Claimed():
                yield from takeover.claimed(my, event)
            case Drained():
                yield from takeover.drained(my)
            case NotResumed():
                yield from takeover.not_resumed(my, event)
            case Runs():
                yield from takeover.runs(my, event)
            case Announced():
                yield from takeover.announced(my, event)
            case TakeoverFailed():
                yield from takeover.failed(my, event)
            case Found():
                yield from takeover.found(my, event)
            case SwitchoverAsked():
                yield from switchover.switchover_asked(my, event)
            case Declined():
                yield from switchover.declined(my, event)

    def _committed(self, event: Committed) -> Effects:
        """An epoch is here, whole. Unbridled, BadFrame: it should not have come, or not yet."""
        my = self.now
        standby = my.standby
        if event.line != my.line or not standby.accepts(event.term):
            return
        my.owed.came(event.epoch)
        new, first = event.epoch > standby.committed, event.epoch == 1 and standby.phase is Phase.SEEDING
        standby.commit(event.term, event.epoch)
        if new:
            my.addresses, my.stays = event.addresses, event.stays
            my.why = Reason.of(Code.FOLLOWS, peer=my.durable.peer)
            if first:
                yield Tell("protected", "seeding", my.why)
            yield Apply(event.term, event.epoch, event.data)
            if first:
                yield Prove(event.term)
            if event.crowded:
                my.owed.wait(event.epoch)
                yield AwaitRoom(event.line)
                return
            my.owed.told(event.epoch)
        yield Send(event.line, FrameType.ACK, event.term, event.epoch)

    def _applied(self, event: Applied) -> Effects:
        """The applier reached an epoch; an acknowledgement that waited for room goes out."""
        my = self.now
        if event.term != my.session_term or not self.phase.holds:
            return  # an applier that outlived its session
        my.standby.moved(event.epoch)
        waits = my.owed.waits
        if waits is None or my.line is None or event.crowded or not my.standby.accepts(event.term):
            return
        my.owed.told(waits)
        yield Send(my.line, FrameType.ACK, event.term, waits)
