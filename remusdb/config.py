# SPDX-License-Identifier: Apache-2.0
"""What the two daemons are told: host.toml and agent.toml as frozen structs.

Unknown keys are refused, every time and size carries its unit in its name, and values that contradict each
other are refused here rather than adjusted: a setting that was silently changed is one nobody can reason about.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct, field

from remusdb.errors import ConfigError, UsageError
from remusdb.names import HostName, require_name
from remusdb.tomlstruct import decode, read_toml, refuse_unknown, subtable

T = TypeVar("T")

HEARTBEATS_PER_SILENCE = 3  # two lost or late heartbeats must never look like a dead host

Text = Annotated[str, Meta(min_length=1, max_length=255)]
Port = Annotated[int, Meta(ge=1, le=65535)]
# libvirt's folder for kernels, and where packages put firmware and ROMs. Not its images: those are other VMs' disks.
READABLE_DIRS = (Path("/var/lib/libvirt/boot"), Path("/usr/share"), Path("/usr/lib/ipxe"))


class Host(Struct, frozen=True, kw_only=True):
    """`[host]` of host.toml."""

    name: HostName
    run_dir: Path = Path("/run/remusdb")
    state_dir: Path = Path("/var/lib/remusdb")  # the same as the agent's on one machine
    hooks_dir: Path = Path("/etc/remusdb/hooks.d")
    image_dir: Path = Path("/var/lib/remusdb/images")  # the same as the agent's
    libvirt_uri: Text = "qemu:///system"
    log: Literal["text", "logfmt", "json"] = "text"  # its form; `--log` and REMUSDB_LOG go before it
    console_group: str = "remusdb-console"  # may ask for what `remusdb console` shows and does


class Tls(Struct, frozen=True, kw_only=True):
    """`[tls]`: what `remusdb certs` made for this host."""

    ca: Path = Path("/etc/remusdb/tls/ca.pem")
    cert: Path = Path("/etc/remusdb/tls/cert.pem")
    key: Path = Path("/etc/remusdb/tls/key.pem")


class Peer(Struct, frozen=True, kw_only=True):
    """`[peers.NAME]`: a host whose agent may keep standbys for this one."""

    address: Text
    port: Port = 7473


class Protection(Struct, frozen=True, kw_only=True):
    """`[protection]`, and any key of it again under `[vms.NAME]`."""

    epoch_mode: Literal["on-demand", "fixed"] = "fixed"  # fixed: every epoch_ms, whatever the VM does
    epoch_ms: Annotated[int, Meta(ge=25, le=1000)] = 50  # on demand: of the guest's work while no output waits
    epoch_gap_ms: Annotated[int, Meta(ge=1, le=1000)] = 20  # between two epochs while output waits and the guest works
    epoch_max_ms: Annotated[int, Meta(ge=25, le=10_000)] = 500  # of a VM that does nothing
    max_pause_share: Annotated[float, Meta(ge=0.01, le=1.0)] = 0.5  # of the time the VM may stand still for epochs
    busy_pause_share: Annotated[float, Meta(ge=0.01, le=1.0)] = 0.1  # the same, while the guest works on
    window: Annotated[int, Meta(ge=1, le=16)] = 4  # epochs in flight
    encoding: Literal["delta", "full"] = "delta"
    delta_cache_percent: Annotated[int, Meta(ge=1, le=100)] = 100  # of the VM's memory, remembered for `delta`
    disk_read_tracking: bool = False  # what the guest read from a replicated disk goes as a reference, not as bytes
    hot_pages: bool = False  # copy what is written in every epoch each time, instead of protecting it anew
    gate: Literal["auto", "tap", "plug"] = "auto"
    held_max_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 32)] = 64 << 20
    release: Literal["all", "commit"] = "all"  # commit: packets inside an open transaction do not wait (guarantees.md)
    release_postgresql_ports: list[Port] = field(default_factory=lambda: [5432])  # of the VM: PostgreSQL without TLS
    release_mysql_ports: list[Port] = field(default_factory=lambda: [3306])  # the same of MySQL and MariaDB
    release_mark: Annotated[int, Meta(ge=0, le=63)] = 0  # DSCP of packets that need not wait, says the DBMS; 0 = none
    heartbeat_ms: Annotated[int, Meta(ge=10, le=10_000)] = 100
    connect_timeout_ms: Annotated[int, Meta(ge=100, le=60_000)] = 3000
    vm_call_timeout_ms: Annotated[int, Meta(ge=100, le=60_000)] = 5000
    libvirt_patience_ms: Annotated[int, Meta(ge=100, le=600_000)] = 15_000  # so long output waits for a libvirtd
    copy_patience_ms: Annotated[int, Meta(ge=1000, le=600_000)] = 30_000  # the backup may be away in the initial sync
    sync_bandwidth_mib_s: Annotated[int, Meta(ge=0, le=1 << 20)] = 0  # 0 = no limit
    on_backup_loss: Literal["auto", "hold", "solo"] = "auto"  # auto: solo where there is an arbiter, else hold
    solo_after_ms: Annotated[int, Meta(ge=0, le=600_000)] = 2000  # after the backup was lost
    on_fenced: Literal["keep", "discard"] = "keep"  # what becomes of the disks of a VM that runs elsewhere now
    on_host_shutdown: Literal["switchover", "nothing"] = "switchover"  # when this host goes down in good order
    auto_reprotect: bool = False  # after a takeover: protect back as soon as the other host can


class Arbiter(Struct, frozen=True, kw_only=True):
    """`[arbiter]`, the same in both files: the etcd that decides who goes on when the hosts do not hear each other."""

    endpoints: Annotated[list[Text], Meta(min_length=1)]  # http(s)://address:port of etcd's client port
    prefix: Text = "/remusdb/"  # of the keys; one key a VM
    timeout_ms: Annotated[int, Meta(ge=50, le=60_000)] = 1000  # of one question to one endpoint
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class HostConfig(Struct, frozen=True, kw_only=True):
    """host.toml. `vms` holds the full protection of each VM that has settings of its own."""

    host: Host
    tls: Tls = field(default_factory=Tls)
    peers: dict[str, Peer] = {}
    protection: Protection = field(default_factory=Protection)
    arbiter: Arbiter | None = None
    vms: dict[str, Protection] = {}

    def for_vm(self, name: str) -> Protection:
        """The settings that hold for this VM."""
        return self.vms.get(name, self.protection)


class Agent(Struct, frozen=True, kw_only=True):
    """`[agent]` of agent.toml."""

    name: HostName
    listen: Text = "0.0.0.0"
    port: Port = 7473
    run_dir: Path = Path("/run/remusdb")
    state_dir: Path = Path("/var/lib/remusdb")  # the same as the host daemon's on one machine
    hooks_dir: Path = Path("/etc/remusdb/hooks.d")
    image_dir: Path = Path("/var/lib/remusdb/images")
    # Where files may be that another host's VM names: a kernel, firmware, an option ROM. Any VM may read all of it.
    readable_dirs: list[Path] = field(default_factory=lambda: list(READABLE_DIRS))
    emulator: Path | None = None  # the QEMU of standbys here, where it is another than libvirt's own
    libvirt_uri: Text = "qemu:///system"
    log: Literal["text", "logfmt", "json"] = "text"  # its form; `--log` and REMUSDB_LOG go before it
    console_group: str = "remusdb-console"  # as the host daemon's


class Failover(Struct, frozen=True, kw_only=True):
    """`[failover]`: when the agent promotes by itself."""

    silence_ms: Annotated[int, Meta(ge=200, le=60_000)] = 500
    adaptive: bool = True  # less than silence_ms is enough of a primary that was always heard more often
    datagrams: bool = True  # hear heartbeats of their own as well, over UDP, at the port of the same number
    automatic: bool = True
    copy_patience_ms: Annotated[int, Meta(ge=1000, le=3_600_000)] = 60_000  # the primary may be, in the initial sync


class Limits(Struct, frozen=True, kw_only=True):
    """`[limits]`: what a primary may make the agent hold."""

    epoch_max_bytes: Annotated[int, Meta(ge=16 << 20, le=1 << 40)] = 2 << 30
    memory_max_mib: Annotated[int, Meta(ge=0, le=1 << 30)] = 0  # for all standbys together; 0 = what the host has
    rehearsal_backlog_max_bytes: Annotated[int, Meta(ge=16 << 20, le=1 << 40)] = 1 << 30  # epochs that wait meanwhile


class Network(Struct, frozen=True, kw_only=True):
    """`[network]`: the primary's bridge -> the bridge here; a bridge that is not named keeps its name."""

    bridges: dict[str, Text] = {}


