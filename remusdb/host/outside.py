# SPDX-License-Identifier: Apache-2.0
"""What the host daemon reaches outside of its own process, and how long it waits for what. Tests hand in others."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from remusdb.arbiter.arbiter import Arbiter
from remusdb.config import Arbiter as ArbiterConfig
from remusdb.core.messages import Question, Standing
from remusdb.errors import GateError, VmError
from remusdb.host.quarantine.retire import Policy, Quarantined, quarantine
from remusdb.host.shutdown import host_is_stopping
from remusdb.names import require_name
from remusdb.state import VmState
from remusdb.vm.domain import pid_of
from remusdb.worker.spec import ProtectionSpec
from remusdb.worker.tapwatch import shut_taps

WORKER_ARGV = (sys.executable, "-P", "-m", "remusdb.worker")  # -P: no module of the folder we are in


@dataclass(frozen=True)
class Timing:
    """How long what is waited for."""

    look_s: float = 0.25  # between looks at every VM
    ask_s: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)  # between questions for one VM; the last one repeats
    retry_s: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 30.0)  # between tries that cost something
    lock_s: float = 5.0  # an earlier worker of a VM has this long to be gone
    linger_s: float = 5.0  # a worker that was told to stop, or closed its socket, has this long to exit


def ask(spec: ProtectionSpec, term: int) -> Standing:
    """What the other host is to the VM, of which this one knows `term`. PeerUnreachable when it does not say."""
    return spec.agent.ask(Question(require_name(spec.vm), spec.host, term))


def shut_others(vm: str, gated: Sequence[str]) -> None:
    """Shut every tap of a running VM but these, if it is to be found here."""
    with contextlib.suppress(VmError, GateError):
        shut_taps(pid_of(vm), gated)


@dataclass(frozen=True)
class Outside:
    """What is done elsewhere: by other processes, the kernel, libvirt, the other host, etcd."""

    worker_argv: Sequence[str] = WORKER_ARGV
    timing: Timing = Timing()
    ask: Callable[[ProtectionSpec, int], Standing] = ask
    quarantine: Callable[[str, VmState, Policy, Path, Path], Quarantined] = quarantine
    shut_others: Callable[[str, Sequence[str]], None] = shut_others
    arbiter: Callable[[ArbiterConfig], Arbiter] = Arbiter
    host_is_stopping: Callable[[], bool] = host_is_stopping
