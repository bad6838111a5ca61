# SPDX-License-Identifier: Apache-2.0
"""Does at once what core/backup.py decides about one VM.

Invariant: nothing here waits for libvirt, the arbiter, a peer, or another thread that does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from remusdb import __version__
from remusdb.core import backup_effects as do
from remusdb.core.messages import Welcome
from remusdb.errors import RefusedForSafety
from remusdb.names import file_stem
from remusdb.reasons import Reason
from remusdb.wording import words
from remusdb_agents.backup.forgetting import set_aside
from remusdb_agents.backup.holding import Holding
from remusdb_agents.backup.inbox import Inbox, WholeEpoch
from remusdb_agents.backup.standby.limits import ram_bytes

log = logging.getLogger(__name__)


class Performer:
    """One VM's."""

    def __init__(self, here: Holding, switch: Callable[[Reason], None]) -> None:
        """`switch`: begin a thread that tries a switchover, for this reason. NoThread."""
        self._here, self._switch = here, switch

    def perform(self, effect: do.AtOnce) -> None:
        """Do it. What it raises is the core's to decide on."""
        here = self._here
        match effect:
            case do.Apply(_, _, data):
                assert here.machine is not None and isinstance(data, WholeEpoch)
                here.machine.applier.put(data)
            case do.Save(role, why, changes):
                here.update(role=role, why=why, changed_at_ns=time.time_ns(), **changes)
            case do.Learn(term):
                here.update(term=term)
            case do.RequireRoom(hello):
                here.context.admission.check(hello.vm, ram_bytes(hello))
            case do.RequireSilence(owner, heard):
                if here.hearing.heard() > heard:
                    raise RefusedForSafety(f"{owner} was heard again")
            case do.Admit():
                here.answers[effect.line] = self._admit(effect)
            case do.Refused(line, refuse):
                here.answers[line] = refuse
            case do.LetGo(_, close):
                stream = here.hearing.stream
                here.hearing.leave()
                if close and stream is not None:
                    stream.close()
            case do.ReleaseRoom():
                here.context.admission.release(here.vm)
            case do.Try(why):
                self._switch(why)
            case do.SetAside(term):
                folder = here.context.config.agent.image_dir / file_stem(here.vm)
                here.quarantined_disks = list(here.state.quarantined_disks.values())
                here.moved = [str(path) for path in set_aside(folder, term)]
            case do.Tell():
                self._tell(effect)
            case do.Trouble(why, over):
                here.troubles.clear("arbiter", why) if over else here.troubles.say("arbiter", why)
            case do.Outcome(number):
                here.outcomes[number] = effect

    def _admit(self, effect: do.Admit) -> Welcome:
        here, config = self._here, self._here.context.config
        stream = here.lines.stream(effect.line)
        assert stream is not None
        ears = here.context.ears
        voice = ears.voice(here.vm, effect.term) if ears is not None else None
        here.hearing.follow(stream, voice)
        here.inbox = Inbox(config.limits.epoch_max_bytes)  # that connection's thread may still have the last one
        bases = None if effect.resumed or here.machine is None else here.machine.bases
        return Welcome(
            version=__version__,
            agent=config.agent.name,
            term=effect.term,
            committed=effect.committed,
            resumed=effect.resumed,
            silence_ms=config.failover.silence_ms,
            bases=bases.counts if bases else [],
            base_seed=bases.seed if bases else 0,
            taken=here.seeding.pause(),
            resets=True,
            copy_patience_ms=config.failover.copy_patience_ms,
            datagrams=voice.offer if voice is not None else None,
        )

    def _tell(self, effect: do.Tell) -> None:
        epoch = effect.epoch
        if effect.event == "takeover":
            self._here.log(log).warning("taking over at epoch %s: %s", epoch, words(effect.why))
        elif effect.event == "failed":
            self._here.log(log).error("%s", words(effect.why))
        epoch = self._here.core.now.standby.committed if epoch is None else epoch
        heard_ms_ago = effect.heard_ms_ago
        self._here.tell(effect.event, effect.was, effect.why, by=effect.by, epoch=epoch, heard_ms_ago=heard_ms_ago)