class Primary(Struct, frozen=True, kw_only=True):
    """`[primaries.NAME]`: a host, by the name in its certificate, that may keep standbys here and ask who owns a VM."""

    vms: list[str] | None = None  # these VMs alone; None: any VM that no other host has here


Devices = dict[str, Path]  # a disk's target (vda) -> a block device of this host


class AgentConfig(Struct, frozen=True, kw_only=True):
    """agent.toml. A host that `primaries` does not name is refused."""

    agent: Agent
    primaries: dict[str, Primary] = {}
    tls: Tls = field(default_factory=Tls)
    failover: Failover = field(default_factory=Failover)
    limits: Limits = field(default_factory=Limits)
    network: Network = field(default_factory=Network)
    disks: dict[str, Devices] = {}  # `[disks.VM]`: a disk that is not named is a file in image_dir
    arbiter: Arbiter | None = None


def load_host(path: Path | str) -> HostConfig:
    """host.toml, validated; ConfigError names the file and the key."""
    path = Path(path)
    doc = read_toml(path)
    refuse_unknown(path, doc, HostConfig.__struct_fields__)
    base = subtable(path, doc, "protection")
    config = HostConfig(
        host=decode(path, _required(path, doc, "host"), Host, "host"),
        tls=decode(path, subtable(path, doc, "tls"), Tls, "tls"),
        peers=_each(path, doc, "peers", lambda table, at: decode(path, table, Peer, at)),
        protection=_protection(path, base, "protection"),
        arbiter=_arbiter(path, doc),
        vms=_each(path, doc, "vms", lambda table, at: _protection(path, {**base, **table}, at)),
    )
    for name, protection in {"protection": config.protection, **config.vms}.items():
        if protection.on_backup_loss == "solo" and config.arbiter is None:
            raise ConfigError(
                f'{path}: {name}: on_backup_loss = "solo" needs an [arbiter]',
                hint="without one nobody can know whether the backup took over: output is held",
            )
    if config.host.name in config.peers:
        raise ConfigError(f"{path}: peers.{config.host.name}: is this host itself")
    return config


