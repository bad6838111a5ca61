# SPDX-License-Identifier: Apache-2.0
"""What kernels.c, scan.c and release.c have: see core/pagework.py, capture/pagemap.py and core/release/skip.py.

ValueError for a buffer that is too small.
"""

from _typeshed import ReadableBuffer, WriteableBuffer

def delta(
    numbers: ReadableBuffer,
    content: ReadableBuffer,
    shadow: WriteableBuffer,
    masks: WriteableBuffer,
    lines: WriteableBuffer,
    kinds: WriteableBuffer,
) -> tuple[int, int]: ...
def patch(masks: ReadableBuffer, lines: ReadableBuffer, pages: WriteableBuffer) -> None: ...
def collect(
    fd: int,
    start: int,
    end: int,
    base: int,
    gap: int,
    span: int,
    seen: WriteableBuffer,
    named: WriteableBuffer,
    hot: ReadableBuffer,
) -> tuple[int, int, int]: ...
def skip_rows(data: ReadableBuffer, at: int, number: int) -> tuple[int, int]: ...
def skip_messages(data: ReadableBuffer, at: int) -> int: ...
