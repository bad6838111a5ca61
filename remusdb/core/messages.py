# SPDX-License-Identifier: Apache-2.0
"""What the control frames carry, as msgpack. Bulk frames (PAGES, WRITES, DEVICES) have codecs of their own.

Invariant: whatever bytes come, `unpack` gives a message whose every number, name, list and text is within its bounds,
or raises BadFrame. Words that are only for people (`reason`, `hint`) are cut and made printable instead, on both sides.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from remusdb.core.beats import Offer
from remusdb.core.blocks import SEED_BITS
from remusdb.core.bounds import Label, Number, fits, for_people
from remusdb.core.probe import XML_MAX_BYTES, Answer
from remusdb.core.release.frames import FLOWS_MAX_BYTES, unpack_flows
from remusdb.core.terms import Term
from remusdb.errors import BadFrame, CannotProtect, RemusError
from remusdb.names import BlockName, DiskTarget, HostName, HostOrNobody, Uuid, UuidOrNone, VmName, require_name
from remusdb.printable import printable

DISKS_MAX: Final = (
    64  # each takes a descriptor on the backup and an nbdkit on the primary; a record has one byte for it
)
BLOCKS_MAX: Final = 1024  # RAM blocks: some 20 without hot-plug, of which libvirt has 256 slots
BLOCK_MAX_BYTES: Final = 1 << 46  # 64 TiB, of x86's address space the guest's half
DISK_MAX_BYTES: Final = 1 << 53  # 8 PiB: files of XFS end at 8 EiB, and offsets are added to
ADDRESSES_MAX: Final = 256  # a gate learns 64 at most
SILENCE_MAX_MS: Final = 60_000  # of failover.silence_ms, see config.py
COPY_PATIENCE_MAX_MS: Final = 3_600_000  # of failover.copy_patience_ms
NICS_MAX: Final = 64
HASHES_MAX_BYTES: Final = 64 << 10  # in one BASE

BlockCounts = Annotated[list[Number], Meta(max_length=DISKS_MAX)]
Address = Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]{2,45}\Z")]  # no zone: that would name an interface


class RamBlock(msgspec.Struct, frozen=True):
    """One QEMU RAM block: its name in `info ramblock` and its used size in bytes."""

    name: BlockName
    size: Annotated[int, Meta(ge=0, le=BLOCK_MAX_BYTES, multiple_of=4096)]


class Disk(msgspec.Struct, frozen=True):
    """One replicated disk: the guest's target name (`vda`), its virtual size, and what it takes now, in bytes."""

    target: DiskTarget
    size: Annotated[int, Meta(ge=1, le=DISK_MAX_BYTES)]
    allocated: Annotated[int, Meta(ge=0, le=DISK_MAX_BYTES)] = 0


class Hello(msgspec.Struct, frozen=True):
    """HELLO, primary to agent: what is to be protected. `term` is the newest the primary knows.

    `arbiter`: the id of the arbiter's cluster, empty without one; both sides must use the same. `told`, to resume while
    disks are compared: for each disk, how many blocks' hashes are here. `autostart`: libvirt's, as it is when the VM is
    not protected.
    """

    version: Label
    primary: HostName
    vm: VmName
    uuid: Uuid
    term: Term
    resume: bool
    epoch: Number
    machine: Label
    domain_xml: str
    blocks: Annotated[list[RamBlock], Meta(max_length=BLOCKS_MAX)]
    disks: Annotated[list[Disk], Meta(max_length=DISKS_MAX)]
    heartbeat_ms: Annotated[int, Meta(ge=1, le=SILENCE_MAX_MS)]
    qemu_version: Label
    arbiter: Label = ""
    told: BlockCounts = []
    autostart: bool = False

    def __post_init__(self) -> None:
        """CannotProtect where something is twice, or too large: for the primary that makes it, too."""
        require_name(self.vm)
        fits(self.domain_xml, f"the XML of VM {self.vm}", XML_MAX_BYTES)
        targets = [disk.target for disk in self.disks]
        blocks = [block.name for block in self.blocks]
        for what, names, most in (("disks", targets, DISKS_MAX), ("RAM blocks", blocks, BLOCKS_MAX)):
            if len(names) > most:
                raise CannotProtect(f"VM {self.vm} has {len(names)} {what}, {most} can be replicated")
            if len(set(names)) != len(names):
                raise CannotProtect(f"VM {self.vm} has two {what} of one name")
        if len(self.told) > len(targets):
            raise CannotProtect(f"VM {self.vm} has {len(targets)} disks, hashes of {len(self.told)} are there")


class Welcome(msgspec.Struct, frozen=True):
    """WELCOME, agent to primary. With `resumed`, `committed` is the last epoch the agent holds whole.

    `bases`: for each disk, how many blocks of an older image are there already; their hashes, made with `base_seed`,
    follow in BASE frames. `taken`: of a session that is resumed in its initial sync, the bulk frames of epoch 0 that
    were applied. `copy_patience_ms`: so long the agent keeps a copy whose primary is not heard. `resets`: at a takeover
    it breaks the connections that COMMIT names. `datagrams`: the agent hears heartbeats of this connection's own, if
    the primary can send them.
    """

    version: Label
    agent: HostName
    term: Term
    committed: Number
    resumed: bool
    silence_ms: Annotated[int, Meta(ge=1, le=SILENCE_MAX_MS)]
    bases: BlockCounts = []
    base_seed: Annotated[int, Meta(ge=0, le=(1 << SEED_BITS) - 1)] = 0
    taken: Number = 0
    copy_patience_ms: Annotated[int, Meta(ge=0, le=COPY_PATIENCE_MAX_MS)] = 60_000
    resets: bool = False
    datagrams: Offer | None = None