def load_agent(path: Path | str) -> AgentConfig:
    """agent.toml, validated; ConfigError names the file and the key."""
    path = Path(path)
    doc = read_toml(path)
    refuse_unknown(path, doc, AgentConfig.__struct_fields__)
    failover = decode(path, subtable(path, doc, "failover"), Failover, "failover")
    if failover.silence_ms > failover.copy_patience_ms:
        raise ConfigError(
            f"{path}: failover.silence_ms: {failover.silence_ms} must be at most "
            f"failover.copy_patience_ms = {failover.copy_patience_ms}"
        )
    agent = decode(path, _required(path, doc, "agent"), Agent, "agent")
    primaries = _each(path, doc, "primaries", lambda table, at: _primary(path, table, at))
    if agent.name in primaries:
        raise ConfigError(f"{path}: primaries.{agent.name}: is this host itself")
    if agent.emulator is not None and not agent.emulator.is_absolute():
        raise ConfigError(f"{path}: agent.emulator: {str(agent.emulator)!r} is no path of a program")
    for folder in agent.readable_dirs:
        if not folder.is_absolute() or folder == Path("/") or ".." in folder.parts:
            raise ConfigError(f"{path}: agent.readable_dirs: {str(folder)!r} is no folder that VMs may read all of")
    return AgentConfig(
        agent=agent,
        primaries=primaries,
        tls=decode(path, subtable(path, doc, "tls"), Tls, "tls"),
        failover=failover,
        limits=decode(path, subtable(path, doc, "limits"), Limits, "limits"),
        network=decode(path, subtable(path, doc, "network"), Network, "network"),
        disks=_each(path, doc, "disks", lambda table, at: _devices(path, table, at)),
        arbiter=_arbiter(path, doc),
    )


