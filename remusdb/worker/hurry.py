# SPDX-License-Identifier: Apache-2.0
"""Real-time priority for a thread that does little and must be on time (it has the VM stopped, or says that this host
lives): on a busy host it would otherwise wait for the CPU, some 25 to 50 ms (docs/facts.md, "Gate")."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


def hurry() -> None:
    """From here on, for this thread."""
    _schedule(os.SCHED_RR, 1)


@contextmanager
def hurried() -> Iterator[None]:
    """Inside of this only, for a thread that has longer work to do outside of it."""
    hurry()
    try:
        yield
    finally:
        _schedule(os.SCHED_OTHER, 0)


def _schedule(policy: int, priority: int) -> None:
    try:
        os.sched_setscheduler(threading.get_native_id(), policy, os.sched_param(priority))
    except OSError as exc:
        log.warning("no real-time priority for this thread: %s", exc)
