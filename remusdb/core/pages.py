# SPDX-License-Identifier: Apache-2.0
"""Dirty pages of one RAM block as PAGES payloads, and back.

    payload  encoding u8 (1 delta, 2 full, 3 fresh), 0 u8, block u16, zero pages u32, data pages u32, lines u32, that is
             16 bytes; then the body, for `full` as it is, else as one zstd frame (level 1):
    full     data pages x 4096 bytes; gaps of their numbers, u32 each
    delta    lines x 64 bytes; data pages x u64: which lines these are; gaps of the data, of the zero pages' numbers
    fresh    the same as delta
    gaps     the first number, then every number minus the one before it; numbers grow strictly

`delta` is measured against the *shadow*: the content that was captured last, which is what the backup has
or will have once the epochs before this one are applied. A page that did not change is dropped, one that
became zero is an index alone; of any other the lines of 64 bytes that changed go, XORed with their shadow. `fresh` is
of pages that have no shadow (core/pagecache.py): their lines that are not zero, whatever the backup has there. `full`
is the baseline that the delta is measured against: every page that was given, whole, with no use of the shadow.

Invariant: payloads decode to exactly what the encoder read, in any order within an epoch: no page is in two.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from remusdb.core.pagework import LINE_BYTES, LINES, PAGE_BYTES, Bytes, Masks, bits, patch
from remusdb.core.zstdframe import decompress
from remusdb.errors import BadFrame

PAYLOAD_PAGES = 2048  # data pages a payload: 8 MiB, half of wire.MAX_PAYLOAD
PAYLOAD_ZEROS = 65536  # zero pages a payload

Encoding = Literal["delta", "full", "fresh"]
Buffer = bytes | bytearray | memoryview

HEAD: Final = struct.Struct("<BBHIII")
CODES: Final[dict[Encoding, int]] = {"delta": 1, "full": 2, "fresh": 3}
GAP_BYTES, MASK_BYTES = 4, 8


@dataclass(frozen=True)
class PagesDecoded:
    """One payload: `zero` pages are now zero, what `numbers` are now tells `resolve`. Arrays are read-only."""

    block: int
    encoding: Encoding
    zero: NDArray[np.int64]
    numbers: NDArray[np.int64]
    data: Bytes  # `full`: (len(numbers), 4096); else the lines that changed, (n, 64), XORed with what was there
    masks: Masks  # not for `full`: which lines of each page these are

    def require_within(self, pages: int) -> None:
        """BadFrame unless every page lies in a block of `pages` pages; to be called before anything is applied."""
        for numbers in (self.zero, self.numbers):
            if len(numbers) and numbers[-1] >= pages:
                raise BadFrame(f"page {numbers[-1]} is outside of RAM block {self.block} ({pages} pages)")


def decode_pages(payload: Buffer) -> PagesDecoded:
    """What a PAGES payload holds. BadFrame, before any allocation of a wrong size, if it is not well formed."""
    if len(payload) < HEAD.size:
        raise BadFrame(f"a PAGES payload of {len(payload)} bytes has no head")
    code, zero_byte, block, zeros, pages, lines = HEAD.unpack_from(payload)
    encoding = next((name for name, known in CODES.items() if known == code), None)
    if encoding is None or zero_byte:
        raise BadFrame(f"a PAGES payload of no known encoding ({code}, {zero_byte})")
    if pages > PAYLOAD_PAGES or zeros > PAYLOAD_ZEROS or not pages + zeros or (encoding == "full" and zeros):
        raise BadFrame(f"a PAGES payload cannot hold {pages} pages and {zeros} zero pages ({encoding})")
    if not (pages <= lines <= pages * LINES if encoding != "full" else lines == 0):
        raise BadFrame(f"a PAGES payload of {pages} pages cannot hold {lines} lines ({encoding})")
    data_bytes = lines * LINE_BYTES if encoding != "full" else pages * PAGE_BYTES
    mask_bytes = pages * MASK_BYTES if encoding != "full" else 0
    size = data_bytes + mask_bytes + (pages + zeros) * GAP_BYTES
    body = np.frombuffer(_body(encoding, memoryview(payload)[HEAD.size :], size), np.uint8)
    gaps = body[data_bytes + mask_bytes :].view(np.uint32)
    masks = body[data_bytes : data_bytes + mask_bytes].view(np.uint64)
    if encoding != "full" and (not masks.all() or int(np.count_nonzero(bits(masks))) != lines):
        raise BadFrame(f"a PAGES payload of {lines} lines says otherwise of its pages")
    data = body[:data_bytes].reshape(-1, LINE_BYTES if encoding != "full" else PAGE_BYTES)
    data.flags.writeable = masks.flags.writeable = False
    decoded = PagesDecoded(block, encoding, _from_gaps(gaps[pages:]), _from_gaps(gaps[:pages]), data, masks)
    _check_disjoint(decoded)
    return decoded


def resolve(decoded: PagesDecoded, old: Bytes) -> Bytes:
    """The new content of `decoded.numbers`, (n, 4096).

    `old` (n, 4096), their content so far, matters for `delta` alone, and may be changed to the new one.
    """
    if decoded.encoding == "full":
        return decoded.data
    if decoded.encoding == "fresh":
        old = np.zeros((len(decoded.numbers), PAGE_BYTES), np.uint8)
    patch(decoded.masks, decoded.data, old)
    return old


def _body(encoding: Encoding, body: memoryview, size: int) -> Buffer:
    """The body, decompressed, of exactly `size` bytes."""
    if encoding == "full":
        if len(body) != size:
            raise BadFrame(f"a PAGES body of {len(body)} bytes, {size} were announced")
        return body
    return decompress(body, "a PAGES body", size, size)


def _from_gaps(gaps: NDArray[np.uint32]) -> NDArray[np.int64]:
    if (gaps[1:] == 0).any():
        raise BadFrame("a PAGES payload names a page twice")
    return np.cumsum(gaps, dtype=np.int64)


def _check_disjoint(decoded: PagesDecoded) -> None:
    both = np.concatenate((decoded.zero, decoded.numbers))
    if len(np.unique(both)) != len(both):
        raise BadFrame("a PAGES payload says of one page that it is zero and that it is not")