def check_silence(heartbeat_ms: int, silence_ms: int) -> None:
    """Refuse a heartbeat that is too slow for the agent's silence limit; both sides of the session ask this."""
    if heartbeat_ms * HEARTBEATS_PER_SILENCE > silence_ms:
        raise ConfigError(
            f"protection.heartbeat_ms = {heartbeat_ms} is too slow for the agent's failover.silence_ms = {silence_ms}",
            hint=f"at least {HEARTBEATS_PER_SILENCE} heartbeats must fit in it: heartbeat_ms <= "
            f"{silence_ms // HEARTBEATS_PER_SILENCE}, or a longer silence_ms in agent.toml",
        )


def check_copy_patience(primary_ms: int, agent_ms: int) -> None:
    """Refuse an agent that gives an initial sync up before the primary does: it would be begun again for nothing."""
    if primary_ms > agent_ms:
        raise ConfigError(
            f"protection.copy_patience_ms = {primary_ms} is more than the agent's failover.copy_patience_ms = "
            f"{agent_ms}",
            hint="raise it in agent.toml, or lower it in host.toml",
        )


def _protection(file: Path, table: dict[str, Any], path: str) -> Protection:
    found = decode(file, table, Protection, path)
    rules = [
        ("heartbeat_ms", found.heartbeat_ms, "connect_timeout_ms", found.connect_timeout_ms),
        ("epoch_ms", found.epoch_ms, "vm_call_timeout_ms", found.vm_call_timeout_ms),
        ("connect_timeout_ms", found.connect_timeout_ms, "copy_patience_ms", found.copy_patience_ms),
    ]
    for small, low, large, high in rules:
        if low >= high:
            raise ConfigError(f"{file}: {path}.{small}: {low} must be less than {path}.{large} = {high}")
    if found.release == "commit" and found.gate == "plug":
        raise ConfigError(
            f'{file}: {path}.release: "commit" needs the tap gate, and {path}.gate is "plug"',
            hint='set gate = "auto" or "tap", or release = "all"',
        )
    if found.libvirt_patience_ms < found.vm_call_timeout_ms:
        raise ConfigError(
            f"{file}: {path}.libvirt_patience_ms: {found.libvirt_patience_ms} must be at least "
            f"{path}.vm_call_timeout_ms = {found.vm_call_timeout_ms}"
        )
    return found


def _primary(file: Path, table: dict[str, Any], path: str) -> Primary:
    found = decode(file, table, Primary, path)
    try:
        for vm in found.vms or ():
            require_name(vm)
    except UsageError as exc:
        raise ConfigError(f"{file}: {path}.vms: {exc}") from exc
    return found


def _devices(file: Path, table: dict[str, Any], path: str) -> Devices:
    for target, device in table.items():
        if not isinstance(device, str) or not device.startswith("/"):
            raise ConfigError(f"{file}: {path}.{target}: {device!r} is no path of a block device (/dev/vg0/db1)")
    return {target: Path(device) for target, device in table.items()}


def _arbiter(file: Path, doc: dict[str, Any]) -> Arbiter | None:
    return decode(file, subtable(file, doc, "arbiter"), Arbiter, "arbiter") if "arbiter" in doc else None


def _required(file: Path, doc: dict[str, Any], key: str) -> dict[str, Any]:
    if key not in doc:
        raise ConfigError(f"{file}: {key}: the table [{key}] is missing")
    return subtable(file, doc, key)


def _each(file: Path, doc: dict[str, Any], key: str, make: Callable[[dict[str, Any], str], T]) -> dict[str, T]:
    tables = subtable(file, doc, key)
    return {name: make(subtable(file, tables, name, f"{key}.{name}"), f"{key}.{name}") for name in tables}
