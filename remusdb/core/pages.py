# SPDX-License-Identifier: Apache-2.0
"""Dirty pages of one RAM block as PAGES payloads, and back.

    payload  encoding u8 (1 delta, 2 full), 0 u8, block u16, zero pages u32, data pages u32, lines u32: 16 bytes;
             then the body, for `delta` as one zstd frame (level 1), for `full` as it is:
    full     data pages x 4096 bytes; gaps of their numbers, u32 each
    delta    lines x 64 bytes; data pages x u64: which lines these are; gaps of the data, of the zero pages' numbers
    gaps     the first number, then every number minus the one before it; numbers grow strictly

`delta` is measured against the *shadow*: the content that was captured last, which is what the backup has
or will have once the epochs before this one are applied. A page that did not change is dropped, one that
became zero is an index alone; of any other the lines of 64 bytes that changed go, XORed with their shadow. `full` is
the baseline that the delta is measured against: every page that was given, whole, with no use of the shadow.

Invariant: payloads decode to exactly what the encoder read, in any order within an epoch: no page is in two.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import zstandard
from numpy.typing import NDArray

from remusdb.core.pagework import DATA, LINE_BYTES, LINES, PAGE_BYTES, ZERO, Bytes, Masks, bits, delta, patch
from remusdb.core.zstdframe import decompress
from remusdb.errors import BadFrame

PAYLOAD_PAGES = 2048  # data pages a payload: 8 MiB, half of wire.MAX_PAYLOAD
PAYLOAD_ZEROS = 65536  # zero pages a payload
LEVEL = 1

Encoding = Literal["delta", "full"]
Buffer = bytes | bytearray | memoryview

_HEAD: Final = struct.Struct("<BBHIII")
_CODES: Final[dict[Encoding, int]] = {"delta": 1, "full": 2}
_STEP = 256  # pages that are compared in one call
_GAP_BYTES, _MASK_BYTES = 4, 8


@dataclass(frozen=True)
class PagesEncoded:
    """What `encode_pages` made of the pages it was given."""

    payloads: list[bytes]
    pages: int  # given
    changed: int  # of these, sent in any form
    zero: int  # of these, sent as an index alone


@dataclass(frozen=True)
class PagesDecoded:
    """One payload: `zero` pages are now zero, what `numbers` are now tells `resolve`. Arrays are read-only."""

    block: int
    encoding: Encoding
    zero: NDArray[np.int64]
    numbers: NDArray[np.int64]
    data: Bytes  # `full`: (len(numbers), 4096); `delta`: the lines that changed, (n, 64), XORed with what was there
    masks: Masks  # `delta`: which lines of each page these are

    def require_within(self, pages: int) -> None:
        """BadFrame unless every page lies in a block of `pages` pages; to be called before anything is applied."""
        for numbers in (self.zero, self.numbers):
            if len(numbers) and numbers[-1] >= pages:
                raise BadFrame(f"page {numbers[-1]} is outside of RAM block {self.block} ({pages} pages)")


class _PerThread(threading.local):
    """zstd contexts and work buffers: costly to make, of one thread each."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.kinds = np.empty(_STEP, np.uint8)
        self.masks = np.empty(PAYLOAD_PAGES, np.uint64)
        tail = PAYLOAD_PAGES * (_MASK_BYTES + _GAP_BYTES) + PAYLOAD_ZEROS * _GAP_BYTES
        self.body = np.empty(PAYLOAD_PAGES * PAGE_BYTES + tail, np.uint8)


_mine = _PerThread()


def encode_pages(
    block: int,
    numbers: NDArray[np.int64],
    content: Bytes,
    shadow: Bytes,
    encoding: Encoding,
) -> PagesEncoded:
    """Payloads for `content` (n, 4096), the pages `numbers` (n, strictly growing) of RAM block `block`.

    `shadow` (pages of the block, 4096) is brought up to date for `delta` and not touched for `full`.
    ValueError for numbers that do not grow, or lie outside of the shadow.
    """
    _check_numbers(numbers, content, shadow)
    if encoding == "full":
        return _encode_full(block, numbers, content)
    return _encode_delta(block, numbers, content, shadow)


def decode_pages(payload: Buffer) -> PagesDecoded:
    """What a PAGES payload holds. BadFrame, before any allocation of a wrong size, if it is not well formed."""
    if len(payload) < _HEAD.size:
        raise BadFrame(f"a PAGES payload of {len(payload)} bytes has no head")
    code, zero_byte, block, zeros, pages, lines = _HEAD.unpack_from(payload)
    encoding = next((name for name, known in _CODES.items() if known == code), None)
    if encoding is None or zero_byte:
        raise BadFrame(f"a PAGES payload of no known encoding ({code}, {zero_byte})")
    if pages > PAYLOAD_PAGES or zeros > PAYLOAD_ZEROS or not pages + zeros or (encoding == "full" and zeros):
        raise BadFrame(f"a PAGES payload cannot hold {pages} pages and {zeros} zero pages ({encoding})")
    if not (pages <= lines <= pages * LINES if encoding == "delta" else lines == 0):
        raise BadFrame(f"a PAGES payload of {pages} pages cannot hold {lines} lines ({encoding})")
    data_bytes = lines * LINE_BYTES if encoding == "delta" else pages * PAGE_BYTES
    mask_bytes = pages * _MASK_BYTES if encoding == "delta" else 0
    size = data_bytes + mask_bytes + (pages + zeros) * _GAP_BYTES
    body = np.frombuffer(_body(encoding, memoryview(payload)[_HEAD.size :], size), np.uint8)
    gaps = body[data_bytes + mask_bytes :].view(np.uint32)
    masks = body[data_bytes : data_bytes + mask_bytes].view(np.uint64)
    if encoding == "delta" and (not masks.all() or int(np.count_nonzero(bits(masks))) != lines):
        raise BadFrame(f"a PAGES payload of {lines} lines says otherwise of its pages")
    data = body[:data_bytes].reshape(-1, LINE_BYTES if encoding == "delta" else PAGE_BYTES)
    data.flags.writeable = masks.flags.writeable = False
    decoded = PagesDecoded(block, encoding, _from_gaps(gaps[pages:]), _from_gaps(gaps[:pages]), data, masks)
    _check_disjoint(decoded)
    return decoded


