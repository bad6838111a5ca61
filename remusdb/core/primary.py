# SPDX-License-Identifier: Apache-2.0
"""What a primary does next with its VM's output: events in, effects out. No thread, clock, socket or file.

    IDLE ──Begun──▶ SEEDING ──first ack──▶ PROTECTED ◀──Resumed── HELD ◀──no── DECIDING   (the arbiter is asked)
      │                │                        └───────Lost──────▶│ ───────────▶ │ yes
      └────────────────┴──────────────┬────────────────────────────┘              ▼
                                      ▼                                       SOLO (output flows, a new session follows)
                   FENCED (output stays shut for good), ENDED (output flows: unprotected, or solo)

**When may a gate open?** It is shut from `HoldOutput` on, and from the start where an earlier worker left it shut
(`Adopted`). It opens by these effects and no others:

  ReleaseEpochs(n)   the agent acknowledged epoch n, in the term in force (`Pipeline.ack`); never once fenced
  OpenGates          `Begun`: whoever keeps a fresh session has given up what it had of an older one
  TakeDown(open)     in `_finish`, which is reached in these ways only:
                       `Renounced`, or the same word to an operator (`UnprotectOrphan`): the agent cannot take over
                       the arbiter gave the VM to this host alone
                       `Unprotect(peer_is_dead)`: the operator's word, while the agent is not heard
                       nothing was ever cut that could be taken over with

What is decided is saved only after the deed: `Save` of a VM that is free comes after the gates were opened, so that
a death in between leaves a VM that is called held, never a mute one that nothing calls so. What another host must not
be surprised by is saved before it: `Save(armed)` before `HoldOutput`, that before the first cut; a term before it
is used; `Save(paused)` before the VM is stopped for a switchover.

`handle` is a generator: each effect is performed before the decision goes on, so what stands after a `yield` happens
only once that is done; an effect that fails raises there. After `End` no event has an effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remusdb.core import primary_effects as effects
from remusdb.core import primary_events as events
from remusdb.core.alone import Alone, Ask, AskAgain, Held, Won
from remusdb.core.opening import Refused, judge_claim, judge_welcome
from remusdb.core.ownership import Claim, Ownership
from remusdb.core.pipeline import Pipeline, PrimaryState
from remusdb.core.primary_effects import EndState, Save, Steps
from remusdb.core.primary_events import Event
from remusdb.core.switch import Switch, if_possible, start_vm
from remusdb.errors import Fenced, NotProtected, PeerRefused, RefusedForSafety, RemusError
from remusdb.reasons import Code, Reason
from remusdb.wording import words

WORD_S = 5.0  # so long the agent may take to give its word that it cannot take over
ASK_AGAIN_S = 0.25  # the arbiter
DEAD_HINT = "stop the agent's host first, then use --peer-is-dead; or try again when the agent is back"
ASKED, OVER = Reason.of(Code.UNPROTECT_ASKED), "the session is over"


@dataclass(frozen=True)
class Leaving:
    """Protection ends once the agent has given its word. `asked`: by an operator; `copying`: protect() failed."""

    to: EndState
    why: Reason
    asked: bool = False
    copying: bool = False
    peer_is_dead: bool = False


@dataclass(frozen=True)
class Known:
    """What is known of a VM when its session is made, from its state file and the configuration."""

    vm: str
    host: str
    peer: str
    term: int
    armed: bool  # an earlier session's agent may hold epochs
    wanted: bool  # it is protected again by itself, whatever ends this session
    paused: bool = False  # an earlier worker stopped it for a switchover
    solo_after_s: float | None = None  # None: it never goes on alone, for there is no arbiter, or by configuration
    ends_with_host: bool = False  # a VM that its host's shutdown ends is not taken over


class Primary:
    """The decisions of one session of one VM. One event at a time."""

    def __init__(self, known: Known, window: int) -> None:
        self.pipeline = Pipeline(window)
        self.pipeline.term = known.term
        self.over = False  # nothing more is cut or shipped
        self.ended = False
        self.failed_in_copy = False  # protect() cleans up, whatever is acknowledged meanwhile
        self.gave_up: PeerRefused | None = None  # the agent's word that it cannot take over
        self._known = known
        self._term = known.term  # the newest that is durable
        self._gated = self._greeted = False
        self._failed: events.Failed | None = None
        self._leaving: Leaving | None = None
        self._after: Leaving | None = None  # what goes on if the agent does not give its word to an operator
        self._why_held: str | Reason = ""
        self._alone = Alone()
        self._waiting: events.Resumed | None = None  # until the arbiter has said no
        self._switch: Switch | None = None
        self._state: effects.State = "seeding"  # as last reported

    @property
    def phase(self) -> PrimaryState:
        """Where it stands."""
        return self.pipeline.state

    @property
    def may_be_replaced(self) -> bool:
        """Whether the agent may hold something to take over with: an epoch of this session, or of one before it."""
        return self.pipeline.captured > 0 or (self._known.armed and not self._greeted)

    @property
    def switching(self) -> bool:
        """Whether the VM is stopped, or being stopped, for a switchover."""
        return self._switch is not None

    @property
    def is_protected(self) -> bool:
        """Whether epochs are cut and acknowledged, and nothing ends that."""
        return self.phase is PrimaryState.PROTECTED and not self.over and self._leaving is None

    def handle(self, event: Event) -> Steps:
        """What is to be done about it. RemusError for an event that is refused."""
        return self._after_the_end(event) if self.ended else self._decide(event)

    def _decide(self, event: Event) -> Steps:
        match event:
            case events.Opened():
                if self._known.armed:
                    yield effects.AdoptGates()
            case events.Adopted():
                self._gated = True
            case events.Welcomed(term):
                self._greeted = True
                yield from self._require(judge_welcome(self._term, term, self._known.peer))
            case events.SessionClaimed(claim, key):
                yield from self._require(judge_claim(self._term, claim, self._known.host, self._known.vm, key))
            case events.Begun():
                yield from self._begun(event)
            case events.Copied():
                yield from self._copied(event)
            case events.Settled():
                if self.is_protected:
                    yield self._report("protected", Reason.of(Code.FOLLOWING, peer=self._known.peer), "protected")
            case events.Acked(term, epoch):
                yield from self._acked(term, epoch)
            case events.Lost(why):
                yield from self._lost(why)
            case events.Resumed():
                yield from self._resumed(event)
            case events.Renounced(why):
                yield from self._agent_renounced(why)
            case events.FencedOff(term, why):
                yield from self._fenced(term, why)
            case events.Broken(why):
                yield from self._broken(why)
            case events.Failed():
                yield from self._cannot_go_on(event)
            case events.VmLives():
                yield from self._lives()
            case events.VmEnds(crashed):
                if crashed:  # at once: the agent begins to count
                    yield effects.FallSilent()
                yield effects.AskWhoEndedIt()
            case events.VmEnded():
                yield from self._vm_ended(event)
            case events.Abandoned():
                yield from self._abandoned(event)
            case events.Unprotect(peer_is_dead):
                yield from self._unprotect(peer_is_dead)
            case events.UnprotectOrphan():
                yield from self._unprotect_orphan(event)
            case events.ArbiterSaid(claim):
                yield from self._arbiter_said(claim)
            case events.Switchover(still):
                yield from self._switch_over(still)
            case events.LastCut(epoch):
                yield from self._of_switch(lambda switch: switch.cut(epoch, self.pipeline.committed))
            case events.NotCut(why):
                yield from self._of_switch(lambda switch: switch.not_cut(why))
            case events.Declined(why):
                yield from self._of_switch(lambda switch: switch.call_off(why))
            case events.TimeIsUp(timer):
                yield from self._time_is_up(timer)

    def _after_the_end(self, event: Event) -> Steps:
        """Nothing is decided any more, but nobody is left waiting, and what comes too late is taken down."""
        match event:
            case events.Opened() | events.Welcomed() | events.Begun() | events.Copied():
                raise NotProtected(f"the session of VM {self._known.vm} was ended meanwhile")
            case events.Abandoned():  # protect() was under way, and may have made something since
                yield effects.ClosePeer()
                yield effects.TakeDown(open_gates=False)
            case events.Resumed():
                yield effects.HangUp(event.line, OVER)
            case events.Unprotect() | events.UnprotectOrphan():
                yield effects.Answer("unprotect", self._unprotected())
            case events.Switchover():
                raise self._not_protected()

    def _end(self) -> Steps:
        if self._waiting is not None:
            yield effects.HangUp(self._waiting.line, OVER)
        moved = self.phase is PrimaryState.FENCED
        yield effects.Answer("switchover", None if moved else self._not_protected())
        yield effects.Answer("unprotect", self._unprotected())
        yield effects.End()

    def _unprotected(self) -> RemusError | None:
        if self.phase in (PrimaryState.SOLO, PrimaryState.ENDED):
            return None
        if self.phase is PrimaryState.FENCED:
            return Fenced(
                f"host {self._known.peer} runs this VM now; its output stays shut here",
                hint="it is quarantined automatically; see: remusdb status",
            )
        return RefusedForSafety(f"the session is over, VM {self._known.vm} is {self._state}", hint=DEAD_HINT)

    def _time_is_up(self, timer: events.Timer) -> Steps:
        if timer == "word":
            yield from self._no_word()
        elif timer == "solo":
            yield from self._ask_arbiter()
        elif timer == "commit":
            yield from self._of_switch(lambda switch: switch.not_committed())
        elif timer == "answer":
            yield from self._of_switch(lambda switch: switch.unanswered())

    # --- from the welcome to the first epoch ---

    def _require(self, refused: Refused | None) -> Steps:
        if refused is None:
            return
        if refused.learned:
            yield Save({"term": refused.learned})
            self._term = self.pipeline.term = refused.learned
        raise refused.error

    def _begun(self, event: events.Begun) -> Steps:
        """The agent gave up what it held: until the copy is complete the VM speaks, unprotected."""
        if self._gated:
            yield effects.OpenGates()
        pair = {"owner": self._known.host, "peer": self._known.peer, **event.facts}
        # Wanted from here on: if this worker dies in the copy, another one begins again.
        yield Save({"role": "seeding", "term": event.term, "armed": False, "wanted": True, **pair})
        self._term = event.term
        self.pipeline.begin(event.term)
        if self._known.paused:  # a worker died in the middle of a switchover
            yield from start_vm()

    def _copied(self, event: events.Copied) -> Steps:
        """From here on the agent may take over."""
        if self.over or self._leaving is not None:
            return
        following = Reason.of(Code.FOLLOWING, peer=self._known.peer)
        armed = {"role": "protected", "why": following, "wanted": True, "armed": True}
        yield Save({**armed, **event.facts})
        if not self._gated:
            yield effects.InstallGates()
            self._gated = True
        yield effects.HoldOutput()
        yield effects.StartEpochs()

    # --- what the agent says ---

    def _acked(self, term: int, epoch: int) -> Steps:
        release = self.pipeline.ack(term, epoch)
        if release is None:
            return
        yield effects.ReleaseEpochs(release.epoch)
        yield from self._of_switch(lambda switch: switch.committed(self.pipeline.committed))

    def _lost(self, why: str) -> Steps:
        self.pipeline.lost()
        self._waiting = None
        yield effects.Detach()
        if self.over or self._leaving is not None:
            if self._leaving is not None and not self._leaving.asked:
                yield from self._consider_solo(self._why_held or self._leaving.why)
            return
        if self.phase is PrimaryState.HELD:
            yield self._report("held", Reason.of(Code.PEER_LOST, peer=self._known.peer, why=why), "held")
            yield from self._consider_solo(why)
        else:
            yield self._report("seeding", Reason.of(Code.COPY_WAITS, peer=self._known.peer, why=why), "lost")

    def _resumed(self, event: events.Resumed) -> Steps:
        if self.phase is PrimaryState.DECIDING:  # its answer may be yes: then this session is over
            self._waiting = event
            return
        release, _again = self.pipeline.resumed(event.term, event.committed)
        if release is not None:
            yield effects.ReleaseEpochs(release.epoch)
        if self._leaving is not None:  # what was said while there was no connection
            yield effects.SayBye(words(self._leaving.why), forget=self._leaving.asked, line=event.line)
            return
        try:
            yield effects.Attach(event.line, event.term, event.committed, event.taken)
        except RemusError:  # what the agent says of the copy cannot be
            self.pipeline.lost()
            yield effects.Detach()
            yield from self._consider_solo(self._why_held)
            raise
        if self.over:
            return
        seeding = self.phase is PrimaryState.SEEDING
        how = Reason.of(Code.COPY_RECONNECTED if seeding else Code.RECONNECTED, peer=self._known.peer)
        yield self._report("seeding" if seeding else "protected", how, "resumed")
        yield from self._of_switch(lambda switch: switch.call_off("the connection broke meanwhile"))

    def _agent_renounced(self, why: str) -> Steps:
        gave_up = Reason.of(Code.PEER_RENOUNCED, peer=self._known.peer, why=why)
        self.gave_up = PeerRefused(words(gave_up))
        if self._leaving is not None:
            yield from self._finish(self._leaving)
        elif self.phase in (PrimaryState.IDLE, PrimaryState.SEEDING):
            yield effects.Detach()
            yield from self._cannot_go_on(events.Failed(gave_up))
        elif not self.over:  # else it is being found out what became of the VM
            yield from self._finish(Leaving("solo", gave_up))

    def _fenced(self, term: int, why: str) -> Steps:
        """Another host owns the VM: this side is silent for good."""
        if not self._known.armed and self.phase is PrimaryState.IDLE:
            # Nobody can have taken over from here: that is another VM's past, or hearsay.
            peer, vm = self._known.peer, self._known.vm
            hint = f"if {vm} was moved here by hand and is not on {peer} any more, on {peer}: remusdb forget {vm}"
            raise PeerRefused(why, hint=hint)
        self.pipeline.fence(term)
        self.over = self.ended = True
        yield effects.StopWork()
        if self._gated:
            yield effects.DropHeld()
        owned = Reason.of(Code.OWNED_ELSEWHERE, owner=self._known.peer, term=term)
        yield self._report("fenced", owned, "fenced")
        told = {"term": self.pipeline.term, "owner": self._known.peer, "why": owned}
        failed: Exception | None = None
        try:
            yield Save({"role": "fenced", "quarantined": False, **told})
        except RemusError as exc:
            failed = exc
        yield from self._end()
        if failed is not None:
            raise failed

    def _broken(self, why: str) -> Steps:
        """The agent cannot be heard any more: what is held stays held, and status says so."""
        self.over = True
        yield effects.StopWork()
        yield self._report("held", Reason.of(Code.ERROR_HELD, why=why), "held")

    # --- what happens here ---

    def _cannot_go_on(self, failed: events.Failed) -> Steps:
        """Once. In the initial sync protect() sees it, and cleans up."""
        if self._failed is not None:
            return
        self._failed, self.over = failed, True
        self.failed_in_copy = self.phase in (PrimaryState.IDLE, PrimaryState.SEEDING)
        yield effects.StopWork()
        if self.failed_in_copy:
            yield self._report("failed", failed.why, self._name())
        else:
            yield effects.LookAtVm()  # not told before it is known: what broke first is not why

    def _name(self) -> effects.Noted:
        return "changed" if self._failed is not None and self._failed.changed else "failed"

    def _lives(self) -> Steps:
        assert self._failed is not None
        # Not over yet: until the agent gives its word the output is held.
        yield self._report("held", Reason.of(Code.ERROR_HELD, why=self._failed.why), self._name())
        yield from self._leave(Leaving("solo", self._failed.why))

    def _vm_ended(self, event: events.VmEnded) -> Steps:
        """QEMU is gone. Only if somebody wanted the VM off, the agent is told to let go."""
        if event.wanted and not event.with_host:
            yield from self._leave(Leaving("unprotected", event.why))
        elif event.wanted and self._known.ends_with_host:  # wanted still: the next boot protects it again
            yield from self._leave(Leaving("solo", event.why))
        else:
            self.ended = True
            yield effects.ClosePeer()
            yield self._report("failed", Reason.of(Code.QEMU_DIED, peer=self._known.peer))
            yield from self._end()

    # --- how it ends in good order ---

    def _unprotect(self, peer_is_dead: bool) -> Steps:
        leaving = self._leaving
        self._after = leaving if leaving is not None and not leaving.asked else self._after
        yield from self._leave(Leaving("unprotected", ASKED, asked=True, peer_is_dead=peer_is_dead))

    def _unprotect_orphan(self, event: events.UnprotectOrphan) -> Steps:
        self.pipeline.term = max(self.pipeline.term, event.term)
        if event.word or event.peer_is_dead or not self._known.armed:
            return (yield from self._finish(Leaving("unprotected", ASKED)))
        self.over = self.ended = True
        yield effects.TakeDown(open_gates=False)
        yield from self._end()
        raise RefusedForSafety(f"{event.why}: the agent may have taken over", hint=DEAD_HINT)

    def _abandoned(self, event: events.Abandoned) -> Steps:
        """protect() failed. Before the first epoch went out the agent cannot take over; after it, it must say so.

        A copy that had begun and lost the other host, or whose VM got other devices, is begun again by the host daemon,
        and so is one that was wanted before; what is wrong here is not.
        """
        again = event.again or self._known.wanted
        leaving = Leaving("solo" if again else "unprotected", event.why, copying=True)
        self.over = True
        yield effects.StopWork()  # first: what was not shipped by now never is
        yield self._report("failed", event.why)
        if self._leaving is not None and self._leaving.asked:
            self._after = leaving  # an operator ends it just now
        elif self.may_be_replaced and self._greeted:
            yield from self._leave(leaving)
        elif self.may_be_replaced:  # nobody is connected whose word could be waited for
            self._leaving = leaving
            yield from self._no_word()
        else:
            yield effects.SayBye("protect failed")
            yield from self._finish(leaving)

    def _leave(self, leaving: Leaving) -> Steps:
        """The agent gives its standby up first."""
        self._leaving = leaving
        if self.gave_up is not None:
            return (yield from self._finish(leaving))
        yield effects.SayBye(words(leaving.why), forget=leaving.asked)
        yield effects.SetTimer("word", WORD_S)

    def _no_word(self) -> Steps:
        """The agent did not give its word: it may have taken over, or may still do so."""
        leaving = self._leaving
        if leaving is None:
            return
        if leaving.asked:
            yield from self._no_word_for_an_operator(leaving)
        elif leaving.copying:
            self.over = self.ended = True
            yield effects.StopWork()
            yield effects.ClosePeer()
            yield effects.TakeDown(open_gates=False)
            yield self._report("held", Reason.of(Code.ABANDONED_HELD, why=leaving.why), "held")
            yield from self._end()
        else:
            why = Reason.of(Code.PEER_UNHEARD_AT_END, peer=self._known.peer, why=leaving.why)
            yield self._report("held", why, "held")
            yield from self._consider_solo(leaving.why)

    def _no_word_for_an_operator(self, leaving: Leaving) -> Steps:
        # An agent that answers is not dead, whatever was said of it: it must give its word.
        # In the initial sync it has nothing that could take over.
        believed = leaving.peer_is_dead and self.phase is not PrimaryState.PROTECTED
        if believed or not self.may_be_replaced:
            return (yield from self._finish(leaving))
        self._leaving, self._after = self._after, None
        why = f"agent {self._known.peer} does not answer: it may have taken over or may still do so"
        yield effects.Answer("unprotect", RefusedForSafety(why, hint=DEAD_HINT))
        if self._leaving is not None and self._leaving.copying:
            yield from self._no_word()
        elif self.phase is PrimaryState.HELD:
            yield from self._consider_solo(self._why_held)

    def _finish(self, leaving: Leaving) -> Steps:
        """Nobody can take over any more: all that protection added is taken down, and output flows. Once.

        `solo`: protection is still wanted, and is begun again by the host daemon.
        """
        self.pipeline.end()
        self.over = self.ended = True
        yield effects.StopWork(self.switching)
        yield effects.ClosePeer()
        yield from self._of_switch(lambda switch: switch.call_off(words(leaving.why), at_once=True))
        failed: Exception | None = None
        try:
            if leaving.to == "unprotected":
                yield from if_possible(effects.RestoreAutostart())
            yield effects.TakeDown(open_gates=self._gated)
            if not leaving.copying or self._greeted or self._known.armed:
                yield Save(self._free(leaving))
        except Exception as exc:  # whatever it was: nobody is left waiting
            failed = exc
        if not leaving.copying:
            yield self._report(leaving.to, leaving.why, "solo" if leaving.to == "solo" else "unprotect")
        yield from self._end()
        if failed is not None:
            raise failed

    def _free(self, leaving: Leaving) -> dict[str, object]:
        wanted = leaving.to == "solo"
        role = "solo" if wanted else "none"
        free = {"role": role, "wanted": wanted, "armed": False, "gates": [], "why": leaving.why}
        return {**free, "term": max(self.pipeline.term, self._term)}

    def _report(self, state: effects.State, why: Reason, event: effects.Noted | None = None) -> effects.Report:
        self._state = state
        return effects.Report(state, why, event)

    # --- going on alone ---

    def _consider_solo(self, why: str | Reason) -> Steps:
        """If the agent stays lost, ask the arbiter: it may be taking over this moment."""
        self._why_held = why
        if self.phase is PrimaryState.HELD and self._known.solo_after_s is not None:
            yield effects.SetTimer("solo", self._known.solo_after_s)

    def _ask_arbiter(self) -> Steps:
        if self.phase is PrimaryState.HELD and self._known.solo_after_s is not None:
            self.pipeline.decide()
        if self.phase is PrimaryState.DECIDING:
            yield effects.AskArbiter(self.pipeline.term, self._alone.given_back)

    def _arbiter_said(self, claim: Claim) -> Steps:
        if self.phase is not PrimaryState.DECIDING:
            return
        match self._alone.said(self.pipeline.term, claim):
            case Ask(given_back):
                yield effects.AskArbiter(self.pipeline.term, given_back)
            case AskAgain():
                yield self._report("held", Reason.of(Code.ARBITER_IN_DOUBT))
                yield effects.SetTimer("solo", ASK_AGAIN_S)
            case Held(by):
                self.pipeline.stay()
                yield self._report("held", self._not_alone(by))
                yield effects.SetTimer("solo", ASK_AGAIN_S)
                waiting, self._waiting = self._waiting, None
                if waiting is not None:
                    yield from self._resumed(waiting)
            case Won(term, given_back):
                yield from self._goes_on_alone(max(term, self._term), given_back)

    def _goes_on_alone(self, term: int, given_back: bool) -> Steps:
        try:
            yield Save({"term": term})
        except RemusError as exc:  # asked again, the arbiter gives the same answer
            yield self._report("held", Reason.of(Code.ALONE_FAILED, why=self._why_held, error=exc))
            yield effects.SetTimer("solo", ASK_AGAIN_S)
            return
        self._term = term
        self.pipeline.solo(term)
        why = Reason.of(Code.GIVEN_BACK, peer=self._known.peer) if given_back else self._why_held
        to = self._leaving.to if self._leaving is not None else "solo"
        yield from self._finish(Leaving(to, Reason.of(Code.ALONE, why=why)))

    def _not_alone(self, by: Ownership | None) -> Reason:
        peer, why = self._known.peer, self._why_held
        if by is None:
            return Reason.of(Code.ARBITER_SILENT, peer=peer, why=why)
        return Reason.of(Code.ARBITER_REFUSES, peer=peer, why=why, owner=by.owner or "nobody", term=by.term)

    # --- the switchover ---

    def _switch_over(self, still: bool) -> Steps:
        refused = self._not_now()
        if refused is not None:
            raise refused
        self._switch = Switch(self._known.vm, self._known.peer, still)
        try:
            yield from self._switch.begin()
        except RemusError:
            self._switch = None
            raise

    def _not_now(self) -> RemusError | None:
        if not self.is_protected:
            return self._not_protected()
        return RefusedForSafety("a switchover is under way already") if self._switch is not None else None

    def _not_protected(self) -> RemusError:
        why = f"VM {self._known.vm} is {self._state}: only a protected VM can be moved"
        return NotProtected(why, hint=f"see: remusdb status {self._known.vm}")

    def _of_switch(self, steps: Callable[[Switch], Steps]) -> Steps:
        """Of the one that is under way, if there is one."""
        switch = self._switch
        if switch is not None:
            yield from steps(switch)
            if switch.over and self._switch is switch:
                self._switch = None
