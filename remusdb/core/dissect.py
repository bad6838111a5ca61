# SPDX-License-Identifier: Apache-2.0
"""A captured stream of the protocol between the hosts, frame by frame, whatever its bytes are. Sans-IO.

    frame ─▶ frame ─▶ (bytes that are none: a gap, up to the next frame whose checksum holds) ─▶ frame ─▶ end

Invariant: pieces follow each other without overlap and cover the whole stream; nothing larger than one frame is held;
and work is bounded by the stream's length, also where it was made to look like many frames that it does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Final

from msgspec import Struct

from remusdb.core import wire
from remusdb.core.messages import Commit, unpack
from remusdb.core.wire import BULK, HEADER_BYTES, MAGIC, Frame, FrameType
from remusdb.errors import BadFrame
from remusdb.says import says

LOOK_BYTES: Final = 1 << 20  # searched at a time
TRIES: Final = 4  # times the stream's length may be checked for frames that are none; besides a frame of the largest
EPOCHS_KEPT: Final = 64  # of which it is counted what came: more are never under way

At = Callable[[int, int], bytes]  # offset, count -> so many bytes, fewer at the end


class Piece(Struct, frozen=True, kw_only=True):
    """A frame of a captured stream, or bytes that are none."""

    offset: Annotated[int, says("where it begins in the file")]
    size_bytes: Annotated[int, says("of it, with its header")]
    is_frame: Annotated[bool, says("it is a frame whose checksum holds")]
    type: Annotated[str, says("of the frame; empty: it is none")] = ""
    term: Annotated[int, says("of the frame")] = 0
    epoch: Annotated[int, says("of the frame")] = 0
    content: Annotated[dict[str, str | int | float], says("what it says, by its type")] = {}
    fault: Annotated[str, says("what is wrong with it, in words; empty: nothing")] = ""


def dissect(at: At, size: int) -> Iterator[Piece]:
    """The pieces of a stream of `size` bytes, in their order."""
    came: dict[int, list[int]] = {}  # epoch -> bulk frames, their bytes
    offset, spare = 0, [TRIES * size + wire.MAX_PAYLOAD]
    while offset < size:
        try:
            frame = _frame(at, offset, size, spare)
        except BadFrame as exc:
            following = _next(at, offset + 1, size, spare)
            yield Piece(offset=offset, size_bytes=following - offset, is_frame=False, fault=f"{exc}")
            offset = following
            continue
        length = HEADER_BYTES + len(frame.payload)
        yield _piece(frame, offset, length, came)
        offset += length


def _frame(at: At, offset: int, size: int, spare: list[int]) -> Frame:
    header = wire.decode_header(at(offset, HEADER_BYTES))
    if offset + HEADER_BYTES + header.length > size:
        left = size - offset - HEADER_BYTES
        raise BadFrame(f"the stream ends within a {header.type.name} frame: {left} of {header.length} bytes")
    payload = at(offset + HEADER_BYTES, header.length)
    try:
        wire.check_payload(header, payload)
    except BadFrame:
        spare[0] -= header.length
        raise
    return Frame(header.type, header.term, header.epoch, payload)


def _next(at: At, offset: int, size: int, spare: list[int]) -> int:
    """Where the next frame begins; the end of the stream if there is none, or too much looks like one."""
    while offset < size:
        found = at(offset, LOOK_BYTES)
        place = found.find(MAGIC)
        while place >= 0:
            try:
                _frame(at, offset + place, size, spare)
                return offset + place
            except BadFrame:
                place = found.find(MAGIC, place + 1)
            if spare[0] < 0:
                return size
        offset += max(1, len(found) - len(MAGIC) + 1)
    return size


def _piece(frame: Frame, offset: int, length: int, came: dict[int, list[int]]) -> Piece:
    from remusdb.core.describe import describe  # late: numpy is slow to import, and most commands need none

    content: dict[str, str | int | float] = {}
    fault = ""
    try:
        content = describe(frame)
        if frame.type in BULK:
            counted = came.setdefault(frame.epoch, [0, 0])
            counted[0] += 1
            counted[1] += len(frame.payload)
            if len(came) > EPOCHS_KEPT:
                del came[next(iter(came))]
        elif frame.type == FrameType.COMMIT and frame.epoch:  # epoch 0, the initial sync, is counted otherwise
            fault = _lacking(unpack(Commit, frame.payload), came.pop(frame.epoch, [0, 0]))
    except BadFrame as exc:
        fault = f"{exc}"
    return Piece(
        offset=offset, size_bytes=length, is_frame=True, type=frame.type.name, term=frame.term, epoch=frame.epoch,
        content=content, fault=fault,
    )  # fmt: skip


def _lacking(commit: Commit, came: list[int]) -> str:
    if [commit.frames, commit.payload_bytes] == came:
        return ""
    return (
        f"of its {commit.frames} frames with {commit.payload_bytes} bytes there are {came[0]} with {came[1]} in front "
        "of it: it would not be committed"
    )
