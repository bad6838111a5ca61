# SPDX-License-Identifier: Apache-2.0
"""The columns of the matrix: bringing a protected VM into a phase, and striking there."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from remusdb.control.api import AgentStatus
from remusdb.deadline import Deadline, poll_until
from remusdb.errors import RemusError
from tools.lab import Lab, domains
from tools.load import sql, wait_for
from tools.matrix.faults import Armed, Fault, Hits, Scene
from tools.rig import VM

_SETTLE_S = 2.0
_SEEDING_S = 30.0
_PROMOTING_S = 15.0
_APPLY_S = 3.0
_LOOK_S = 0.002


class Phase(Enum):
    """What the VM is in when the fault strikes."""

    IDLE = "idle"
    LOAD = "under load"
    SYNC = "initial sync"
    APPLY = "apply"
    PROMOTION = "promotion"


def strike(phase: Phase, scene: Scene, fault: Fault, chance: random.Random) -> tuple[int, Armed]:
    """Brings the scene there and strikes: time.monotonic_ns() of the first blow, and how to heal it.

    RuntimeError or TimeoutError if it cannot be brought there; what was armed is healed then.
    """
    scripts = {
        Phase.IDLE: _idle,
        Phase.LOAD: _load,
        Phase.SYNC: _sync,
        Phase.APPLY: _apply,
        Phase.PROMOTION: _promotion,
    }
    return scripts[phase](scene, fault, chance)


def _blow(fault: Fault, scene: Scene) -> tuple[int, Armed]:
    armed = fault.arm(scene)
    at = time.monotonic_ns()
    armed.strike()
    return at, armed


def _idle(scene: Scene, fault: Fault, chance: random.Random) -> tuple[int, Armed]:
    """The clients rest until `cell.py` lets them go on."""
    scene.rig.load.pause()
    time.sleep(chance.uniform(0.5, 1.0))
    return _blow(fault, scene)


def _load(scene: Scene, fault: Fault, chance: random.Random) -> tuple[int, Armed]:
    time.sleep(_SETTLE_S + chance.uniform(0.0, 0.5))
    return _blow(fault, scene)


def _sync(scene: Scene, fault: Fault, chance: random.Random) -> tuple[int, Armed]:
    """While `remusdb protect` waits for the initial sync; the command is left to end as it may.

    Before the agent's WELCOME there is no copy: a `protect` that fails then has failed, and nothing is begun again.
    """
    rig = scene.rig
    rig.product.cli(scene.primary, "unprotect", VM)
    command = ["remusdb", "protect", VM, "--to", scene.backup]
    asked = rig.host(scene.primary).popen(command, log=Path(os.devnull))
    scene.cleanup.callback(_end, asked)

    def under_way() -> bool:
        return rig.product.durable(scene.primary, VM).role == "seeding"

    wait_for(under_way, _SEEDING_S, "the initial sync does not begin", 0.02)
    time.sleep(chance.uniform(0.0, 0.5))
    return _blow(fault, scene)


def _apply(scene: Scene, fault: Fault, chance: random.Random) -> tuple[int, Armed]:
    """Under heavy writes, when the backup holds an epoch that it has not applied, if that is seen at all."""
    rig = scene.rig
    with _heavy_writes(rig.lab):
        time.sleep(_SETTLE_S + chance.uniform(0.0, 0.5))
        armed = fault.arm(scene)

        def behind() -> bool:
            told = rig.product.view(scene.backup, VM).agent
            return told is not None and told.committed > told.applied

        poll_until(behind, Deadline.after(_APPLY_S), 0.0)
        at = time.monotonic_ns()
        armed.strike()
        return at, armed


def _promotion(scene: Scene, fault: Fault, chance: random.Random) -> tuple[int, Armed]:
    """The primary dies first, and the fault strikes as soon as the backup decides or promotes.

    Of a fault on the primary's side its QEMU dies first, so that there is something left to strike.
    """
    rig = scene.rig
    armed = fault.arm(scene)
    time.sleep(_SETTLE_S + chance.uniform(0.0, 0.5))
    host = rig.host(scene.primary)
    if fault.hits is Hits.PRIMARY:
        at = host.kill_qemu(VM).monotonic_ns
    else:
        at = host.kill().monotonic_ns
        scene.killed = True

    def promoting() -> bool:
        with contextlib.suppress(RemusError, LookupError):
            return rig.product.ask("agent", scene.backup, AgentStatus(vm=VM)).vms[0].state in ("deciding", "promoted")
        return False

    if not poll_until(promoting, Deadline.after(_PROMOTING_S), _LOOK_S):
        armed.heal()
        raise TimeoutError(f"no promotion begins in {_PROMOTING_S:.0f} s")
    armed.strike()
    return at, armed


@contextlib.contextmanager
def _heavy_writes(lab: Lab) -> Iterator[None]:
    """Memory and disk of the VM change fast, without a lock that the clients wait for."""
    sql(lab, "CREATE TABLE IF NOT EXISTS scratch (n int, filler text)")
    statements = "INSERT INTO scratch SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n; TRUNCATE scratch;"
    command = f'yes "{statements}" | psql -q -h {domains.DB_IP4} -U postgres bank'
    writer = lab.client.popen(["sh", "-c", command], log=Path(os.devnull))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(writer.pid, signal.SIGKILL)
        writer.wait()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
