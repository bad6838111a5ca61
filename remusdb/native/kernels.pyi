# SPDX-License-Identifier: Apache-2.0
"""What kernels.c and scan.c have; core/pagework.py and capture/pagemap.py say what they do.

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
