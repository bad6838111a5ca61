# SPDX-License-Identifier: Apache-2.0
"""Actions that were begun: each in a thread of its own, with its progress and its end for the pages to show.

    running ──▶ done | failed

Invariant: one at a time a VM, and at most `MOST_RUNNING` at all. The newest of each VM is kept until the console ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from remusdb.cli import words
from remusdb.console.actions import Action
from remusdb.control.api import Rehearsed, Switched, TakenOver, Unprotected
from remusdb.control.client import call
from remusdb.control.codec import Progress, Request
from remusdb.control.status import VmStatus
from remusdb.errors import RefusedForSafety, RemusError
from remusdb.threads import spawn

log = logging.getLogger(__name__)

MOST_RUNNING = 8
MOST_KEPT = 500


@dataclass
class Work:
    """One of them."""

    vm: str
    action: Action
    state: Literal["running", "done", "failed"] = "running"
    said: str = "asked for"
    hint: str = ""
    share: float | None = None  # of the step that is done; None: not known
    began: float = field(default_factory=time.time)


class Works:
    """Begins them. `ask` asks a daemon: socket, request, what to do with progress."""

    def __init__(self, run_dir: Path, ask: Callable[..., Any] = call) -> None:
        self._run_dir, self._ask = run_dir, ask
        self._lock = threading.Lock()
        self._works: dict[str, Work] = {}

    def of(self, vm: str) -> Work | None:
        """The newest of this VM."""
        return self._works.get(vm)

    def begin(self, vm: str, action: Action, request: Request[Any]) -> Work:
        """Begin it. RefusedForSafety while another is under way, NoThread where none can be."""
        with self._lock:
            before = self._works.get(vm)
            if before is not None and before.state == "running":
                raise RefusedForSafety(f"{vm}: {before.action.label} is under way", hint="wait until it has ended")
            if sum(one.state == "running" for one in self._works.values()) >= MOST_RUNNING:
                raise RefusedForSafety(f"{MOST_RUNNING} actions are under way", hint="wait until one has ended")
            work = Work(vm, action)
            self._works.pop(vm, None)
            self._works[vm] = work
            while len(self._works) > MOST_KEPT:
                self._works.pop(next(key for key, one in self._works.items() if one.state != "running"))
        try:
            spawn(self._do, work, request, name=f"work-{action.key}")
        except RemusError as exc:
            work.state, work.said = "failed", str(exc)
            raise
        return work

    def _do(self, work: Work, request: Request[Any]) -> None:
        def show(progress: Progress) -> None:
            work.said = progress.step
            work.share = progress.done / progress.total if progress.total else None

        log.info("%s %s: asked for by the console", work.action.key, work.vm)
        try:
            reply = self._ask(self._run_dir / f"{work.action.daemon}.sock", request, show, None)
            work.said, work.state = _told(reply), "done"
        except RemusError as exc:
            work.said, work.hint, work.state = f"{exc.id} {exc}", exc.hint, "failed"
        except Exception as exc:  # task boundary: the page must not wait for it for ever
            log.exception("%s %s", work.action.key, work.vm)
            work.said, work.state = f"unexpected {type(exc).__name__}: {exc}", "failed"
        log.info("%s %s: %s: %s", work.action.key, work.vm, work.state, work.said)


def _told(reply: object) -> str:
    match reply:
        case Switched():
            return f"it runs on {reply.to} now, in term {reply.term}, after {words.age(reply.took_ms)}"
        case TakenOver():
            return f"it runs here now, in term {reply.term}, resumed in {words.age(reply.resume_ms)}"
        case Unprotected():
            return reply.note or "it is not protected any more"
        case Rehearsed():
            looks = "; ".join(f"{one.name}: {one.detail}" for one in reply.checks)
            return ("it would start here. " if reply.ok else "it gave no sign of life. ") + looks
        case VmStatus():
            return f"it is {reply.state} to {reply.peer}"
    return "done"
