# SPDX-License-Identifier: Apache-2.0
"""Targets: what comes over the connection between the hosts, and what a guest has QEMU write in its device state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard

from remusdb.cli.inspect import Capture, _line
from remusdb.core import beats, messages, sections, wire
from remusdb.core import probe as probes
from remusdb.core.clock_stream import forward, places, read, still, tsc_per_ns
from remusdb.core.describe import MESSAGES
from remusdb.core.devices import decode_devices, encode_devices
from remusdb.core.dissect import dissect
from remusdb.core.pagecache import PageCache
from remusdb.core.pages import decode_pages, resolve
from remusdb.core.pages_encode import encode_full, encode_pages
from remusdb.core.pagework import PAGE_BYTES
from remusdb.core.references import DISK_SHIFT, decode_references, encode_references
from remusdb.core.wire import Frame, FrameType
from remusdb.core.writes import RECORD, Kind, decode_writes, encode_writes, iter_records
from remusdb.errors import BadFrame, RemusError
from remusdb.names import VmName
from remusdb.net.announce import frames as announcements
from remusdb.printable import json_text, printable
from remusdb_agents.backup.capabilities import question
from remusdb_agents.backup.inbox import Inbox
from tests.fuzz.samples import DOMAIN, GOOD, HERE
from tests.fuzz.target import Target

DATA = Path(__file__).parent.parent / "unit" / "data"
UUID = "0b1c8f5e-7d0e-4c57-9c0b-3d7f0a1b2c3d"
SAMPLES: list[msgspec.Struct] = [
    messages.Hello(
        "0.1.0", "alpha", VmName("db1"), UUID, 7, False, 3, "pc-q35-8.2", DOMAIN,
        [messages.RamBlock("pc.ram", 1 << 30)],
        [messages.Disk("vda", 1 << 30, 1 << 20)], 100, "10.0.0", "7", [1], True,
    ),
    messages.Welcome("0.1.0", "beta", 7, 3, True, 500, [16], 9, 4, 60_000, True, beats.Offer(7, bytes(32))),
    messages.Taken(3),
    messages.Acked(3),
    messages.Base(0, 16, bytes(64)),
    messages.Refuse("it is fenced", "look", 8, True, False, "preflight"),
    messages.Commit(3, 8192, ["192.0.2.1", "2001:db8::1"], 1_000_000, True),
    messages.Notice("unprotect was asked for", True),
    messages.Proof("proven", 1_790_000_000_000_000_000, 3, 2.5, "", ""),
    messages.Question(VmName("db1"), "alpha", 7),
    messages.Standing(VmName("db1"), 7, "alpha", "standby", "because"),
    messages.Capabilities("0.1.0", (10, 0, 0), (11, 3, 0), ["pc-q35-8.2"], GOOD),
]  # fmt: skip
KINDS = [type(sample) for sample in SAMPLES]


def header(data: bytes) -> None:
    """A frame; the first byte says whether its checksum is corrected."""
    raw = bytearray(data[1:])
    if data[:1] > b"\x7f" and len(raw) >= wire.HEADER_BYTES:
        raw[32:40] = wire._checksum(bytes(raw[:32]), raw[40:]).to_bytes(8, "little")
    found = wire.decode_header(raw[: wire.HEADER_BYTES])
    wire.check_payload(found, raw[wire.HEADER_BYTES :])


def headers() -> list[bytes]:
    return [
        mark + wire.encode_header(kind, 7, 3, payload) + payload
        for mark in (b"\0", b"\xff")
        for kind, payload in ((FrameType.ACK, b""), (FrameType.PAGES, b"x" * 99))
    ]


def message(data: bytes) -> None:
    kind = KINDS[data[0] % len(KINDS)] if data else messages.Hello
    found: Any = messages.unpack(kind, data[1:])
    messages.pack(found)
    if isinstance(found, messages.Commit):
        announcements("52:54:00:00:00:01", found.addresses)


def pages(data: bytes) -> None:
    """The first byte says whether the body is to be compressed."""
    payload = data[1:]
    if data[:1] > b"\x7f":
        payload = payload[:16] + zstandard.ZstdCompressor(level=1).compress(payload[16:])
    decoded = decode_pages(payload)
    decoded.require_within(1 << 20)
    resolve(decoded, np.zeros((len(decoded.numbers), PAGE_BYTES), np.uint8))


def page_samples() -> list[bytes]:
    numbers = np.array([1, 5, 6], np.int64)
    content = np.zeros((3, PAGE_BYTES), np.uint8)
    content[1:, 7] = 9
    cache = PageCache(8, 8)
    cache.content[:] = 1
    made = encode_pages(0, numbers, content, cache).payloads + encode_full(0, numbers, content).payloads
    made.append(b"\x03" + made[0][1:])  # the same, of pages that were not there before
    bare = [one[:16] + zstandard.ZstdDecompressor().decompress(one[16:]) for one in (made[0], made[2])]
    return [*(b"\0" + one for one in made), *(b"\xff" + one for one in bare)]


def references(data: bytes) -> None:
    """What a primary says of where pages stand, against disks that have no such content."""
    found = decode_references(data)
    found.require_within([1 << 30, PAGE_BYTES])
    found.filled(np.zeros((len(found.numbers), PAGE_BYTES), np.uint8))


def reference_samples() -> list[bytes]:
    content, places = np.zeros((3, PAGE_BYTES), np.uint8), np.array([0, 1 << DISK_SHIFT, 7], np.uint64)
    return [encode_references(2, np.array([0, 5, 6]), places, content)]


def log_samples() -> list[bytes]:
    write = RECORD.pack(Kind.WRITE, 0, 0, 512, 4096) + bytes(range(256)) * 2
    zero, trim = (RECORD.pack(kind, 1, 0, 1 << 20, 0) for kind in (Kind.ZERO, Kind.TRIM))
    return [write, zero, write + trim + zero + write]


def write_log(data: bytes) -> None:
    for payload in encode_writes(data):
        list(iter_records(decode_writes(payload)))


def writes(data: bytes) -> None:
    payload = zstandard.ZstdCompressor(level=1).compress(data[1:]) if data[:1] > b"\x7f" else data[1:]
    list(iter_records(decode_writes(payload)))


def writes_samples() -> list[bytes]:
    return [b"\0" + encode_writes(log)[0] for log in log_samples()] + [b"\xff" + log for log in log_samples()]


PREVIOUS = bytes(range(256)) * 4


def devices(data: bytes) -> None:
    payload = data[1:]
    if data[:1] > b"\x7f":
        payload = payload[:5] + zstandard.ZstdCompressor(level=1).compress(payload[5:])
    decode_devices(payload, PREVIOUS)


def device_samples() -> list[bytes]:
    return [b"\0" + encode_devices(state, PREVIOUS) for state in (PREVIOUS[::-1], b"short")]


def state(name: str) -> bytes:
    return zstandard.ZstdDecompressor().decompress((DATA / f"{name}.zst").read_bytes(), max_output_size=1 << 24)


def clocks(data: bytes) -> None:
    where = places(data)
    if still(data, where):
        read(data, where)
    tsc_per_ns(data)
    if len(forward(data, 10**9, 2.5)) != len(data):
        raise AssertionError("the stream has another length")


def short_states() -> list[bytes]:
    """Sections as QEMU writes them, without what else is in a state."""
    timer = b"\x04\0\0\0\1\x05timer\0\0\0\0\0\0\0\x02" + bytes(24) + b"\x7e\0\0\0\1"
    cpu = b"\x04\0\0\0\2\x03cpu\0\0\0\0\0\0\0\x0c" + bytes(1180) + b"\x7e\0\0\0\2"
    clock = b"\x04\0\0\0\3\x08kvmclock\0\0\0\0\0\0\0\1" + bytes(8) + b"\x7e\0\0\0\3"
    end = b"\x04\0\0\0\4\x01x\0\0\0\0\0\0\0\1\x7e\0\0\0\4\0"
    return [sections.HEAD + timer + clock + cpu + end, sections.HEAD + timer + end]


def inbox(data: bytes) -> None:
    """Frames in any order: byte of the kind, epoch, length of the payload."""
    box = Inbox(1 << 16)
    kinds = (FrameType.PAGES, FrameType.WRITES, FrameType.DEVICES, FrameType.COMMIT)
    for at in range(0, min(len(data), 600) - 2, 3):
        kind, epoch, size = kinds[data[at] % 4], data[at + 1] % 4, data[at + 2]
        payload = data[at : at + size] if kind is not FrameType.COMMIT else COMMITS[size % len(COMMITS)]
        try:
            frame = Frame(kind, 1, epoch, payload)
            if kind is FrameType.COMMIT:
                box.close(frame, 10**9)
            else:
                box.add(frame)
        except BadFrame:
            box.clear()


COMMITS = [messages.pack(messages.Commit(frames, 0, [], age)) for frames in range(3) for age in (None, 0, 1 << 60)]


def probe(data: bytes) -> None:
    question(data)


HEARD = beats.Offer(7, bytes(range(beats.KEY_BYTES)))


def heartbeat(data: bytes) -> None:
    """Datagrams as they come to an agent; the first byte says whether the MAC is corrected."""
    ear = beats.Ear(beats.Way.TO_AGENT, HEARD, 3)
    raw = data[1:]
    signed = data[:1] > b"\x7f"
    if signed:
        raw = raw[:32] + beats._mac(HEARD.key, raw[:32])
    beats.session_of(raw)
    if ear.take(raw) and not signed and raw not in heartbeats_said():
        raise AssertionError("a datagram was heard that nobody said")
    if ear.take(raw):
        raise AssertionError("a datagram was heard twice")


def heartbeats_said() -> list[bytes]:
    mouth = beats.Mouth(beats.Way.TO_AGENT, HEARD, 3)
    return [one for _ in range(3) if (one := mouth.next()) is not None]


def answer(data: bytes) -> None:
    from remusdb import safexml
    from remusdb.preflight.peer import decide

    capabilities = messages.unpack(messages.Capabilities, data)
    decide("beta", capabilities.answer, HERE, safexml.parse(DOMAIN))


def captured(data: bytes) -> None:
    """`remusdb inspect FILE`. The first byte says whether it is a file as it comes, or frames: kind, epoch, length."""
    stream = data[1:] if data[:1] < b"\x80" else b"".join(_sound_frames(data[1:]))
    try:
        _look_through(stream)
    except RemusError as exc:
        raise AssertionError(f"it ends the look at all that follows: {exc!r}") from exc


def _look_through(stream: bytes) -> None:
    at = 0
    for piece in dissect(lambda offset, count: stream[offset : offset + count], len(stream)):
        if piece.offset != at or piece.size_bytes <= 0:
            raise AssertionError(f"{piece} does not follow at {at}")
        at += piece.size_bytes
        shown = _line(piece)
        if printable(shown, len(shown.encode()) + 1) != shown:
            raise AssertionError(f"{shown!r} is not fit for a terminal")
        json_text(Capture(size_bytes=len(stream), pieces=[piece], whole=True, faults=0))
    if at != len(stream):
        raise AssertionError(f"the pieces end at {at} of {len(stream)}")


def _sound_frames(data: bytes) -> Iterator[bytes]:
    """Frames whose checksums hold, so that what is in them is looked at."""
    kinds, at = list(FrameType), 0
    while at + 4 <= len(data):
        kind, epoch, length = kinds[data[at] % len(kinds)], data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        payload = data[at + 4 : at + 4 + length][: wire.payload_limit(kind)]
        yield wire.encode_header(kind, 7, epoch, payload) + payload
        at += 4 + length


def captures() -> list[bytes]:
    bulk = [(FrameType.PAGES, page_samples()[0][1:]), (FrameType.WRITES, encode_writes(log_samples()[0])[0])]
    told = [(kind, messages.pack(one)) for kind, kinds in MESSAGES.items() for one in SAMPLES if type(one) in kinds]
    both = [*bulk, *told]
    stream = b"".join(wire.encode_header(kind, 7, 3, payload) + payload for kind, payload in both)
    order = list(FrameType)
    return [b"\0" + stream, b"\0junk" + stream[:-3]] + [
        b"\xff" + b"".join(bytes([order.index(kind), 3]) + len(said).to_bytes(2, "big") + said for kind, said in part)
        for part in (both, told, *([one] for one in both))
    ]


TARGETS = {
    "inspect": Target(captured, captures, longest=1 << 14),
    "header": Target(header, headers),
    "message": Target(
        message, lambda: [bytes([at]) + messages.pack(one) for at, one in enumerate(SAMPLES)], "msgpack", head=1
    ),
    "pages": Target(pages, page_samples, longest=1 << 15),
    "references": Target(references, reference_samples),
    "write-log": Target(write_log, log_samples),
    "writes": Target(writes, writes_samples),
    "devices": Target(devices, device_samples),
    "clocks": Target(clocks, lambda: [*short_states()[:1], state("tcg.1")], longest=1 << 17),
    "sections": Target(sections.outline_of, lambda: [*short_states(), state("tcg.1")], longest=1 << 17),
    "inbox": Target(inbox, lambda: [b"\0\1\1\1\1\2\3\1\2"]),
    "probe": Target(probe, lambda: [b"", messages.pack(probes.Probe(DOMAIN, "<cpu/>"))], "msgpack"),
    "heartbeat": Target(heartbeat, lambda: [mark + one for mark in (b"\0", b"\xff") for one in heartbeats_said()]),
    "answer": Target(answer, lambda: [messages.pack(SAMPLES[-1])], "msgpack"),
}
