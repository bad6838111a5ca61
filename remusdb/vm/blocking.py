# SPDX-License-Identifier: Apache-2.0
"""Calls that may block without bound (libvirt's) are made in a thread of their own, and waited for so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import libvirt

from remusdb.errors import LibvirtAway, NoThread, VmError

Args = ParamSpec("Args")
Result = TypeVar("Result")

THREADS = 8  # a few may hang in a libvirtd that is stopped, and calls to QEMU itself must still find one
_CONNECTION_DOMAINS = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)  # said by the client's side, not by libvirtd
_CONNECTION_CODES = (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN)


class BlockingCalls:
    """A few threads for blocking calls; a call that takes longer than `timeout_s` raises LibvirtAway."""

    def __init__(self, timeout_s: float, threads: int = THREADS) -> None:
        self.timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="libvirt")

    def start(self, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Future[Result]:
        """Begin a call; `finish` takes its result. NoThread where there is none for it: it is not made then."""
        dropped = threading.Event()

        def make() -> Result:
            if dropped.is_set():  # a pool keeps what it had no thread for, and would do it some time
                raise CancelledError
            return call(*args, **kwargs)

        try:
            return self._pool.submit(make)
        except RuntimeError as exc:
            dropped.set()
            raise NoThread(f"libvirt cannot be called: {exc}") from exc

    def finish(self, future: Future[Result], what: str, timeout_s: float | None = None) -> Result:
        """The result of a call that was begun; errors of libvirt as VmError, LibvirtAway where it is not there."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            return future.result(limit)
        except TimeoutError as exc:
            raise LibvirtAway(f"{what}: libvirt did not answer within {limit:g} s", hint="is libvirtd hung?") from exc
        except libvirt.libvirtError as exc:
            said = exc.get_error_message() or exc
            if connection_lost(exc):
                raise LibvirtAway(f"{what}: libvirtd is away: {said}", hint="is libvirtd running?") from exc
            raise VmError(f"{what}: {said}") from exc

    def call(self, what: str, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Make a call and wait for it."""
        return self.finish(self.start(call, *args, **kwargs), what)

    def close(self) -> None:
        """Let go of the threads; one that hangs in libvirt is left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def connection_lost(exc: libvirt.libvirtError) -> bool:
    """Whether it is libvirtd that is not there, rather than something that libvirtd says of a VM."""
    return exc.get_error_domain() in _CONNECTION_DOMAINS or exc.get_error_code() in _CONNECTION_CODES
