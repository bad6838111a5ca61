# SPDX-License-Identifier: Apache-2.0
"""Dirty pages of one RAM block as PAGES payloads, and back.

    payload  encoding u8 (1 delta, 2 full), 0 u8, block u16, zero pages u32, data pages u32, 0 u32: 16 bytes;
             then the body, for `delta` as one zstd frame (level 1), for `full` as it is:
    body     data pages x 4096 bytes; gaps of the data pages' numbers, u32 each; gaps of the zero pages' numbers
    gaps     the first number, then every number minus the one before it; numbers grow strictly

`delta` is measured against the *shadow*: the content that was captured last, which is what the backup has
or will have once the epochs before this one are applied. A page that did not change is dropped, one that
became zero is an index alone, any other is XORed with its shadow. `full` is the baseline that the delta is
measured against: every page that was given, whole, with no use of the shadow.

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

from remusdb.core.zstdframe import decompress
from remusdb.errors import BadFrame

PAGE_BYTES = 4096
PAYLOAD_PAGES = 2048  # data pages a payload: 8 MiB, half of wire.MAX_PAYLOAD
PAYLOAD_ZEROS = 65536  # zero pages a payload
LEVEL = 1

Encoding = Literal["delta", "full"]
Buffer = bytes | bytearray | memoryview
Words = NDArray[np.uint64]  # pages as rows of 512 words: what numpy compares fastest

_HEAD: Final = struct.Struct("<BBHIII")
_CODES: Final[dict[Encoding, int]] = {"delta": 1, "full": 2}
_SLICE = 64  # pages worked on at once: 256 KiB each of content, shadow and XOR stay in the cache
_GAP_BYTES = 4


@dataclass(frozen=True)
class PagesEncoded:
    """What `encode_pages` made of the pages it was given."""

    payloads: list[bytes]
    pages: int  # given
    changed: int  # of these, sent in any form
    zero: int  # of these, sent as an index alone


@dataclass(frozen=True)
class PagesDecoded:
    """One payload: `zero` pages are now zero, `numbers[i]` goes with `data[i]` (see `resolve`)."""

    block: int
    encoding: Encoding
    zero: NDArray[np.int64]
    numbers: NDArray[np.int64]
    data: NDArray[np.uint8]  # (len(numbers), 4096), read-only

    def require_within(self, pages: int) -> None:
        """BadFrame unless every page lies in a block of `pages` pages; to be called before anything is applied."""
        for numbers in (self.zero, self.numbers):
            if len(numbers) and numbers[-1] >= pages:
                raise BadFrame(f"page {numbers[-1]} is outside of RAM block {self.block} ({pages} pages)")


class _PerThread(threading.local):
    """zstd contexts and work buffers: costly to make, of one thread each."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.old = np.empty((_SLICE, PAGE_BYTES // 8), np.uint64)
        self.xor = np.empty((_SLICE, PAGE_BYTES // 8), np.uint64)
        self.body = np.empty((PAYLOAD_PAGES * PAGE_BYTES + (PAYLOAD_PAGES + PAYLOAD_ZEROS) * _GAP_BYTES), np.uint8)


_mine = _PerThread()


def encode_pages(
    block: int,
    numbers: NDArray[np.int64],
    content: NDArray[np.uint8],
    shadow: NDArray[np.uint8],
    encoding: Encoding,
) -> PagesEncoded:
    """Payloads for `content` (n, 4096), the pages `numbers` (n, strictly growing) of RAM block `block`.

    `shadow` (pages of the block, 4096) is brought up to date for `delta` and not touched for `full`.
    ValueError for numbers that do not grow, or lie outside of the shadow.
    """
    _check_numbers(numbers, content, shadow)
    if encoding == "full":
        return _encode_full(block, numbers, content)
    return _encode_delta(block, numbers, content.view(np.uint64), shadow.view(np.uint64))


def decode_pages(payload: Buffer) -> PagesDecoded:
    """What a PAGES payload holds. BadFrame, before any allocation of a wrong size, if it is not well formed."""
    if len(payload) < _HEAD.size:
        raise BadFrame(f"a PAGES payload of {len(payload)} bytes has no head")
    code, zero_byte, block, zeros, pages, zero_word = _HEAD.unpack_from(payload)
    encoding = next((name for name, known in _CODES.items() if known == code), None)
    if encoding is None or zero_byte or zero_word:
        raise BadFrame(f"a PAGES payload of no known encoding ({code}, {zero_byte}, {zero_word})")
    if pages > PAYLOAD_PAGES or zeros > PAYLOAD_ZEROS or not pages + zeros or (encoding == "full" and zeros):
        raise BadFrame(f"a PAGES payload cannot hold {pages} pages and {zeros} zero pages ({encoding})")
    size = pages * PAGE_BYTES + (pages + zeros) * _GAP_BYTES
    body = np.frombuffer(_body(encoding, memoryview(payload)[_HEAD.size :], size), np.uint8)
    end = pages * PAGE_BYTES
    gaps = body[end:].view(np.uint32)
    data = body[:end].reshape(pages, PAGE_BYTES)
    data.flags.writeable = False
    decoded = PagesDecoded(block, encoding, _from_gaps(gaps[pages:]), _from_gaps(gaps[:pages]), data)
    _check_disjoint(decoded)
    return decoded


def resolve(decoded: PagesDecoded, old: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The new content of `decoded.numbers`, (n, 4096), where `old` (n, 4096) is their content so far."""
    if decoded.encoding == "full":
        return decoded.data
    return np.bitwise_xor(decoded.data.view(np.uint64), old.view(np.uint64)).view(np.uint8)


class _Batch:
    """Collects the pages of one payload in this thread's body buffer; full ones go to `payloads`."""

    def __init__(self, block: int) -> None:
        self.payloads: list[bytes] = []
        self.changed = self.zero = 0
        self._block = block
        self._rows: Words = _mine.body[: PAYLOAD_PAGES * PAGE_BYTES].view(np.uint64).reshape(PAYLOAD_PAGES, -1)
        self._clear()

    def add(self, numbers: NDArray[np.int64], xor: Words, keep: NDArray[np.bool_], blank: NDArray[np.bool_]) -> None:
        """Take the rows `keep` of `xor`, and of the rows `blank` the number; at most _SLICE rows."""
        if self._pages + len(numbers) > PAYLOAD_PAGES or self._zeros + len(numbers) > PAYLOAD_ZEROS:
            self.flush()
        kept = int(np.count_nonzero(keep))
        np.compress(keep, xor, axis=0, out=self._rows[self._pages : self._pages + kept])
        self._kept_numbers.append(numbers[keep])
        self._zero_numbers.append(numbers[blank])
        self._pages += kept
        self._zeros += int(np.count_nonzero(blank))

    def flush(self) -> None:
        """Close the payload, if it holds anything."""
        if not self._pages + self._zeros:
            return
        end = self._pages * PAGE_BYTES
        for chunks in (self._kept_numbers, self._zero_numbers):
            gaps = _to_gaps(np.concatenate(chunks)).view(np.uint8)
            _mine.body[end : end + len(gaps)] = gaps
            end += len(gaps)
        head = _HEAD.pack(_CODES["delta"], 0, self._block, self._zeros, self._pages, 0)
        self.payloads.append(head + _mine.compressor.compress(_mine.body[:end].data))
        self.changed += self._pages + self._zeros
        self.zero += self._zeros
        self._clear()

    def _clear(self) -> None:
        self._pages = self._zeros = 0
        self._kept_numbers: list[NDArray[np.int64]] = []
        self._zero_numbers: list[NDArray[np.int64]] = []


def _encode_delta(block: int, numbers: NDArray[np.int64], content: Words, shadow: Words) -> PagesEncoded:
    batch = _Batch(block)
    for at in range(0, len(numbers), _SLICE):
        _encode_slice(batch, numbers[at : at + _SLICE], content[at : at + _SLICE], shadow)
    batch.flush()
    return PagesEncoded(batch.payloads, len(numbers), batch.changed, batch.zero)


def _encode_slice(batch: _Batch, numbers: NDArray[np.int64], content: Words, shadow: Words) -> None:
    xor = np.bitwise_xor(content, _rows_of(shadow, numbers), out=_mine.xor[: len(numbers)])
    changed = np.bitwise_or.reduce(xor, axis=1) != 0
    if not changed.any():  # the common case of the initial sync: zero against zero
        return
    blank = changed & (np.bitwise_or.reduce(content, axis=1) == 0)
    batch.add(numbers, xor, changed & ~blank, blank)
    if changed.all():
        shadow[numbers] = content
    else:  # not the unchanged ones: the shadow of a page that was always zero is never even allocated
        shadow[numbers[changed]] = content[changed]


def _rows_of(shadow: Words, numbers: NDArray[np.int64]) -> Words:
    """The shadow of these pages: a view where they are neighbours, else this thread's copy."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first + 1 == len(numbers):
        return shadow[first : last + 1]
    # mode="clip" lets take() write to `out` unbuffered; the range was checked before.
    return np.take(shadow, numbers, axis=0, out=_mine.old[: len(numbers)], mode="clip")


def _encode_full(block: int, numbers: NDArray[np.int64], content: NDArray[np.uint8]) -> PagesEncoded:
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


def _check_numbers(numbers: NDArray[np.int64], content: NDArray[np.uint8], shadow: NDArray[np.uint8]) -> None:
    if content.shape != (len(numbers), PAGE_BYTES) or shadow.shape[1:] != (PAGE_BYTES,):
        raise ValueError(f"{len(numbers)} page numbers with content {content.shape} and shadow {shadow.shape}")
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >= len(shadow) or (np.diff(numbers) <= 0).any()):
        raise ValueError(f"page numbers must grow, within the {len(shadow)} pages of the block")
