# SPDX-License-Identifier: Apache-2.0
"""One machine of the model: its VM and the VM's gate, its durable state, its faults (see ownership_world)."""

from __future__ import annotations

from remusdb.core.pipeline import Pipeline, PrimaryState, Release
from tests.model.ownership_agent import Agent
from tests.model.ownership_world import Connection, Store, Vm, World


class Session:
    """What a worker has in memory: asks ─▶ hello ─▶ claim ─▶ live, until it ends."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.pipeline = Pipeline(window=2)
        self.connection: Connection | None = None
        self.cuts: dict[int, int] = {}
        self.welcomed = self.ending = 0  # the term of the WELCOME; of the session of an earlier worker that is ended
        self.solo_asked = False  # the arbiter may have said yes
        self.overruled = self.switching = self.final_cut = False

    @property
    def held(self) -> bool:
        return self.phase == "live" and self.pipeline.state is PrimaryState.HELD


class Machine:
    """One machine."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.store = Store(world)
        self.agent = Agent(self)
        self.up = True
        self.vm: Vm | None = None
        self.image: int | None = None  # the disks of a VM that is off
        self.session: Session | None = None

    @property
    def live(self) -> Session:
        assert self.session is not None
        return self.session

    @property
    def startable(self) -> bool:
        """The VM is off, and an operator may start it: nobody else can."""
        off = self.up and self.image is not None and not self.store.armed
        return off and self.store.role not in ("fenced", "standby", "promoting")

    @property
    def peer(self) -> str:
        return self.store.peer

    @property
    def put_away_done(self) -> bool:
        return self.vm is None and self.image is None

    # --- faults ---

    def worker_dies(self) -> None:
        if self.session is not None and self.session.connection is not None:
            self.session.connection.cut = True
        self.session = None
        if self.vm is not None and self.vm.held is not None:
            self.vm.held = []

    def crash(self) -> None:
        """Power cut: the VM is off, with what it had written on its disks."""
        self.vm_dies()
        self.agent.crash()
        self.up = False

    def vm_dies(self) -> None:
        """QEMU ends; what the VM had written is on its disks, and its worker falls silent."""
        self.worker_dies()
        if self.vm is not None:
            self.image, self.vm = self.vm.state, None

    def boot(self) -> None:
        self.up = True
        self.agent.start()

    # --- what an operator asks for ---

    def start_vm(self) -> None:
        assert self.image is not None
        self.vm, self.image = self.world.start(self.image), None

    def protect(self, peer: str) -> None:
        """Protection, or another try at it: to another host only when no older one may take over."""
        self.store.save(wanted=True, peer=peer)

    def unprotect(self) -> None:
        self.store.save(wanted=False)

    def switchover(self) -> None:
        assert self.vm is not None
        self.live.switching, self.vm.running = True, False

    # --- what the daemons of this host do with it ---

    def fence(self, owner: str = "", term: int = 0) -> None:
        """Another host owns the VM: silent for ever, in this incarnation."""
        changes: dict[str, str | int] = {"owner": owner, "term": max(term, self.store.term)} if owner else {}
        self.store.save(role="fenced", armed=False, wanted=False, **changes)
        self.put_away()

    def put_away(self) -> None:
        """A fenced VM is destroyed."""
        self.worker_dies()
        self.vm = self.image = None

    def release(self, release: Release | None) -> None:
        vm = self.vm
        if release is None or vm is None or vm.held is None:
            return
        assert self.live.pipeline.term == self.store.term and self.store.role == "protected", "released in an old term"
        going = [state for state, marked in vm.held if marked is not None and marked <= release.epoch]
        vm.held = vm.held[len(going) :]
        for state in going:
            self.world.leave(vm, state)

    def open(self) -> None:
        """Output flows."""
        if self.vm is None:
            return
        going, self.vm.held, self.vm.running = self.vm.held or [], None, True
        for state, _ in going:
            self.world.leave(self.vm, state)
