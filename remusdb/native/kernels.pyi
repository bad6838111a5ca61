# SPDX-License-Identifier: Apache-2.0
"""What kernels.c has; core/pagework.py says what they do. ValueError for a buffer that is too small."""

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