def resolve(decoded: PagesDecoded, old: Bytes) -> Bytes:
    """The new content of `decoded.numbers`, (n, 4096). `old` (n, 4096), their content so far, may be changed to it."""
    if decoded.encoding == "full":
        return decoded.data
    patch(decoded.masks, decoded.data, old)
    return old


class _Batch:
    """Collects the pages of one payload in this thread's buffers; full ones go to `payloads`."""

    def __init__(self, block: int) -> None:
        self.payloads: list[bytes] = []
        self.changed = self.zero = 0
        self._block = block
        self._clear()

    def add(self, numbers: NDArray[np.int64], content: Bytes, shadow: Bytes) -> None:
        """Take what changed of at most _STEP pages."""
        if self._pages + len(numbers) > PAYLOAD_PAGES or self._zeros + len(numbers) > PAYLOAD_ZEROS:
            self.flush()
        kinds = _mine.kinds[: len(numbers)]
        room = _mine.body[self._lines * LINE_BYTES : PAYLOAD_PAGES * PAGE_BYTES]
        kept, lines = delta(numbers, content, shadow, _mine.masks[self._pages :], room, kinds)
        if not kinds.any():  # the common case of the initial sync: zero against zero
            return
        zeros = numbers[kinds == ZERO]
        self._kept_numbers.append(numbers[kinds == DATA])
        self._zero_numbers.append(zeros)
        self._pages += kept
        self._lines += lines
        self._zeros += len(zeros)

    def flush(self) -> None:
        """Close the payload, if it holds anything."""
        if not self._pages + self._zeros:
            return
        end = self._lines * LINE_BYTES
        gaps = [_to_gaps(np.concatenate(numbers)) for numbers in (self._kept_numbers, self._zero_numbers)]
        for raw in (_mine.masks[: self._pages].view(np.uint8), *(one.view(np.uint8) for one in gaps)):
            _mine.body[end : end + len(raw)] = raw
            end += len(raw)
        head = _HEAD.pack(_CODES["delta"], 0, self._block, self._zeros, self._pages, self._lines)
        self.payloads.append(head + _mine.compressor.compress(_mine.body[:end].data))
        self.changed += self._pages + self._zeros
        self.zero += self._zeros
        self._clear()

    def _clear(self) -> None:
        self._pages = self._zeros = self._lines = 0
        self._kept_numbers: list[NDArray[np.int64]] = []
        self._zero_numbers: list[NDArray[np.int64]] = []


def _encode_delta(block: int, numbers: NDArray[np.int64], content: Bytes, shadow: Bytes) -> PagesEncoded:
    batch = _Batch(block)
    for at in range(0, len(numbers), _STEP):
        batch.add(numbers[at : at + _STEP], content[at : at + _STEP], shadow)
    batch.flush()
    return PagesEncoded(batch.payloads, len(numbers), batch.changed, batch.zero)


def _encode_full(block: int, numbers: NDArray[np.int64], content: Bytes) -> PagesEncoded:
    payloads = []
    for at in range(0, len(numbers), PAYLOAD_PAGES):
        part = numbers[at : at + PAYLOAD_PAGES]
        head = _HEAD.pack(_CODES["full"], 0, block, 0, len(part), 0)
        payloads.append(b"".join((head, content[at : at + len(part)].data, _to_gaps(part).data)))
    return PagesEncoded(payloads, len(numbers), len(numbers), 0)


def _body(encoding: Encoding, body: memoryview, size: int) -> Buffer:
    """The body, decompressed, of exactly `size` bytes."""
    if encoding == "full":
        if len(body) != size:
            raise BadFrame(f"a PAGES body of {len(body)} bytes, {size} were announced")
        return body
    return decompress(body, "a PAGES body", size, size)


def _to_gaps(numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
    return np.diff(numbers, prepend=0).astype(np.uint32)


def _from_gaps(gaps: NDArray[np.uint32]) -> NDArray[np.int64]:
    if (gaps[1:] == 0).any():
        raise BadFrame("a PAGES payload names a page twice")
    return np.cumsum(gaps, dtype=np.int64)


def _check_disjoint(decoded: PagesDecoded) -> None:
    both = np.concatenate((decoded.zero, decoded.numbers))
    if len(np.unique(both)) != len(both):
        raise BadFrame("a PAGES payload says of one page that it is zero and that it is not")


def _check_numbers(numbers: NDArray[np.int64], content: Bytes, shadow: Bytes) -> None:
    if content.shape != (len(numbers), PAGE_BYTES) or shadow.shape[1:] != (PAGE_BYTES,):
        raise ValueError(f"{len(numbers)} page numbers with content {content.shape} and shadow {shadow.shape}")
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >= len(shadow) or (np.diff(numbers) <= 0).any()):
        raise ValueError(f"page numbers must grow, within the {len(shadow)} pages of the block")
