# SPDX-License-Identifier: Apache-2.0
"""The rows of the matrix: what is struck, and how it is undone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum

from tools.faults import LinkFault, find, kill, stop
from tools.lab.etcd import Etcd
from tools.lab.product import PORT
from tools.rig import VM, Rig

STOP_S = 5.0
RESTART_S = 1.0  # as Restart= of the units in packaging/ has it


class Ends(Enum):
    """How a fault ends."""

    STAYS = "until it is healed"  # the end state under it is looked at first
    RESTARTS = "the part is started again, as systemd would"
    ITSELF = "by itself"
    ONCE = "at once"


class Hits(Enum):
    """Which side is struck: it decides what dies first where the phase is a promotion."""

    PRIMARY = "primary"
    BACKUP = "backup"
    NEITHER = "neither"


@dataclass
class Scene:
    """A cell's stage: who is primary and who is backup when it begins."""

    rig: Rig
    primary: str
    backup: str
    killed: bool = False  # the primary's host was killed besides the fault
    cleanup: ExitStack = field(default_factory=ExitStack)


@dataclass
class Armed:
    """A fault that is ready: `strike()` takes no time, `heal()` undoes it or starts again what died."""

    strike: Callable[[], object]
    heal: Callable[[], object] = field(default=lambda: None)


@dataclass(frozen=True)
class Fault:
    """One row."""

    key: str
    title: str
    hits: Hits
    ends: Ends
    arm: Callable[[Scene], Armed]


def _hosts_name(scene: Scene, hits: Hits) -> str:
    return scene.backup if hits is Hits.BACKUP else scene.primary


def _pids(scene: Scene, what: str) -> list[int]:
    rig = scene.rig
    primary, backup = rig.host(scene.primary), rig.host(scene.backup)
    match what:
        case "primary host":
            return primary.pids()
        case "backup host":
            return backup.pids()
        case "primary QEMU":
            return [primary.qemu_pid(VM)]
        case "standby QEMU":
            return [backup.qemu_pid(VM)]
        case "host daemon":
            return find(primary, "remusdb", " host ", "--config")
        case "worker":
            return find(primary, "remusdb.worker")
        case "agent":
            return find(backup, "remusdb", " agent ", "--config")
        case "etcd":
            return find(rig.lab.witness, "etcd")
    raise ValueError(what)


def _killing(what: str) -> Callable[[Scene], Armed]:
    def arm(scene: Scene) -> Armed:
        rig, heal = (
            scene.rig,
            {
                "primary host": lambda: rig.product.reboot(scene.primary),
                "backup host": lambda: rig.product.reboot(scene.backup),
                "host daemon": lambda: rig.product.start_host(scene.primary),
                "agent": lambda: rig.product.start_agent(scene.backup),
                "etcd": lambda: _restart(rig.etcd),
            }.get(what, lambda: None),
        )
        if what in ("primary host", "backup host"):
            host = rig.host(scene.primary if what == "primary host" else scene.backup)
            return Armed(host.kill, heal)
        pids = _found(scene, what)
        return Armed(lambda: kill(pids), heal)

    return arm


def _restart(etcd: Etcd) -> None:
    etcd.kill()
    etcd.start()


def _stopping(what: str) -> Callable[[Scene], Armed]:
    def arm(scene: Scene) -> Armed:
        pids = _found(scene, what)
        stopped = []

        def strike() -> None:
            # Of a whole host also what was started since it was armed.
            late = _pids(scene, what) if what.endswith("host") else []
            stopped.append(stop([*pids, *late], STOP_S))

        def heal() -> None:
            for one in stopped:
                one.heal()

        return Armed(strike, heal)

    return arm


def _found(scene: Scene, what: str) -> Sequence[int]:
    pids = _pids(scene, what)
    if not pids:
        raise RuntimeError(f"there is no {what} to strike")
    return pids


def _on_link(hits: Hits, strike: Callable[[LinkFault], object], delayed: bool = False) -> Callable[[Scene], Armed]:
    def arm(scene: Scene) -> Armed:
        fault = LinkFault(scene.rig.host(_hosts_name(scene, hits)))
        if delayed:
            fault.arm_delay(0.2)
        return Armed(lambda: strike(fault), fault.heal)

    return arm


def _processes() -> list[Fault]:
    rows = []
    for key, what, hits, killed in (
        ("host", "primary host", Hits.PRIMARY, Ends.STAYS),
        ("qemu", "primary QEMU", Hits.PRIMARY, Ends.ONCE),
        ("daemon", "host daemon", Hits.PRIMARY, Ends.RESTARTS),
        ("worker", "worker", Hits.PRIMARY, Ends.ONCE),
        ("agent", "agent", Hits.BACKUP, Ends.RESTARTS),
        ("backup", "backup host", Hits.BACKUP, Ends.STAYS),
        ("standby", "standby QEMU", Hits.BACKUP, Ends.ONCE),
        ("etcd", "etcd", Hits.NEITHER, Ends.RESTARTS),
    ):
        title = {"backup host": "agent's host", "worker": "host daemon's worker"}.get(what, what)
        rows.append(Fault(f"{key}-kill", f"{title}: SIGKILL", hits, killed, _killing(what)))
        rows.append(Fault(f"{key}-stop", f"{title}: SIGSTOP {STOP_S:.0f} s", hits, Ends.ITSELF, _stopping(what)))
    return rows


def _links() -> list[Fault]:
    rows = []
    for key, owner, hits in (("link", "primary", Hits.PRIMARY), ("backuplink", "backup", Hits.BACKUP)):
        for name, title, ends, strike in (
            ("cut", "cut both ways", Ends.STAYS, LinkFault.cut),
            ("out", "cut one way, outgoing", Ends.STAYS, lambda fault: fault.cut(incoming=False)),
            ("in", "cut one way, incoming", Ends.STAYS, lambda fault: fault.cut(outgoing=False)),
            ("delay", "200 ms delay", Ends.STAYS, LinkFault.delay),
            ("loss", "1 % loss", Ends.STAYS, lambda fault: fault.lose(0.01)),
            ("short", "cut for 300 ms and back", Ends.ITSELF, lambda fault: fault.blink(0.3)),
            ("reset", "connection reset mid-epoch", Ends.ONCE, lambda fault: fault.reset(PORT)),
        ):
            if owner == "backup" and name not in ("cut", "out", "in"):
                continue  # the same for the connection, whichever end it happens at
            arm = _on_link(hits, strike, delayed=name == "delay")
            rows.append(Fault(f"{key}-{name}", f"{owner}'s link: {title}", hits, ends, arm))
    return rows


FAULTS = {fault.key: fault for fault in [*_processes(), *_links()]}
