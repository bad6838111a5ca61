# SPDX-License-Identifier: Apache-2.0
"""What a primary asks a backup before it protects a VM, and what the backup answers: PROBE frames, as msgpack.

A field that is None (or a name that is missing in a dict) was not asked or could not be found out; `Answer.errors` then
says why. Each was looked up by itself, so one that fails spoils no other.
"""

from __future__ import annotations

import msgspec

XML_MAX_BYTES = 1 << 20  # libvirt's own definitions stay far below


class Probe(msgspec.Struct, frozen=True):
    """Primary to agent. `xml` is the VM's live XML; `host_cpu` the `<cpu>` of the primary's own capabilities."""

    xml: str
    host_cpu: str = ""


class Uplink(msgspec.Struct, frozen=True):
    """A port of a bridge by which frames leave the host. `outer`: the tag that the port itself adds (a VLAN device), 0
    if none; `vlans`: VLAN id -> whether frames of it leave untagged, of a bridge that filters."""

    name: str
    mtu: int
    outer: int = 0
    vlans: dict[int, bool] = {}


class Bridge(msgspec.Struct, frozen=True):
    """A bridge as its host has it. `filters`: it looks at VLANs; `pvid`: the VLAN that a new port gets, 0 if none."""

    name: str
    there: bool = False
    up: bool = False
    mtu: int = 0
    filters: bool = False
    pvid: int = 0
    uplinks: list[Uplink] = []


class HugePages(msgspec.Struct, frozen=True):
    """Pages of one size: how many are free, and whether libvirt finds a file system to take them from."""

    free: int
    mounted: bool


class Forwarding(msgspec.Struct, frozen=True):
    """Whether the packet filter is asked about bridged frames (`called`), and chains that drop what is forwarded:
    `drops` all of it, `may_drop` what no rule of theirs lets pass."""

    called: bool
    drops: list[str] = []
    may_drop: list[str] = []


class Confinement(msgspec.Struct, frozen=True):
    """AppArmor: whether it confines QEMU here, and lets it reach the disk channel and the private monitor."""

    confined: bool
    channel: bool = False
    monitor: bool = False


class Namesake(msgspec.Struct, frozen=True):
    """A domain there with the VM's name or UUID. `ours`: a standby, or what gives way to one."""

    name: str
    uuid: str
    active: bool
    persistent: bool
    autostart: bool
    ours: bool = False
    leftovers: list[str] = []  # options of `virsh undefine` for what else belongs to it


class Arbitration(msgspec.Struct, frozen=True):
    """The agent's arbiter: its cluster's id, empty if none is configured; why it takes no change, and what to do."""

    cluster: str = ""
    problem: str = ""
    hint: str = ""


class Answer(msgspec.Struct, frozen=True):
    """The agent's answer: this host, and what the VM of the Probe would find on it."""

    # this host
    agent: str = ""
    sees: str = ""  # the name in the certificate of whoever asks
    silence_ms: int = 0
    arbiter: Arbitration | None = None
    domain_types: list[str] | None = None  # kvm, qemu
    cpus: str | None = None  # online, as the kernel lists them: 0-3,8
    nodes: str | None = None  # NUMA nodes with memory
    huge_pages: dict[int, HugePages] | None = None  # by size in KiB
    huge_page_kib: int = 0  # the default size
    tun_offloads: int | None = None  # TUN_F_* that a tap takes
    vhost: int | None = None  # features of vhost-net; -1: there is no /dev/vhost-net
    forwarding: Forwarding | None = None
    confinement: Confinement | None = None
    libvirt_hooks: bool = False  # of others than remusdb: they may change a VM's links when it starts
    image_free: int | None = None  # bytes for replica disks
    # the VM
    standby: bool = False  # its standby is there already, or the VM itself, which makes room
    busy_with: str = ""  # another host, that protects a VM of this name to there
    memory_problem: str | None = None  # empty: there is room for its standby
    paths: dict[str, str] | None = None  # path -> what is wrong with it, empty if nothing
    bridges: dict[str, Bridge] | None = None  # by the primary's name
    taken_links: list[str] | None = None  # names of taps that the VM brings along, and that are taken
    listens: dict[str, str] | None = None  # ADDRESS:PORT -> why nothing can listen there
    namesakes: list[Namesake] | None = None
    cpu: str | None = None  # why its CPU cannot be built there, empty if it can
    host_cpu: str | None = None  # identical, superset, or why the primary's own CPU is more than this host's
    images: dict[str, int] = {}  # disk target -> bytes that an older replica has there already
    errors: dict[str, str] = {}  # field -> why it could not be found out
