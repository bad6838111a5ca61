# SPDX-License-Identifier: Apache-2.0
"""Exactly one zstd frame of a stated size: the only form in which what is compressed goes to another host, or comes.

python-zstandard goes by the size that a frame states and gives all of it, whatever `max_output_size` says: 98 KB that
state 3 GiB become 3 GiB. So what the frame states is looked at before any of it is decompressed.
"""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from remusdb.errors import BadFrame

MAGIC: Final = b"\x28\xb5\x2f\xfd"  # of an ordinary frame; a skippable one begins otherwise and holds nothing

LEVEL: Final = 1  # the fastest that finds anything; an epoch's output waits for it

Buffer = bytes | bytearray | memoryview


class _PerThread(threading.local):
    """zstd contexts are costly to make and belong to one thread each."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_mine = _PerThread()


def compress(data: Buffer) -> bytes:
    """The frame that holds `data`, and states its size."""
    return _mine.compressor.compress(data)


def decompress(data: Buffer, what: str, least: int, most: int) -> bytes:
    """The content of the frame in `data`, of `least` to `most` bytes. BadFrame, which names `what`, for anything else:
    no stated size or another one, a dictionary, damage, bytes behind the frame. Memory: the content's, at most."""
    try:
        if bytes(data[: len(MAGIC)]) != MAGIC:
            raise BadFrame(f"{what} does not decompress: it is no zstd frame")
        stated = zstandard.get_frame_parameters(data)
        size = stated.content_size
        if not least <= size <= most:  # a frame that states none: CONTENTSIZE_UNKNOWN, 2**64 - 1
            allowed = f"{most} were announced" if least == most else f"the limit is {most}"
            raise BadFrame(f"{what} claims {size} bytes, {allowed}")
        if stated.dict_id:
            raise BadFrame(f"{what} needs a dictionary")
        content = _mine.decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise BadFrame(f"{what} does not decompress: {error}") from error
    if len(content) != size:
        raise BadFrame(f"{what} holds {len(content)} bytes and claims {size}")
    return content
