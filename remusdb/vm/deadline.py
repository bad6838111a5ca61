# SPDX-License-Identifier: Apache-2.0
"""Calls that may block without bound (libvirt's) are made in a worker thread, with a deadline."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import libvirt

from remusdb.errors import VmError

Args = ParamSpec("Args")
Result = TypeVar("Result")


class Deadline:
    """A few threads for blocking calls; a call that takes longer than `timeout_s` raises VmError."""

    def __init__(self, timeout_s: float, threads: int = 4) -> None:
        self.timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="libvirt")

    def start(self, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Future[Result]:
        """Begin a call; `finish` takes its result."""
        return self._pool.submit(call, *args, **kwargs)

    def finish(self, future: Future[Result], what: str, timeout_s: float | None = None) -> Result:
        """The result of a call that was begun; errors of libvirt as VmError."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            return future.result(limit)
        except TimeoutError as exc:
            raise VmError(f"{what}: libvirt did not answer within {limit:g} s", hint="is libvirtd hung?") from exc
        except libvirt.libvirtError as exc:
            raise VmError(f"{what}: {exc.get_error_message() or exc}") from exc

    def call(self, what: str, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Make a call and wait for it."""
        return self.finish(self.start(call, *args, **kwargs), what)

    def close(self) -> None:
        """Let go of the threads; one that hangs in libvirt is left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)
