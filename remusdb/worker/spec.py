# SPDX-License-Identifier: Apache-2.0
"""What a worker is told, and tells: the types of the channel between the host daemon and the worker of one VM."""

from __future__ import annotations

from pathlib import Path

import msgspec

from remusdb.config import Arbiter, Protection, Tls
from remusdb.control.api import Switched
from remusdb.control.codec import Done, Failed, Nothing, Progress, Request, Requests, decode
from remusdb.control.status import VmStatus
from remusdb.core.primary import Known
from remusdb.core.release.frames import FLOWS_MAX
from remusdb.core.release.settings import ReleaseSettings
from remusdb.core.roles import PROMOTED
from remusdb.names import socket_stem
from remusdb.state import VmState
from remusdb.transport.agent_client import Agent

LONGEST_FILE = "/disk255.nbd"  # in a VM's own folder


class PeerAddress(msgspec.Struct, frozen=True):
    """The agent to protect to."""

    name: str
    address: str
    port: int


class ProtectionSpec(msgspec.Struct, frozen=True):
    """Protect one VM. What an earlier session left is in the VM's state file (remusdb/state.py)."""

    vm: str
    host: str
    libvirt_uri: str
    run_dir: Path
    state_dir: Path
    hooks_dir: Path
    peer: PeerAddress
    tls: Tls
    protection: Protection
    arbiter: Arbiter | None = None
    asked: bool = True  # by somebody who waits for the answer; False: begun by the host daemon itself

    @property
    def agent(self) -> Agent:
        """The agent of `peer`."""
        return Agent(self.peer.name, self.peer.address, self.peer.port, self.tls, self.protection)

    @property
    def goes_solo(self) -> bool:
        """Whether the VM goes on alone when its backup is lost: only where an arbiter can tell who may."""
        return self.arbiter is not None and self.protection.on_backup_loss != "hold"

    @property
    def folder(self) -> Path:
        """The VM's own folder for sockets and small files."""
        return self.run_dir / socket_stem(self.run_dir, "", self.vm, LONGEST_FILE)


class Start(Request[VmStatus], frozen=True, kw_only=True):
    """Protect the VM of this spec; answered once it is, or cannot be."""

    spec: ProtectionSpec


class End(Request[Nothing], frozen=True, kw_only=True, tag="unprotect"):
    """End protection. `spec`: of a worker that began none, to take out what an earlier one left."""

    peer_is_dead: bool
    spec: ProtectionSpec | None = None


class Move(Request[Switched], frozen=True, kw_only=True, tag="switchover"):
    """Have the other host run the VM."""


class Stop(Request[Nothing], frozen=True, kw_only=True):
    """End this process, and leave the VM as it is. It has no answer."""


COMMANDS = Requests((Start, End, Move, Stop))


class Told(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="status"):
    """How the VM is, told without being asked."""

    status: VmStatus


Report = Progress | Done | Failed | Told


def read_report(line: bytes) -> Report:
    """One line of what a worker says. BadFrame for what is none."""
    report: Report = decode(line, Report)  # type: ignore[arg-type]  # a union
    return report


def release_settings(protection: Protection, nics: int) -> ReleaseSettings | None:
    """What may leave before its epoch is committed; None where nothing may. `nics`: interfaces of the VM, which share
    what COMMIT has room for."""
    if protection.release == "all":
        return None
    return ReleaseSettings(
        postgresql_ports=tuple(protection.release_postgresql_ports),
        mysql_ports=tuple(protection.release_mysql_ports),
        mark=protection.release_mark,
        flows_max=max(1, FLOWS_MAX // max(1, nics)),
    )


def known(spec: ProtectionSpec, state: VmState) -> Known:
    """What the decisions need of the spec, and of what is known of the VM."""
    return Known(
        vm=spec.vm,
        host=spec.host,
        peer=spec.peer.name,
        term=state.term,
        armed=state.armed,
        wanted=state.wanted or (state.role in PROMOTED and spec.protection.auto_reprotect),
        paused=state.paused,
        solo_after_s=spec.protection.solo_after_ms / 1000 if spec.goes_solo else None,
        ends_with_host=spec.protection.on_host_shutdown == "nothing",
    )
