# SPDX-License-Identifier: Apache-2.0
"""What the control frames carry, as msgpack. Bulk frames (PAGES, WRITES, DEVICES) have codecs of their own."""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from remusdb.core.probe import Answer
from remusdb.errors import BadFrame


class RamBlock(msgspec.Struct, frozen=True):
    """One QEMU RAM block: its name in `info ramblock` and its used size in bytes."""

    name: str
    size: int


class Disk(msgspec.Struct, frozen=True):
    """One replicated disk: the guest's target name (`vda`), its virtual size, and what it takes now, in bytes."""

    target: str
    size: int
    allocated: int = 0


class Hello(msgspec.Struct, frozen=True):
    """HELLO, primary to agent: what is to be protected. `term` is the newest the primary knows.

    `arbiter`: the id of the arbiter's cluster, empty without one; both sides must use the same. `told`, to resume while
    disks are compared: for each disk, how many blocks' hashes are here. `autostart`: libvirt's, as it is when the VM is
    not protected.
    """

    version: str
    primary: str
    vm: str
    uuid: str
    term: int
    resume: bool
    epoch: int
    machine: str
    domain_xml: str
    blocks: list[RamBlock]
    disks: list[Disk]
    heartbeat_ms: int
    qemu_version: str
    arbiter: str = ""
    told: list[int] = []
    autostart: bool = False


class Welcome(msgspec.Struct, frozen=True):
    """WELCOME, agent to primary. With `resumed`, `committed` is the last epoch the agent holds whole.

    `bases`: for each disk, how many blocks of an older image are there already; their hashes, made with `base_seed`,
    follow in BASE frames. `taken`: of a session that is resumed in its initial copy, the bulk frames of epoch 0 that
    were applied. `copy_patience_ms`: so long the agent keeps a copy whose primary is not heard.
    """

    version: str
    agent: str
    term: int
    committed: int
    resumed: bool
    silence_ms: int
    bases: list[int] = []
    base_seed: int = 0
    taken: int = 0
    copy_patience_ms: int = 60_000


class Taken(msgspec.Struct, frozen=True):
    """TAKEN, agent to primary: so many bulk frames of epoch 0 were applied since the session began."""

    frames: int


class Base(msgspec.Struct, frozen=True):
    """BASE, agent to primary: hashes (16 bytes each, see core/blocks.py) of blocks of an image that is there."""

    disk: int
    first: int
    hashes: bytes


class Refuse(msgspec.Struct, frozen=True):
    """REFUSE, agent to primary. `fenced`: the agent promoted this VM in `term`, or knows a newer term.

    `renounced`: the agent has no replica of the session asked for and cannot take over: the only refusal that
    frees a primary's output. `code`: 'preflight', 'failed', or 'deciding' (it is asking the arbiter: ask again).
    """

    reason: str
    hint: str = ""
    term: int = 0
    fenced: bool = False
    renounced: bool = False
    code: str = "failed"


class Commit(msgspec.Struct, frozen=True):
    """COMMIT, the end of an epoch: what must have come before it, and the guest's addresses for the announcement.

    `age_ns`: how long ago the VM was stopped for it, when this was sent; None if it did not run until then.
    `stays`: the VM stood still at the cut, and is to stand still after a takeover (suspended by an operator).
    """

    frames: int
    payload_bytes: int
    addresses: list[str]
    age_ns: int | None = None
    stays: bool = False


class Notice(msgspec.Struct, frozen=True):
    """BYE (primary ends the session for good), RENOUNCE (agent gives its standby up), TAKEOVER (primary stopped the VM
    and asks the agent to go on) and DECLINE (it did not): why. With `forget` in a BYE nothing is to be kept for later.
    """

    reason: str
    forget: bool = False


class Proof(msgspec.Struct, frozen=True):
    """PROOF, agent to primary: what came of loading the device state of `epoch` into a throw-away copy of the standby.

    `proven`: QEMU took it, in `took_ms`. `refused`: QEMU did not; `reason` has its own words. `unable`: it could not be
    tried, which says nothing of the standby. `at_ns`: when it was over, by the clock of the agent's host.
    """

    verdict: Literal["proven", "refused", "unable"]
    at_ns: int
    epoch: int = 0
    took_ms: float = 0.0
    reason: str = ""
    hint: str = ""


class Question(msgspec.Struct, frozen=True):
    """ASK, host to agent: who owns this VM, as far as you know? `term` is the newest that the asking host knows."""

    vm: str
    host: str
    term: int


class Standing(msgspec.Struct, frozen=True):
    """STANDING, agent to host: what the agent's host is to the VM (`role`, see remusdb/state.py), and who owns it."""

    vm: str
    term: int
    owner: str
    role: str
    reason: str


class AgentFacts(msgspec.Struct, frozen=True):
    """PROBE, agent to primary: what `remusdb check --to` compares. Versions as (a, b, c).

    `answer`: for a PROBE that carries a `Probe`, what this VM would find here; an older agent does not give it.
    """

    version: str
    qemu_version: tuple[int, int, int]
    libvirt_version: tuple[int, int, int]
    machines: list[str]
    answer: Answer | None = None


Message = TypeVar("Message", bound=msgspec.Struct)


def pack(message: msgspec.Struct) -> bytes:
    """The payload of a control frame."""
    return msgspec.msgpack.encode(message)


def unpack(kind: type[Message], payload: bytes | memoryview) -> Message:
    """The message in a control frame; BadFrame when it is not one."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except msgspec.MsgspecError as exc:
        raise BadFrame(f"the {kind.__name__} message cannot be read: {exc}") from exc
