# SPDX-License-Identifier: Apache-2.0
"""The bytes of one write log between the thread that receives them and the thread that cuts epochs.

Owns every byte received and not yet taken. Invariant: bytes are taken once, in order; positions count from the
first byte of the log and only grow. At most `max_bytes` are held, unless someone waits for more or a cut is
being made: the writer behind the stream (the guest) is then held up, never the cut.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from remusdb.deadline import Deadline
from remusdb.errors import DiskError


class LogStream:
    """A bounded byte queue addressed by position (bytes since the start of the log)."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.failed: str | None = None
        self._chunks: deque[bytes] = deque()
        self._received = 0
        self._taken = 0
        self._wanted = 0
        self._cuts = 0
        self._discarding = False
        self._changed = threading.Condition()

    @property
    def pending_bytes(self) -> int:
        """Bytes received and not yet taken."""
        return self._received - self._taken

    @property
    def pressed(self) -> bool:
        """The bound is reached, so the guest's writes wait: cut now."""
        return self.pending_bytes >= self.max_bytes

    def fail(self, reason: str) -> None:
        """Nothing more will come. The first reason stays."""
        with self._changed:
            self.failed = self.failed or reason
            self._changed.notify_all()

    def discard(self) -> None:
        """Throw away what is here and what comes."""
        with self._changed:
            self._discarding = True
            self._chunks.clear()
            self._taken = self._received
            self._changed.notify_all()

    # --- the receiving side ---

    def put(self, chunk: bytes) -> None:
        """Add what was received."""
        with self._changed:
            if self._discarding:
                return
            self._chunks.append(chunk)
            self._received += len(chunk)
            if self._received >= self._wanted:
                self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Return when more may be received, or when the stream failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room() or self.failed is not None)

    def _has_room(self) -> bool:
        return self._discarding or self._cuts > 0 or not self.pressed or self._received < self._wanted

    # --- the taking side ---

    @contextmanager
    def unbounded(self) -> Iterator[None]:
        """Within it the bound does not hold: a VM that is being stopped waits for its writes in flight."""
        with self._changed:
            self._cuts += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._cuts -= 1

    def take(self, upto: int, timeout_s: float) -> bytes:
        """Remove and return the bytes up to position `upto`, waiting until they are here."""
        deadline = Deadline.after(timeout_s)
        with self._changed:
            if upto < self._taken and not self._discarding:
                raise DiskError(f"write log position {upto} is already taken (now at {self._taken})")
            self._wanted = upto
            self._changed.notify_all()  # the receiver may be waiting for room
            self._changed.wait_for(
                lambda: self._received >= upto or self.failed is not None or self._discarding,
                deadline.left(),
            )
            self._check(upto, timeout_s)
            return self._remove(upto - self._taken)

    def _check(self, upto: int, timeout_s: float) -> None:
        if self.failed is not None:
            raise DiskError(f"disk mirror lost: {self.failed}", hint="unprotect the VM and protect it again")
        if self._discarding:
            raise DiskError("the write log was closed")
        if self._received < upto:
            raise DiskError(f"write log at {self._received} of {upto} bytes after {timeout_s} s")

    def _remove(self, length: int) -> bytes:
        parts, missing = [], length
        while missing > 0:
            chunk = self._chunks.popleft()
            if len(chunk) > missing:
                self._chunks.appendleft(chunk[missing:])
                chunk = chunk[:missing]
            parts.append(chunk)
            missing -= len(chunk)
        self._taken += length
        self._changed.notify_all()
        return b"".join(parts)
