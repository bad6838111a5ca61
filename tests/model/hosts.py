# SPDX-License-Identifier: Apache-2.0
"""One machine of the model: its VM and the VM's gate, its durable state, its daemons and faults.

The host daemon's part is what `host/reconcile.py` decides from the state file and from what others say; around it
stands as little as there can be of `host/reconciler.py` and `host/supervisor.py`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from remusdb.core.ownership import Ownership, Verdict, go_solo
from remusdb.core.roles import NOBODYS
from remusdb.errors import PeerUnreachable
from remusdb.host.reconcile import Action, disputed, hearsay, next_action, says_it_is_there, superseded
from tests.model.backup_host import Agent
from tests.model.primary_host import Worker
from tests.model.world import Store, Vm, World

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from remusdb.core.messages import Standing
    from remusdb.core.wire import Frame
    from tests.model.primary_host import Step


class Host:
    """One machine."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.store = Store(world)
        self.agent = Agent(self)
        self.up = True
        self.vm: Vm | None = None
        self.image: int | None = None  # the disks of a VM that is off
        self.worker: Worker | None = None
        self.wanted_off = False  # somebody ended the VM
        self.calm = False  # what is under way arrives, in order and once
        self._asked: tuple[Standing | None, Ownership | None] | None = None  # who owns the VM, as others say

    # --- the host daemon ---

    def steps(self) -> list[Step]:
        """What its daemons can do now, but for the agent."""
        if not self.up:
            return []
        if self.worker is not None and self.worker.ended:
            self.worker = None
        if self.worker is not None:
            return self.worker.steps()
        action = next_action(self.store.state, working=False, auto_reprotect=False)
        if action is Action.QUARANTINE:
            return [("quarantine", self.quarantine)]
        if action is Action.NOTHING:
            return []
        if self._asked is None:
            return [("ask who owns it", self._ask)]
        return [("act", self._act)]

    def late_steps(self) -> list[Step]:
        """What happens if nothing else does."""
        return self.worker.late_steps() if self.up and self.worker is not None else []

    def _ask(self) -> None:
        self._asked = (self._standing(self.store.state.peer), self._record())

    def _act(self) -> None:
        """As `Reconciler._ours_to_protect`."""
        assert self._asked is not None
        (standing, record), self._asked = self._asked, None
        state, armed = self.store.state, self.store.state.armed
        other = superseded(self.name, state, standing, record)
        if other is None and (named := hearsay(self.name, state, standing)):
            other = self._confirmed(named)
            if other is None:
                return
        if other is not None:
            self.fence(other.owner, other.term)
        elif standing is not None and disputed(state, standing):
            return
        elif self.vm is None:
            if standing is not None and standing.role not in ("standby", "promoting"):
                self.store.save(role="solo", armed=False)
        elif standing is None:
            if armed:
                self._without_peer()
        elif standing.owner or standing.term <= state.term:
            self.begin()

    def _without_peer(self) -> None:
        """The VM runs, its worker is gone, the backup is silent: only the arbiter can let it speak."""
        if self.world.arbiter is None:
            return
        term = self.store.state.term
        if self.world.arbiter.claim(self.name, go_solo(self.name, term)).verdict is Verdict.WON:
            self.store.save(term=term + 1)
            self.open()
            self.store.save(role="solo", wanted=True, armed=False)

    def _confirmed(self, named: str) -> Ownership | None:
        state = self.store.state
        standing = self._standing(named) if state.armed else None
        if standing is None or standing.term <= state.term or not says_it_is_there(standing, named, state):
            return None
        return Ownership(named, standing.term)

    def _standing(self, host: str) -> Standing | None:
        agent = self.world.hosts[host].agent
        return None if self.world.link_down or not agent.alive else agent.standing()

    def _record(self) -> Ownership | None:
        try:
            return self.world.arbiter.look(self.name) if self.world.arbiter is not None else None
        except PeerUnreachable:
            return None

    def begin(self, *, orphan: bool = False, peer_is_dead: bool = False) -> None:
        """A worker for the VM."""
        self._asked = None
        self.worker = Worker(self, orphan=orphan, peer_is_dead=peer_is_dead)
        self.worker.start()

    def fence(self, owner: str, term: int) -> None:
        """Another host owns the VM: silent for ever, in this incarnation."""
        self.store.save(role="fenced", owner=owner, term=max(term, self.store.state.term), quarantined=False)
        self.worker_dies()
        self.quarantine()

    def quarantine(self) -> None:
        """A fenced VM is destroyed."""
        self.worker_dies()
        self.vm = self.image = None
        self.store.save(quarantined=True, armed=False)

    # --- its gate ---

    def release(self, epoch: int, term: int) -> None:
        """What is marked with this epoch or an earlier one goes out."""
        vm, state = self.vm, self.store.state
        if vm is None or vm.held is None:
            return
        assert term == state.term, "released in an old term"
        assert state.role == "protected", "released by one that does not protect"
        going = [seen for seen, marked in vm.held if marked is not None and marked <= epoch]
        vm.held = vm.held[len(going) :]
        for seen in going:
            self.world.leave(vm, seen)

    def open(self) -> None:
        """Output flows."""
        if self.vm is None:
            return
        going, self.vm.held = self.vm.held or [], None
        for seen, _ in going:
            self.world.leave(self.vm, seen)

    # --- what an operator asks for ---

    def operator(self) -> list[Step]:
        """What makes sense to ask of this host now."""
        state, worker, found = self.store.state, self.worker, list[tuple[str, "Callable[[], object]"]]()
        if not self.up:
            return found
        if self.vm is not None and state.role != "fenced" and worker is None:
            peers = [name for name in self.world.hosts if name != self.name]
            found += [
                (f"protect to {to}", partial(self.protect, to)) for to in peers if not state.armed or to == state.peer
            ]
        if worker is not None and not worker.orphan:
            found += [("unprotect", self.unprotect), ("switchover", worker.switch_over)]
        elif state.role == "protected" and worker is None and self.vm is not None:
            found.append(("unprotect", self.unprotect))
        if self.startable:
            found.append(("start the VM", self.start_vm))
        return found

    @property
    def startable(self) -> bool:
        """The VM is off, and an operator may start it: nobody else can."""
        state = self.store.state
        off = self.up and self.vm is None and self.image is not None and not state.armed
        return off and state.role not in ("fenced", "standby", "promoting")

    def start_vm(self) -> None:
        """virsh start."""
        assert self.image is not None
        self.vm, self.image, self.wanted_off = self.world.start(self.image), None, False

    def protect(self, peer: str) -> None:
        """To another host only when no older one may take over."""
        if not self.store.state.armed or self.store.state.peer == peer:
            self.store.save(peer=peer)
            self.begin()

    def unprotect(self, *, peer_is_dead: bool = False) -> None:
        """In good order, or what a worker that is gone left."""
        if self.worker is not None:
            self.worker.unprotect(peer_is_dead=peer_is_dead)
        elif self.vm is None:  # no VM, no output: it is only forgotten
            self.store.save(role="none", wanted=False, armed=False)
        else:
            self.begin(orphan=True, peer_is_dead=peer_is_dead)

    def forget(self) -> None:
        """remusdb forget: whoever owned the VM does not any more."""
        self.store.save(role="none", **{**NOBODYS, "quarantined_disks": {}, "quarantined_formats": {}})

    # --- faults ---

    def worker_dies(self) -> None:
        """Its gate stays shut, without what it held."""
        if self.worker is not None:
            self.worker.die()
        self.worker = self._asked = None
        if self.vm is not None and self.vm.held is not None:
            self.vm.held = []

    def vm_dies(self, *, wanted: bool = False) -> None:
        """QEMU ends; what the VM had written is on its disks. `wanted`: it was shut down."""
        if self.vm is not None:
            self.image, self.vm = self.vm.state, None
            self.wanted_off = wanted

    def crash(self) -> None:
        """Power cut."""
        self.worker_dies()
        self.vm_dies()
        self.agent.die()
        self.up = False

    def boot(self) -> None:
        self.up = True
        self.agent.start()

    def deliver(self, queue: deque[Frame], to: Callable[[Frame], object]) -> None:
        """The next frame; in bad times what is behind it is lost, and the connection cut."""
        if queue:
            to(queue.popleft())
