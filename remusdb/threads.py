# SPDX-License-Identifier: Apache-2.0
"""Starting threads where there may be none to have: TasksMax, RLIMIT_NPROC or memory is used up.

`threading.Thread.start` then raises RuntimeError, which nothing expects. Three ways to start one instead: `spawn`
raises an error of ours, `apart` does the work all the same, and `vital` is for a thread without which the process would
be alive and deaf.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from remusdb.deadline import Deadline
from remusdb.errors import NoThread

log = logging.getLogger(__name__)

PATIENCE_S = 2.0  # `apart` tries for so long: sessions and requests that end give threads back
RETRY_S = 0.05
DEAF_EXIT_CODE = 70  # EX_SOFTWARE; systemd starts the daemon again (Restart=always)


def spawn(work: Callable[..., object], *args: object, name: str) -> threading.Thread:
    """Do `work(*args)` in a new daemon thread, and return it. NoThread when this process can have no more."""
    return start(threading.Thread(target=work, args=args, name=name, daemon=True))


def start(thread: threading.Thread) -> threading.Thread:
    """Start a thread that was made before. NoThread when this process can have no more; it may be tried again."""
    try:
        thread.start()
    except RuntimeError as exc:
        raise NoThread(f"thread `{thread.name}` cannot be started: {exc}") from exc
    return thread


def apart(work: Callable[..., object], *args: object, name: str) -> threading.Thread | None:
    """Do `work(*args)` in a thread of its own; where none can be had for `PATIENCE_S`, in this one, before it returns.

    For what must be done, whatever else has to wait for it: the end of a session, giving a VM back. None: it is done.
    """
    deadline = Deadline.after(PATIENCE_S)
    while True:
        try:
            return spawn(work, *args, name=name)
        except NoThread as exc:
            if deadline.over:
                log.error("%s; it is done without one, and what else this thread has to do waits", exc)
                work(*args)
                return None
            time.sleep(RETRY_S)


def vital(work: Callable[..., object], *args: object, name: str) -> threading.Thread:
    """Do `work(*args)` in a thread that lives as long as the process: if it raises, the process ends, and says why.

    At once and without cleaning up, for anything may be broken: whoever comes next finds what a killed daemon leaves.
    """

    def live() -> None:
        try:
            work(*args)
        except BaseException:
            log.critical("thread `%s` died: this process cannot go on without it, and ends", name, exc_info=True)
            os._exit(DEAF_EXIT_CODE)

    return spawn(live, name=name)
