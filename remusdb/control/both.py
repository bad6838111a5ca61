# SPDX-License-Identifier: Apache-2.0
"""What both daemons of a machine say of its VMs, asked and put together: for the CLI and the console, one way.

Invariant: a daemon that does not answer is named in `errors`; nothing that was heard before stands in for its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remusdb.control.api import AgentStatus, HostStatus
from remusdb.control.client import call
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.control.verdict import KEPT, Status, Vms, judge
from remusdb.errors import PeerUnreachable, VmError
from remusdb.names import VmName


@dataclass
class Told:
    """The answers of the daemons that were asked."""

    own: list[VmStatus] = field(default_factory=list)  # by the host daemon
    kept: list[StandbyStatus] = field(default_factory=list)  # by the agent
    warnings: list[str] = field(default_factory=list)
    errors: dict[str, PeerUnreachable | VmError] = field(default_factory=dict)
    asked: tuple[str, ...] = ()

    @property
    def vms(self) -> list[Status]:
        """Both daemons' VMs, each once: the host daemon's word where it has one, else the agent's.

        A standby is a libvirt domain, too: the host daemon sees it as one that is not protected.
        """
        return merged(self.own, self.kept)

    @property
    def unreachable(self) -> dict[str, PeerUnreachable]:
        """The daemons that did not answer."""
        return {name: error for name, error in self.errors.items() if isinstance(error, PeerUnreachable)}

    def judged(self, *, named: bool = False, host_needed: bool = True) -> Vms:
        """The verdict. `named`: one VM was asked about; `host_needed`: without the host daemon nothing is safe."""
        host_answers = not host_needed or ("host" in self.asked and "host" not in self.unreachable)
        # It said what libvirt knows, or that it does not know the one that was asked about.
        libvirt_told = "host" in self.asked and not self.warnings and "host" not in self.unreachable
        own = {one.vm for one in self.own}
        gone = {one.vm for one in self.kept if libvirt_told and one.state == "promoted"} - own
        return judge(self.vms, named=named, host_answers=host_answers, removed=gone)


def ask_both(run_dir: Path, daemons: Iterable[str], vm: VmName | None = None, timeout_s: float = 10.0) -> Told:
    """Ask these daemons (`host`, `agent`), of one VM or of all. Raises nothing that a daemon says or does not say."""
    told = Told(asked=tuple(daemons))
    for daemon in told.asked:
        path = run_dir / f"{daemon}.sock"
        try:
            if daemon == "host":
                said = call(path, HostStatus(vm=vm), timeout_s=timeout_s)
                told.own, told.warnings = said.vms, said.warnings
            else:
                told.kept = call(path, AgentStatus(vm=vm), timeout_s=timeout_s).vms
        except (PeerUnreachable, VmError) as exc:
            told.errors[daemon] = exc
    return told


def merged(own: Sequence[VmStatus], kept: Sequence[StandbyStatus]) -> list[Status]:
    """See `Told.vms`; in the order of their names."""
    named = {one.vm for one in own if one.state != "unprotected"}
    theirs = [one for one in kept if one.state in KEPT or one.vm not in named]
    here = {one.vm for one in theirs if one.state in KEPT or one.state == "promoted"}
    mine = {one.vm: one for one in own if one.vm not in here}
    left = [one for one in theirs if one.vm not in mine]
    return sorted([*mine.values(), *left], key=lambda one: one.vm)
