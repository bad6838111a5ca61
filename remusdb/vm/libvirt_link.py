# SPDX-License-Identifier: Apache-2.0
"""A connection to libvirt that is made again when libvirtd went away and came back.

Owns one thread, which waits for the connection's end. Invariant: while `there`, everybody who asked with
`on_renewed` holds handles of the present connection. QEMU, its block jobs and the tracker know nothing of all this.

A libvirtd that is stopped, not dead, keeps its connections: calls hang, and go on when it does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import libvirt

from remusdb.errors import VmError
from remusdb.threads import spawn
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import connect

log = logging.getLogger(__name__)

RETRY_S = 0.1

Renewed = Callable[[libvirt.virConnect], None]


class LibvirtLink:
    """The connection of this process. Needs libvirt's event loop (`start_event_loop`) to learn of its end."""

    def __init__(self, uri: str, calls: BlockingCalls) -> None:
        """Connect; VmError when libvirtd is not there now."""
        self._uri = uri
        self._listeners: list[Renewed] = []
        self._lost = threading.Event()
        self._closed = threading.Event()
        self.connection: libvirt.virConnect = connect(uri, calls)
        calls.call("libvirt", self.connection.registerCloseCallback, self._on_close, None)
        self._there = True
        spawn(self._keep, name="libvirt-link")

    @property
    def there(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._there and not self._lost.is_set()

    def on_renewed(self, call: Renewed) -> None:
        """Have `call` told each new connection, in the order asked. It may block, and may raise libvirt's errors."""
        self._listeners.append(call)

    def close(self) -> None:
        """Connect no more. Does not wait: the thread may hang in libvirt."""
        self._closed.set()
        self._lost.set()

    def _on_close(self, _connection: Any, _reason: int, _opaque: Any) -> None:
        self._lost.set()  # in the event loop's thread, which must not call libvirt itself

    def _keep(self) -> None:
        while self._lost.wait() and not self._closed.is_set():
            if self._there:
                log.warning("libvirtd is gone; the VM runs on; reconnecting")
            self._there = False
            self._lost.clear()
            try:
                self._renew()
            except (libvirt.libvirtError, VmError) as exc:
                log.debug("libvirtd is not back: %s", exc)
                self._closed.wait(RETRY_S)
                self._lost.set()

    def _renew(self) -> None:
        fresh = libvirt.open(self._uri)
        fresh.registerCloseCallback(self._on_close, None)
        for call in self._listeners:
            call(fresh)
        self.connection = fresh
        self._there = True
        log.info("libvirtd is back")
