# SPDX-License-Identifier: Apache-2.0
"""Which acknowledgements are owed: those that wait for the applier, and how many a primary may have outstanding.

Invariant: a primary that waits for its acknowledgements never has more than `WINDOW_MAX` epochs outstanding, since it
cuts none before (`core/pipeline.py`); one that sends more ignores the protocol, and would fill this host's memory.
"""

from __future__ import annotations

from remusdb.errors import BadFrame

WINDOW_MAX = 16  # the largest protection.window of host.toml


class Hopeless(BadFrame):
    """What a session that is resumed would bring again, for it sends the same bytes: it must end."""


class Unbridled(Hopeless):
    """The primary does not wait for acknowledgements."""


class Owed:
    """The acknowledgements of one session."""

    def __init__(self) -> None:
        self._acked = 0  # the newest epoch that the primary was told is here
        self.waits: int | None = None  # the newest whose ACK waits for the applier, if one does

    def told(self, committed: int) -> None:
        """A WELCOME or an ACK tells the primary what is here: nothing is owed."""
        self._acked, self.waits = committed, None

    def came(self, epoch: int) -> None:
        """An epoch is here, whole. Unbridled when it should not have been sent yet."""
        if epoch > self._acked + WINDOW_MAX:
            raise Unbridled(
                f"epoch {epoch} came, with {self._acked} acknowledged: a primary has {WINDOW_MAX} outstanding at most"
            )

    def wait(self, epoch: int) -> None:
        """Its ACK waits for the applier."""
        self.waits = epoch
