# SPDX-License-Identifier: Apache-2.0
"""The outbox between a thread that sends and one that takes its connection away."""

from __future__ import annotations

import threading
from typing import Any, cast

from remusdb.core.messages import Commit
from remusdb.errors import PeerUnreachable
from remusdb.worker.encoder import EpochFrames
from remusdb.worker.outbox import Outbox


class BlockedStream:
    """A connection to a peer that does not read: `send_many` returns only when it is closed."""

    def __init__(self) -> None:
        self.sending, self.closed = threading.Event(), threading.Event()

    def send_many(self, _frames: Any) -> None:
        self.sending.set()
        assert self.closed.wait(5)
        raise PeerUnreachable("closed on this side")

    def close(self) -> None:
        self.closed.set()


class Recorder:
    """A connection that remembers the epochs."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def send_many(self, frames: Any) -> None:
        self.epochs += [epoch for _kind, _term, epoch, _payload in frames]

    def close(self) -> None:
        return


def epoch(number: int) -> EpochFrames:
    return EpochFrames(number, [], Commit(0, 0, []))


def test_a_blocked_sender_is_freed_and_its_epoch_goes_out_again() -> None:
    outbox = Outbox()
    blocked, again = cast(Any, BlockedStream()), cast(Any, Recorder())
    failed: list[BaseException] = []

    def ship() -> None:
        try:
            outbox.ship(epoch(1))
        except BaseException as exc:
            failed.append(exc)

    outbox.attach(blocked, 1, 0)
    sender = threading.Thread(target=ship)
    sender.start()
    assert blocked.sending.wait(5)
    outbox.detach()
    sender.join(5)
    assert not sender.is_alive() and failed == []
    outbox.ship(epoch(2))
    outbox.attach(again, 1, 0)
    assert again.epochs == [1, 2]


def test_what_the_agent_holds_is_not_sent_again() -> None:
    outbox, again = Outbox(), cast(Any, Recorder())
    for number in (1, 2, 3):
        outbox.ship(epoch(number))
    outbox.acked(1)
    outbox.attach(again, 1, 2)
    assert again.epochs == [3]
