# SPDX-License-Identifier: Apache-2.0
"""What a primary asks a backup before it protects a VM, and what the backup answers: PROBE frames, as msgpack.

A field that is None (or a name that is missing in a dict) was not asked or could not be found out; `Answer.errors` then
says why. Each was looked up by itself, so one that fails spoils no other. What is for people to read is cut and made
printable, see `bounds`.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from remusdb.core.beats import Offer
from remusdb.core.bounds import NUMBER_MAX, PATH_MAX_BYTES, Label, Number, for_people
from remusdb.names import require_name

XML_MAX_BYTES: Final = 512 << 10  # a live one with 64 disks and 32 interfaces has 32 KiB
CPU_MAX_BYTES: Final = 64 << 10
MANY: Final = 1024  # of anything that an answer lists

# These become parts of commands that `check` advises, so a shell must find nothing in them to obey.
Link = Annotated[
    str, Meta(pattern=r"^[\w.:@+=,%-]{0,255}\Z")
]  # a bridge that is not there has its name from a configuration
Chain = Annotated[str, Meta(pattern=r"^[\w .:@+=,%/-]{0,255}\Z")]  # family, table, chain
Chains = Annotated[list[Chain], Meta(max_length=MANY)]
IdSet = Annotated[str, Meta(pattern=r"^[0-9,-]{0,4096}\Z")]  # as the kernel lists CPUs: 0-3,8
Option = Annotated[str, Meta(pattern=r"^--[a-z-]{1,40}\Z")]

Path = Annotated[str, Meta(max_length=PATH_MAX_BYTES)]
Texts = Annotated[list[str], Meta(max_length=MANY)]
VlanId = Annotated[int, Meta(ge=0, le=4095)]
Mtu = Annotated[int, Meta(ge=0, le=1 << 32)]


class Probe(msgspec.Struct, frozen=True):
    """Primary to agent. `xml` is the VM's live XML; `host_cpu` the `<cpu>` of the primary's own capabilities."""

    xml: str  # at most XML_MAX_BYTES: counted before it is parsed
    host_cpu: Annotated[str, Meta(max_length=CPU_MAX_BYTES)] = ""


class Uplink(msgspec.Struct, frozen=True):
    """A port of a bridge by which frames leave the host. `outer`: the tag that the port itself adds (a VLAN device), 0
    if none; `vlans`: VLAN id -> whether frames of it leave untagged, of a bridge that filters."""

    name: Link
    mtu: Mtu
    outer: VlanId = 0
    vlans: Annotated[dict[VlanId, bool], Meta(max_length=4096)] = {}


class Bridge(msgspec.Struct, frozen=True):
    """A bridge as its host has it. `filters`: it looks at VLANs; `pvid`: the VLAN that a new port gets, 0 if none."""

    name: Link
    there: bool = False
    up: bool = False
    mtu: Mtu = 0
    filters: bool = False
    pvid: VlanId = 0
    uplinks: Annotated[list[Uplink], Meta(max_length=MANY)] = []


class HugePages(msgspec.Struct, frozen=True):
    """Pages of one size: how many are free, and whether libvirt finds a file system to take them from."""

    free: Number
    mounted: bool


class Forwarding(msgspec.Struct, frozen=True):
    """Whether the packet filter is asked about bridged frames (`called`), and chains that drop what is forwarded:
    `drops` all of it, `may_drop` what no rule of theirs lets pass."""

    called: bool
    drops: Chains = []
    may_drop: Chains = []


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
    leftovers: Annotated[list[Option], Meta(max_length=MANY)] = []  # of `virsh undefine`, for what else belongs to it

    def __post_init__(self) -> None:
        """UsageError for what is no name: it becomes part of a command that is advised."""
        require_name(self.name)
        for_people(self, "uuid")


class Arbitration(msgspec.Struct, frozen=True):
    """The agent's arbiter: its cluster's id, empty if none is configured; why it takes no change, and what to do."""

    cluster: str = ""
    problem: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        for_people(self, "cluster", "problem", "hint")


class Refusal(msgspec.Struct, frozen=True):
    """One thing for which the agent would not start the VM, and what to do."""

    what: str
    hint: str = ""


class Answer(msgspec.Struct, frozen=True):
    """The agent's answer: this host, and what the VM of the Probe would find on it."""

    # this host
    agent: str = ""
    sees: str = ""  # the name in the certificate of whoever asks
    silence_ms: Number = 0
    arbiter: Arbitration | None = None
    domain_types: Texts | None = None  # kvm, qemu
    cpus: IdSet | None = None  # online, as the kernel lists them: 0-3,8
    nodes: IdSet | None = None  # NUMA nodes with memory
    huge_pages: Annotated[dict[Number, HugePages], Meta(max_length=MANY)] | None = None  # by size in KiB
    huge_page_kib: Number = 0  # the default size
    tun_offloads: Number | None = None  # TUN_F_* that a tap takes
    vhost: Annotated[int, Meta(ge=-1, le=NUMBER_MAX)] | None = (
        None  # features of vhost-net; -1: there is no /dev/vhost-net
    )
    forwarding: Forwarding | None = None
    confinement: Confinement | None = None
    libvirt_hooks: bool = False  # of others than remusdb: they may change a VM's links when it starts
    image_free: Number | None = None  # bytes for replica disks
    datagrams: Offer | None = None  # to be tried whether heartbeats of their own come through
    # the VM
    refusals: list[Refusal] = []
    standby: bool = False  # its standby is there already, or the VM itself, which makes room
    busy_with: str = ""  # another host, that protects a VM of this name to there
    memory_problem: str | None = None  # empty: there is room for its standby
    paths: Annotated[dict[Path, str], Meta(max_length=MANY)] | None = (
        None  # path -> what is wrong with it, empty if nothing
    )
    bridges: Annotated[dict[Link, Bridge], Meta(max_length=MANY)] | None = None  # by the primary's name
    taken_links: Texts | None = None  # names of taps that the VM brings along, and that are taken
    listens: Annotated[dict[Path, str], Meta(max_length=MANY)] | None = (
        None  # ADDRESS:PORT -> why nothing can listen there
    )
    namesakes: Annotated[list[Namesake], Meta(max_length=MANY)] | None = None
    cpu: str | None = None  # why its CPU cannot be built there, empty if it can
    host_cpu: str | None = None  # identical, superset, or why the primary's own CPU is more than this host's
    images: Annotated[
        dict[Path, Number], Meta(max_length=MANY)
    ] = {}  # disk target -> bytes that an older replica has there already
    errors: Annotated[dict[Label, str], Meta(max_length=MANY)] = {}  # field -> why it could not be found out

    def __post_init__(self) -> None:
        words = ("agent", "sees", "domain_types", "busy_with", "memory_problem", "paths")
        for_people(self, *words, "taken_links", "listens", "cpu", "host_cpu", "errors")
