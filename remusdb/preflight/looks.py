# SPDX-License-Identifier: Apache-2.0
"""Several questions at once, each by itself: one that fails or hangs spoils no other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from remusdb.deadline import Deadline

Looks = dict[str, Callable[[], Any]]
THREADS = 4


def look_at(looks: Looks, limit_s: float) -> tuple[dict[str, Any], dict[str, str]]:
    """What each found, and why the others found nothing within `limit_s`; one that hangs is left behind."""
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="look")
    futures = {name: pool.submit(look) for name, look in looks.items()}
    deadline = Deadline.after(limit_s)
    for name, future in futures.items():
        try:
            found[name] = future.result(deadline.left())
        except TimeoutError:
            errors[name] = "no answer in time"
        except Exception as exc:  # task boundary: whatever one look runs into is told
            errors[name] = str(exc) or type(exc).__name__
    pool.shutdown(wait=False, cancel_futures=True)
    return found, errors
