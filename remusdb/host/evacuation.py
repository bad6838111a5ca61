# SPDX-License-Identifier: Apache-2.0
"""Moving every protected VM off this host: before maintenance, and when the host goes down in good order.

Invariant: each VM is moved by the switchover that an operator would ask for, or it stays as it is, with a reason; one
that cannot be moved keeps none of the others here.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor

from remusdb.control import Progress, ProgressFn
from remusdb.control.api import Evacuated, Moved, Stayed, Switched
from remusdb.errors import RemusError, VmError
from remusdb.host.supervisor import Supervisor
from remusdb.log import VmLog

log = logging.getLogger(__name__)

AT_ONCE = 4  # each stands still for some tens of ms; more at a time would only make them wait for each other
CONCERNED = ("protected", "held", "seeding", "solo", "failed")  # states of a VM that may run here


def evacuate(supervisor: Supervisor, progress: ProgressFn, *, host_stops: bool) -> Evacuated:
    """Move all. `host_stops`: a VM whose `on_host_shutdown` is "nothing" is left alone."""
    running = _running(supervisor)
    wanted = [vm for vm, status in supervisor.statuses().items() if status.state in CONCERNED and vm in running]
    exempt = [vm for vm in wanted if host_stops and supervisor.config.for_vm(vm).on_host_shutdown == "nothing"]
    stayed = [Stayed(vm=vm, reason='on_host_shutdown = "nothing"', exempt=True) for vm in exempt]
    moved: list[Moved] = []
    going = [vm for vm in wanted if vm not in exempt]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="evacuate") as pool:
        for done, (vm, found) in enumerate(pool.map(lambda vm: (vm, _move(supervisor, vm)), going), 1):
            if isinstance(found, RemusError):
                stayed.append(Stayed(vm=vm, reason=str(found)))
            else:
                moved.append(Moved(vm=vm, to=found.to, term=found.term, took_ms=found.took_ms))
            progress(Progress(step="move VMs", done=done, total=len(going), unit="VMs"))
    return Evacuated(moved=moved, stayed=stayed)


def _running(supervisor: Supervisor) -> Container[str]:
    """The VMs that run here; without libvirt's word, every VM with a worker or output that is held may."""
    try:
        return [vm for vm, runs in supervisor.inspection.vms().items() if runs]
    except VmError as exc:
        log.warning("libvirt does not say which VMs run: %s", exc)
        return [vm for vm, status in supervisor.statuses().items() if status.state in ("protected", "held")]


def _move(supervisor: Supervisor, vm: str) -> Switched | RemusError:
    try:
        return supervisor.switchover(vm, lambda _step: None)
    except RemusError as exc:
        VmLog(log, vm).warning("stays here: %s", exc)
        return exc