class Taken(msgspec.Struct, frozen=True):
    """TAKEN, agent to primary: so many bulk frames of epoch 0 were applied since the session began."""

    frames: Number


class Acked(msgspec.Struct, frozen=True):
    """ACK, agent to primary, where it takes references to its disks: these have the writes up to this epoch.

    An ACK with no payload says that it takes none (any more).
    """

    applied: Number


class Base(msgspec.Struct, frozen=True):
    """BASE, agent to primary: hashes (16 bytes each, see core/blocks.py) of blocks of an image that is there."""

    disk: Annotated[int, Meta(ge=0, lt=DISKS_MAX)]
    first: Number
    hashes: Annotated[bytes, Meta(max_length=HASHES_MAX_BYTES)]


class Refuse(msgspec.Struct, frozen=True):
    """REFUSE, agent to primary. `fenced`: the agent's host took this VM over and runs it, in `term`.

    `renounced`: the agent has no replica of the session asked for and cannot take over: the only refusal that
    frees a primary's output. `code`: 'preflight', 'failed', 'deciding' (it is asking the arbiter: ask again), or
    'behind' (its term follows that of the HELLO step by step: ask again at once).
    """

    reason: str
    hint: str = ""
    term: Term = 0
    fenced: bool = False
    renounced: bool = False
    code: Label = "failed"

    def __post_init__(self) -> None:
        for_people(self, "reason", "hint")


class Commit(msgspec.Struct, frozen=True):
    """COMMIT, the end of an epoch: what must have come before it, and the guest's addresses for the announcement.

    `age_ns`: how long ago the VM was stopped for it, when this was sent; None if it did not run until then.
    `stays`: the VM stood still at the cut, and is to stand still after a takeover (suspended by an operator).
    `open_flows`: with commit protection, for each interface in the order of the XML, the flows that were inside a
    transaction at the cut (`core/release/frames.py`), packed one after the other: a takeover breaks these.
    """

    frames: Number
    payload_bytes: Number
    addresses: Annotated[list[Address], Meta(max_length=ADDRESSES_MAX)]
    age_ns: Number | None = None
    stays: bool = False
    open_flows: Annotated[list[Annotated[bytes, Meta(max_length=FLOWS_MAX_BYTES)]], Meta(max_length=NICS_MAX)] = []

    def __post_init__(self) -> None:
        """ValueError for what is no IP address, or no flow: it would become part of a frame on this host's network."""
        for address in self.addresses:
            ip_address(address)
        if sum(map(len, self.open_flows)) > FLOWS_MAX_BYTES:
            raise ValueError("too many connections inside a transaction")
        for packed in self.open_flows:
            unpack_flows(packed)


class Notice(msgspec.Struct, frozen=True):
    """BYE (primary ends the session for good), RENOUNCE (agent gives its standby up), TAKEOVER (primary stopped the VM
    and asks the agent to go on) and DECLINE (it did not): why. With `forget` in a BYE nothing is to be kept for later.
    """

    reason: str
    forget: bool = False

    def __post_init__(self) -> None:
        for_people(self, "reason")


class Proof(msgspec.Struct, frozen=True):
    """PROOF, agent to primary: what came of loading the device state of `epoch` into a throw-away copy of the standby.

    `proven`: QEMU took it, in `took_ms`. `refused`: QEMU did not; `reason` has its own words. `unable`: it could not be
    tried, which says nothing of the standby. `at_ns`: when it was over, by the clock of the agent's host.
    """

    verdict: Literal["proven", "refused", "unable"]
    at_ns: Number
    epoch: Number = 0
    took_ms: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    reason: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        for_people(self, "reason", "hint")


class Question(msgspec.Struct, frozen=True):
    """ASK, host to agent: who owns this VM, as far as you know? `term` is the newest that the asking host knows."""

    vm: VmName
    host: HostName
    term: Term

    def __post_init__(self) -> None:
        require_name(self.vm)


class Standing(msgspec.Struct, frozen=True):
    """STANDING, agent to host: what the agent's host is to the VM (`role`, see remusdb/state.py), and who owns it.

    `uuid`: of the VM that is meant, empty if nothing is known of one.
    """

    vm: VmName
    term: Term
    owner: HostOrNobody
    role: Label
    reason: str
    uuid: UuidOrNone = ""

    def __post_init__(self) -> None:
        require_name(self.vm)
        for_people(self, "reason")


class Capabilities(msgspec.Struct, frozen=True):
    """PROBE, agent to primary: what `remusdb check --to` compares. Versions as (a, b, c).

    `answer`: for a PROBE that carries a `Probe`, what this VM would find here; an older agent does not give it.
    """

    version: Label
    qemu_version: tuple[Number, Number, Number]
    libvirt_version: tuple[Number, Number, Number]
    machines: Annotated[list[Label], Meta(max_length=4096)]
    answer: Answer | None = None


Message = TypeVar("Message", bound=msgspec.Struct)


def pack(message: msgspec.Struct) -> bytes:
    """The payload of a control frame."""
    return msgspec.msgpack.encode(message)


def unpack(kind: type[Message], payload: bytes | memoryview) -> Message:
    """The message in a control frame; BadFrame when it is not one, whatever else it is."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, RemusError, ValueError, RecursionError, MemoryError) as exc:
        raise BadFrame(f"the {kind.__name__} message cannot be read: {printable(str(exc))}") from exc
