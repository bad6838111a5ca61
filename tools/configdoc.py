# SPDX-License-Identifier: Apache-2.0
"""Writes docs/configuration.md from the types of the configuration: keys, defaults and ranges; the words are here.

python -m tools.configdoc
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from remusdb.config import AgentConfig, Arbiter, HostConfig, Peer, Primary
from remusdb.console.config import Console

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
# Tables that are named by the operator, or told once for both files.
INSIDE: dict[tuple[type, str], tuple[str, type | None]] = {
    (HostConfig, "peers"): ("peers.NAME", Peer),
    (AgentConfig, "primaries"): ("primaries.NAME", Primary),
    (HostConfig, "vms"): ("vms.NAME.*", None),
    (AgentConfig, "disks"): ("disks.VM.TARGET", None),
    (HostConfig, "arbiter"): ("arbiter.*", None),
    (AgentConfig, "arbiter"): ("arbiter.*", None),
}
BYTES = ((1 << 30, "GiB"), (1 << 20, "MiB"))

WORDS = {
    "host.name": "this host's name, the one in its certificate",
    "host.run_dir": "sockets",
    "host.state_dir": "state and history; the same as the agent's on one machine",
    "host.hooks_dir": "executables that are run on each event: [hooks.md](hooks.md)",
    "host.image_dir": "the same as the agent's on one machine",
    "host.libvirt_uri": "which libvirt",
    "host.console_group": (
        'who, besides root, may ask the control socket for what `remusdb console` shows and does; "": nobody. A group '
        "that does not exist is nobody, too"
    ),
    "tls.ca": "what `remusdb certs` made: the CA of all hosts",
    "tls.cert": "this host's certificate",
    "tls.key": "and its key",
    "peers.NAME.address": "where the agent of host NAME listens. One table a host that may be a backup of VMs here",
    "peers.NAME.port": "its port",
    "arbiter.*": "see below",
    "vms.NAME.*": "any key of `[protection]` again, for this VM alone",
    "protection.epoch_mode": (
        "`on-demand`: an epoch is cut when output waits for it; `fixed`: every `epoch_ms`, whatever the VM does. "
        "`remusdb status VM` tells under `epochs_for` why the last hundred were cut: `output` (a reply waited, and the "
        "guest was idle), `gap` (replies waited, and the guest worked on), `work` (no reply waited; the guest had "
        "worked for `epoch_ms`), `idle` (nothing happened for `epoch_max_ms`), `disk` (a disk's write log was full), "
        "`clock` (fixed), `last` (before a switchover)"
    ),
    "protection.epoch_ms": (
        "fixed: time between two cuts. On demand: so long a guest works before it is cut although no output waits, and "
        "the longest that a guest which works on is not cut while replies wait"
    ),
    "protection.epoch_gap_ms": (
        "on demand: time between two cuts while replies wait and the guest works on. Shorter: less latency; longer: "
        "more throughput"
    ),
    "protection.epoch_max_ms": "on demand: time between two cuts of a VM that does nothing",
    "protection.max_pause_share": "on demand: the VM stands still for no more than this part of the time",
    "protection.busy_pause_share": (
        "the same where replies wait while the guest works on: epochs are then as far apart as their pauses ask "
        "for, never nearer than `epoch_gap_ms`, and no further apart than `epoch_ms`"
    ),
    "protection.window": "epochs on the way that are not acknowledged yet",
    "protection.encoding": (
        "`delta` sends what changed within a page and keeps a copy of the VM's memory on this host for "
        "it; `full` sends whole pages"
    ),
    "protection.delta_cache_percent": (
        "how much of the VM's memory this host keeps such a copy of; a page that is not in it is sent whole, and takes "
        "the place of one that was not written for long. `remusdb status VM` tells under `delta_cache_hits` how often "
        "a page was in it"
    ),
    "protection.disk_read_tracking": (
        "a page that holds a block of a replicated disk goes as a reference to that block, and the "
        "backup reads it from its own copy and checks it by a digest. For guests that read much; costs this host a "
        "hash of each written page and block, and memory, and the backup a read ([decision 0029](decisions/"
        "0029-what-was-read-from-a-disk-goes-as-a-reference.md)). `remusdb status VM` tells `drt_references`"
    ),
    "protection.hot_pages": (
        "under KVM: a page that was written in each of the last epochs is copied at every cut, not watched; "
        "that spares the guest a fault, and was not seen to help ([results.md](results.md))"
    ),
    "protection.gate": (
        "what holds output back: `tap`, `plug` (needs the kernel's `sch_plug` and IFB), or the one that fits"
    ),
    "protection.held_max_bytes": "output that may wait; what is over it is dropped, and reported",
    "protection.release": (
        "`all`: every packet of the VM waits for the backup. `commit`: packets that belong to an open transaction "
        "do not; a takeover then resets the connections that are inside one ([guarantees.md](guarantees.md)). It needs "
        "the tap gate"
    ),
    "protection.release_postgresql_ports": (
        "of the VM, for `commit`: there it speaks PostgreSQL's protocol; connections with TLS wait as with `all`"
    ),
    "protection.release_mysql_ports": "the same of MySQL's and MariaDB's protocol",
    "protection.release_mark": (
        "for `commit`: the DSCP value of packets of which the DBMS itself says that they are of an open transaction "
        "(`agents/guest`); 0: none"
    ),
    "protection.heartbeat_ms": "how often this host says that it lives; three must fit into the agent's `silence_ms`",
    "protection.connect_timeout_ms": "of one try to reach the agent",
    "protection.vm_call_timeout_ms": "of one call to QEMU",
    "protection.libvirt_patience_ms": (
        "how long cuts, and output, wait for a libvirtd that hangs or is restarted; then protection ends"
    ),
    "protection.copy_patience_ms": (
        "how long the backup may be away in the initial sync before that begins again; at most the agent's"
    ),
    "protection.sync_bandwidth_mib_s": "limit of the initial sync in MiB/s; 0: none",
    "protection.on_backup_loss": (
        "`auto`: goes on alone where there is an arbiter, else holds output. `hold`: always holds. "
        "`solo`: as `auto`, and refused without an arbiter"
    ),
    "protection.solo_after_ms": "how long after the backup was lost the arbiter is asked",
    "protection.on_fenced": (
        "disks of a VM that runs elsewhere now: `keep` quarantines them, `discard` lets the next initial sync "
        "overwrite them"
    ),
    "protection.on_host_shutdown": "a host that shuts down moves its VMs first; `nothing`: it does not",
    "protection.auto_reprotect": "after a takeover: protect back as soon as the other host can",
    "agent.name": "this host's name, the one in its certificate",
    "agent.listen": "address to listen on",
    "agent.port": "and its port",
    "host.log": "form of the log, also of workers: text, or one line a record in logfmt or json",
    "agent.log": "as `host.log`",
    "agent.run_dir": "as `host.run_dir`, the same on one machine",
    "agent.state_dir": "as `host.state_dir`, the same on one machine",
    "agent.hooks_dir": "as `host.hooks_dir`, the same on one machine",
    "agent.image_dir": "where replica disks are",
    "agent.readable_dirs": (
        "where a kernel, firmware or option ROM may be that another host's VM names. Such a VM may read "
        "all that is there"
    ),
    "agent.emulator": "QEMU of the standbys",
    "agent.libvirt_uri": "which libvirt",
    "agent.console_group": "as `host.console_group`",
    "primaries.NAME.vms": (
        "`[primaries.NAME]` is a host, by the name in its certificate, that may keep standbys here; with "
        "`vms` these alone. Who is not named is refused"
    ),
    "failover.silence_ms": "how long the primary may be silent at most before this host takes over",
    "failover.adaptive": (
        "a shorter silence is enough of a primary that was always heard more often: three times the longest gap of the "
        "last minute, or three heartbeats, at least 420 ms (380 ms while no datagram is missed) and at most "
        "`silence_ms`. false: always `silence_ms`"
    ),
    "failover.datagrams": (
        "also hear heartbeats over UDP, at the port of the same number as `agent.port`: they get through at once after "
        "a link was gone for a moment, where TCP does not. Where none come through, the connection is heard alone, and "
        "`remusdb status` says so under `heartbeat` ([decision 0032](decisions/0032-a-heartbeat-of-its-own.md))"
    ),
    "failover.automatic": "false: only `remusdb failover VM` takes over",
    "failover.copy_patience_ms": (
        "how long the primary may be away in the initial sync before its half replica is given up"
    ),
    "limits.epoch_max_bytes": (
        "memory of one epoch: a larger one ends the session. While as much waits to be applied, no more is read"
    ),
    "limits.memory_max_mib": "memory of all standbys together in MiB; 0: what the host has",
    "limits.rehearsal_backlog_max_bytes": "epochs that wait while a rehearsal runs; at this bound it ends early",
    "network.bridges": "the primary's bridge = the bridge here",
    "disks.VM.TARGET": "block device of this host for that disk. **Its content is overwritten**",
    "console.listen": (
        "address to listen on. Away from loopback only with `cert` and `key`, and with `token_file` or `client_ca`"
    ),
    "console.port": "and its port",
    "console.title": "what the pages call this machine",
    "console.names": "by which browsers and Prometheus may name it, besides its address; another `Host` is refused",
    "console.run_dir": "as `host.run_dir`",
    "console.daemons": "those that this machine has: of one that is named and does not answer, `remusdb_up` is 0",
    "console.token_file": (
        "a file with one line of 24 characters or more, closed to others: whoever has it may look and act. Without it, "
        "and without `client_ca`, every user of this machine may look, and nobody can act"
    ),
    "console.cert": "the certificate that browsers are shown, PEM",
    "console.key": "and its key",
    "console.client_ca": "who has a certificate of this CA may look and act, nobody else comes so far",
    "arbiter.endpoints": "`https://ADDRESS:PORT` of each member of the etcd",
    "arbiter.prefix": "of the keys, one a VM",
    "arbiter.timeout_ms": "of one question to one member",
    "arbiter.ca": "for `https://`: the CA of etcd",
    "arbiter.cert": "the certificate that etcd asks its clients for",
    "arbiter.key": "and its key",
}
# What happens without the key, where its default does not say it.
WITHOUT = {
    "arbiter.*": "no arbiter",
    "console.title": "its host name",
    "vms.NAME.*": "",
    "primaries.NAME.vms": "any VM that is not another host's",
    "agent.emulator": "libvirt's own",
    "network.bridges": "each keeps its name",
    "disks.VM.TARGET": "a sparse file in `image_dir`",
}

HEAD = """\
# Every setting

