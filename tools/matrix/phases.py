# SPDX-License-Identifier: Apache-2.0
"""The columns of the matrix: bringing a protected VM into a phase, and striking there."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from enum import Enum

from remusdb.errors import RemusError
from tools.lab import Lab, domains
from tools.load import sql, wait_for
from tools.matrix.faults import Armed, Hits, Scene
from tools.rig import VM

_SETTLE_S = 2.0
_SEEDING_S = 30.0
_PROMOTING_S = 15.0
_APPLY_S = 3.0
_PAUSE_S = 0.002


class Phase(Enum):
    """What the VM is in when the fault strikes."""

    IDLE = "idle"
    LOAD = "under load"
    SYNC = "initial sync"
    APPLY = "apply"
    PROMOTION = "promotion"


def strike(phase: Phase, scene: Scene, hits: Hits, armed: Armed, chance: random.Random) -> int:
    """Brings the scene there and strikes; time.monotonic_ns() of the first blow. RuntimeError if it cannot."""
    return {
        Phase.IDLE: _idle,
        Phase.LOAD: _load,
        Phase.SYNC: _sync,
        Phase.APPLY: _apply,
        Phase.PROMOTION: _promotion,
    }[phase](scene, hits, armed, chance)


def _struck(armed: Armed) -> int:
    at = time.monotonic_ns()
    armed.strike()
    return at


def _idle(scene: Scene, _hits: Hits, armed: Armed, chance: random.Random) -> int:
    """The clients rest until `cell.py` lets them go on."""
    scene.rig.load.pause()
    time.sleep(chance.uniform(0.5, 1.0))
    return _struck(armed)


def _load(scene: Scene, _hits: Hits, armed: Armed, chance: random.Random) -> int:
    time.sleep(_SETTLE_S + chance.uniform(0.0, 0.5))
    return _struck(armed)


def _sync(scene: Scene, _hits: Hits, armed: Armed, chance: random.Random) -> int:
    """While the CLI's `protect` waits for the initial copy; the CLI is left to end as it may."""
    rig = scene.rig
    command = ["remusdb", "protect", VM, "--to", scene.backup]
    asked = rig.host(scene.primary).popen(command, stdout=subprocess.DEVNULL, log=os.devnull_path)
    return at
