# SPDX-License-Identifier: Apache-2.0
"""What the primary makes of the agent's proof: a refusal is protect's, and nothing unproven is told as plain."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from remusdb.control.status import VmStatus
from remusdb.core.messages import Proof
from remusdb.errors import CannotProtect, RefusedForSafety
from remusdb.reasons import Code, Reason
from remusdb.troubles import Troubles
from remusdb.worker import proof as module
from remusdb.worker.metrics import Metrics
from remusdb.worker.proof import StandbyProof

PROVEN = Proof("proven", 5, 3, 80.0)
REFUSED = Proof("refused", 6, 3, reason="Unknown savevm section", hint="the same QEMU")
UNABLE = Proof("unable", 7, reason="no memory")


class FakeSession:
    """As much of a session as a proof sees of it."""

    def __init__(self, asked: bool = True) -> None:
        spec: Any = SimpleNamespace(asked=asked, peer=SimpleNamespace(name="b"))
        self.metrics = Metrics(Troubles(lambda *_: None))
        self.over, self.ended = threading.Event(), threading.Event()
        self.events: list[tuple[str, Code]] = []
        journal: Any = SimpleNamespace(tell=self.tell, metrics=self.metrics)
        self.proof = StandbyProof(spec, journal, lambda: True)

    def tell(self, event: str, _was: str, why: Reason) -> None:
        self.events.append((event, why.code))

    def protect(self) -> None:
        """The end of `Session.protect`."""
        self.proof.wait(lambda *_: None, self.over, self.ended)
        self.metrics.set("protected", Reason.of(Code.FOLLOWING, peer="b"))
        self.proof.told()

    @property
    def status(self) -> VmStatus:
        return self.metrics.status(VmStatus(vm="vm"))


def test_protect_waits_for_the_proof() -> None:
    session = FakeSession()
    threading.Timer(0.2, session.proof.take, (PROVEN,)).start()
    began = time.monotonic()
    session.protect()
    assert time.monotonic() - began >= 0.2
    status = session.status
    assert (status.proven_at_ns, status.proven_epoch, status.proven_ms) == (5, 3, 80.0)
    assert (status.reason, status.unproven, session.events) == ("epoch by epoch to b", "", [])


def test_a_refusal_is_protects_with_qemus_words() -> None:
    session = FakeSession()
    session.proof.take(REFUSED)
    with pytest.raises(CannotProtect, match=r"agent b.*refuses.*Unknown savevm section") as caught:
        session.protect()
    assert caught.value.hint == "the same QEMU"
    assert [event for event, _ in session.events] == ["unproven"]


def test_where_nobody_waits_a_refusal_is_told_and_protection_goes_on() -> None:
    """Epochs on a host that must boot them are worth more than none; a planned move there is refused."""
    session = FakeSession(asked=False)
    session.proof.take(REFUSED)
    session.protect()
    assert "would boot its disks: Unknown savevm section" in session.status.reason
    assert session.status.hint == "the same QEMU"
    assert session.events == [("unproven", Code.UNPROVEN_REFUSED)]
    with pytest.raises(RefusedForSafety, match="Unknown savevm section"):
        session.proof.require_not_refused()


def test_what_could_not_be_tried_is_told_until_it_could() -> None:
    session = FakeSession()
    session.proof.take(UNABLE)
    session.protect()
    session.proof.require_not_refused()
    session.proof.take(Proof("unable", 8, reason="no memory"))  # tried again, in vain: no news
    assert "not proven" in session.status.reason and "no memory" in session.status.unproven
    session.proof.take(PROVEN)
    assert session.status.reason == "epoch by epoch to b" and session.status.proven_at_ns == 5
    session.proof.take(PROVEN)  # as after a connection that was made again
    assert session.events == [("unproven", Code.UNPROVEN_UNABLE), ("proven", Code.PROVEN)]


def test_an_agent_that_says_nothing_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROOF_S", 0.1)
    session = FakeSession()
    session.protect()
    assert session.events == [("unproven", Code.UNPROVEN_SILENT)]


def test_the_sessions_end_is_not_waited_for_either() -> None:
    session = FakeSession()
    session.over.set()
    session.ended.set()
    began = time.monotonic()
    session.proof.wait(lambda *_: None, session.over, session.ended)
    assert time.monotonic() - began < 1