Made from the types in `remusdb/config.py` and `remusdb/console/config.py` by `python -m tools.configdoc`: change those,
not this page.

Files in `/etc/remusdb`: `host.toml` of the daemon that protects this host's VMs, `agent.toml` of the agent that keeps
other hosts', `console.toml` of the console. A key that is not listed here is refused when the daemon starts, and so is
a value of the wrong kind or out of range, with the file and the key. `remusdb config check FILE` does the same without
a daemon; with `--json` it shows every value in effect. A changed file counts from the daemon's next start. Examples:
[packaging/examples](../packaging/examples).
"""
TABLE = "\n| key | default | what it is |\n|---|---|---|\n"


@dataclass(frozen=True)
class Setting:
    """One key, its default (msgspec.NODEFAULT: none) and what may be said of its range."""

    key: str
    default: Any
    bounds: str


def settings(kind: type[Struct], prefix: str = "") -> Iterator[Setting]:
    """Each key that a table takes, those of the tables in it too."""
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        name, inner = INSIDE.get((kind, field.name), (prefix + field.name, hints[field.name]))
        if isinstance(inner, type) and issubclass(inner, Struct):
            yield from settings(inner, f"{name}.")
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default
            yield Setting(name, default, _bounds(hints[field.name], name.endswith("_bytes")))


def page() -> str:
    """The whole of it."""
    host = list(settings(HostConfig))
    protection = [one for one in host if one.key.startswith("protection.")]
    parts = [
        HEAD,
        "\n## host.toml\n",
        _table([one for one in host if one not in protection]),
        "\n`[protection]`, for all VMs:\n",
        _table(protection),
        "\n## agent.toml\n",
        _table(list(settings(AgentConfig))),
        "\n## console.toml\n\nOf [the console](console.md). Nothing has to be set.\n",
        _table(list(settings(Console, "console."))),
        "\n## `[arbiter]`, the same in both files\n",
        _table(list(settings(Arbiter, "arbiter."))),
    ]
    return "".join(parts)


def _table(rows: list[Setting]) -> str:
    return TABLE + "".join(f"| `{one.key}` | {_default(one)} | {_what(one)} |\n" for one in rows)


def _what(one: Setting) -> str:
    """KeyError for a key without words."""
    return WORDS[one.key] + (f" ({one.bounds})" if one.bounds else "")


def _default(one: Setting) -> str:
    value = one.default
    if one.key in WITHOUT:
        return WITHOUT[one.key]
    if value is msgspec.NODEFAULT:
        return "none: must be set"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) + (f" ({_size(value)})" if one.key.endswith("_bytes") else "")
    if isinstance(value, list) and not value:
        return "none"
    if isinstance(value, list):
        return ", ".join(f"`{part}`" for part in value)
    return f"`{value}`"


def _bounds(hint: Any, in_bytes: bool) -> str:
    """`25 to 1000`; empty: nothing is said of it."""
    if get_origin(hint) is not Annotated:
        return ""
    for note in get_args(hint)[1:]:
        if isinstance(note, Meta) and note.ge is not None and note.le is not None:
            low, high = int(note.ge), int(note.le)
            return f"{_size(low)} to {_size(high)}" if in_bytes else f"{low} to {high}"
    return ""


def _size(count: int) -> str:
    for unit, name in BYTES:
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return str(count)


if __name__ == "__main__":
    PAGE.write_text(page())
