# SPDX-License-Identifier: Apache-2.0
"""What a frame says, for people who look for a fault: names and numbers, never a VM's memory, disks or definition.

Every payload is decoded by the codec that the hosts use, so what is refused here is refused there. Sans-IO.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec

from remusdb.core import devices, messages
from remusdb.core.pages import decode_pages
from remusdb.core.probe import Probe
from remusdb.core.references import decode_references, is_reference
from remusdb.core.wire import Frame, FrameType
from remusdb.core.writes import decode_writes, iter_records
from remusdb.core.zstdframe import decompress
from remusdb.errors import BadFrame
from remusdb.printable import printable

MESSAGES: Final[dict[FrameType, tuple[type[msgspec.Struct], ...]]] = {
    FrameType.HELLO: (messages.Hello,),
    FrameType.WELCOME: (messages.Welcome,),
    FrameType.REFUSE: (messages.Refuse,),
    FrameType.COMMIT: (messages.Commit,),
    FrameType.ACK: (messages.Acked,),
    FrameType.BYE: (messages.Notice,),
    FrameType.RENOUNCE: (messages.Notice,),
    FrameType.TAKEOVER: (messages.Notice,),
    FrameType.DECLINE: (messages.Notice,),
    FrameType.PROBE: (messages.Capabilities, Probe),  # the answer, the question
    FrameType.BASE: (messages.Base,),
    FrameType.ASK: (messages.Question,),
    FrameType.STANDING: (messages.Standing,),
    FrameType.TAKEN: (messages.Taken,),
    FrameType.PROOF: (messages.Proof,),
}
NOT_SHOWN: Final = ("domain_xml", "xml", "host_cpu", "answer", "hashes", "datagrams")  # long, or secret
TEXT_MAX_BYTES: Final = 200
LIST_MOST: Final = 8

Said = dict[str, str | int | float]  # names of what is in it -> text or number


def describe(frame: Frame) -> Said:
    """What is in it. BadFrame if its payload is not what its type says."""
    if frame.type == FrameType.PAGES:
        return _pages(frame.payload)
    if frame.type == FrameType.WRITES:
        return _writes(frame.payload)
    if frame.type == FrameType.DEVICES:
        return _devices(frame.payload)
    kinds = MESSAGES.get(frame.type)
    if kinds is None or (frame.type == FrameType.ACK and not len(frame.payload)):  # HEARTBEAT; who takes no references
        if len(frame.payload):
            raise BadFrame(f"a {frame.type.name} frame has a payload of {len(frame.payload)} bytes")
        return {}
    return _message(kinds, frame.payload)


def _message(kinds: tuple[type[msgspec.Struct], ...], payload: bytes | memoryview) -> Said:
    for kind in kinds[:-1]:
        try:
            return _short(messages.unpack(kind, payload))
        except BadFrame:
            continue
    return _short(messages.unpack(kinds[-1], payload))


def _short(message: msgspec.Struct) -> Said:
    named = ((name, getattr(message, name)) for name in message.__struct_fields__)
    return {name: _shown(name, value) for name, value in named if value is not None}


def _shown(name: str, value: Any) -> str | int | float:
    if name in NOT_SHOWN:
        return f"{len(value)} bytes" if isinstance(value, str | bytes) else "not shown"
    plain = msgspec.to_builtins(value)
    if isinstance(plain, bool):
        return "yes" if plain else "no"
    if isinstance(plain, int | float):
        return plain
    if isinstance(plain, list | tuple):
        more = [f"and {len(plain) - LIST_MOST} more"] if len(plain) > LIST_MOST else []
        return ", ".join([*(printable(str(one), TEXT_MAX_BYTES) for one in plain[:LIST_MOST]), *more])
    return printable(str(plain), TEXT_MAX_BYTES)


def _pages(payload: bytes | memoryview) -> Said:
    if is_reference(payload):
        return _references(payload)
    found = decode_pages(payload)
    numbers = [int(part[at]) for part in (found.numbers, found.zero) if len(part) for at in (0, -1)]
    return {
        "block": found.block, "encoding": found.encoding, "pages": len(found.numbers), "zero": len(found.zero),
        "first": min(numbers), "last": max(numbers),
    }  # fmt: skip


def _references(payload: bytes | memoryview) -> Said:
    found = decode_references(payload)
    return {
        "block": found.block, "encoding": "references", "pages": len(found.numbers),
        "first": int(found.numbers[0]), "last": int(found.numbers[-1]),
    }  # fmt: skip


def _writes(payload: bytes | memoryview) -> Said:
    kinds: Counter[str] = Counter()
    disks: set[int] = set()
    size_bytes = 0
    for record in iter_records(decode_writes(payload)):
        kinds[record.kind.name.lower()] += 1
        disks.add(record.disk)
        size_bytes += len(record.data)
    return {"disks": ", ".join(map(str, sorted(disks))), **kinds, "data_bytes": size_bytes}


def _devices(payload: bytes | memoryview) -> Said:
    """Its size. What it holds takes the state before it, and it is checked as far as that is possible without."""
    if len(payload) < devices.HEAD.size:
        raise BadFrame("device state is shorter than its head")
    kind, length = devices.HEAD.unpack_from(payload)
    if kind == devices.WHOLE:
        devices.decode_devices(payload, b"")
    elif kind != devices.XOR or not 0 < length <= devices.MAX_DEVICE_STATE_BYTES:
        raise BadFrame(f"device state of kind {kind} and {length} bytes")
    else:
        decompress(memoryview(payload)[devices.HEAD.size :], "device state", length, length)
    return {"kind": "whole" if kind == devices.WHOLE else "against the one before", "state_bytes": length}
