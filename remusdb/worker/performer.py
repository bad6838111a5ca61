# SPDX-License-Identifier: Apache-2.0
"""One line for each effect that `core/primary.py` may want: who performs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from remusdb.arbiter.arbiter import Arbiter
from remusdb.core import primary_effects as effects
from remusdb.core import primary_events as events
from remusdb.core.primary_effects import Effect
from remusdb.errors import GateError
from remusdb.threads import apart
from remusdb.worker.agent_side import AgentSide
from remusdb.worker.claims import claim_alone
from remusdb.worker.epoch_loop import EpochLoop
from remusdb.worker.journal import Journal
from remusdb.worker.mailbox import Mailbox
from remusdb.worker.outbox import Outbox
from remusdb.worker.spec import ProtectionSpec
from remusdb.worker.vm_side import VmSide

SWITCHING_S = 2.0  # for a VM that is being stopped for a switchover when the session ends: it is started only then


@dataclass
class Performer:
    """The hands of one session. Called by its thread alone."""

    spec: ProtectionSpec
    agent: AgentSide
    outbox: Outbox
    epochs: EpochLoop
    journal: Journal
    mailbox: Mailbox
    arbiter: Arbiter | None
    over: Event  # nothing more is cut or shipped
    ended: Event
    failed: Callable[[Exception], None]  # is told of a gate that died
    vm: VmSide | None = None  # once it was found

    def perform(self, effect: Effect) -> None:
        """Have it done, and return when it is."""
        if not self._with_agent(effect) and not self._with_host(effect) and self.vm is not None:
            self._with_vm(effect, self.vm)

    def _with_agent(self, effect: Effect) -> bool:
        match effect:
            case effects.Attach(line, term, committed, taken):
                self.agent.attach(line, term, committed, taken)
            case effects.HangUp(line, why):
                self.agent.hang_up(line, why)
            case effects.SayBye(why, forget, line):
                self.agent.say_bye(why, forget, line)
            case effects.SayTakeOver():
                self.agent.say_take_over()
            case effects.Detach():
                self.agent.detach()
            case effects.FallSilent():
                self.agent.fall_silent()
            case effects.ClosePeer():
                self.agent.close()
            case _:
                return False
        return True

    def _with_host(self, effect: Effect) -> bool:
        match effect:
            case effects.ReleaseEpochs(epoch):
                self._release(epoch)
            case effects.Save(changes):
                self.journal.save(changes)
            case effects.Report():
                self.journal.report(effect)
            case effects.StopWork(switching):
                self.over.set()
                self.epochs.stop(SWITCHING_S if switching else 0.0)
            case effects.AskArbiter():
                apart(self._ask_arbiter, effect, name="arbiter")
            case effects.RestoreAutostart():
                if self.vm is not None and self.journal.state.autostart:
                    self.vm.autostart_back()
                    self.journal.save({"autostart": False})
            case effects.End():
                self.ended.set()
            case _:
                return False
        return True

    def _with_vm(self, effect: Effect, vm: VmSide) -> None:
        match effect:
            case effects.AdoptGates():
                vm.adopt_gates()
            case effects.InstallGates():
                vm.install_gates()
            case effects.HoldOutput():
                vm.hold_output()
            case effects.OpenGates():
                vm.open_gates()
            case effects.DropHeld():
                vm.drop_held()
            case effects.TakeDown(open_gates):
                vm.take_down(open_gates=open_gates)
            case effects.StartEpochs():
                vm.start_epochs()
            case effects.StopAndCut():
                vm.stop_and_cut()
            case effects.CutOn():
                vm.cut_on()
            case effects.StartVm():
                vm.start_vm()
            case effects.LookAtVm():
                vm.look()
            case effects.AskWhoEndedIt():
                vm.ask_who_ended_it()
            case _:
                raise AssertionError(f"nobody performs {effect}")

    def _release(self, epoch: int) -> None:
        """A gate that died releases nothing more, and protection ends."""
        if self.vm is not None:
            try:
                self.vm.release(epoch)
            except GateError as exc:
                self.failed(exc)
        self.epochs.wake()
        self.outbox.acked(epoch)
        self.journal.metrics.committed(epoch)

    def _ask_arbiter(self, question: effects.AskArbiter) -> None:
        assert self.arbiter is not None
        claim = claim_alone(self.arbiter, self.spec.vm, self.spec.host, question)
        self.mailbox.post(events.ArbiterSaid(claim))
