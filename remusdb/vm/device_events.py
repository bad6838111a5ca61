# SPDX-License-Identifier: Apache-2.0
"""libvirt's word that a VM's devices change: a hint to look, since libvirtd may be away when it happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import libvirt

from remusdb.errors import VmError
from remusdb.vm.domain import Domain

EVENTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_TRAY_CHANGE,  # the door of a drive: a medium is put in or taken out
    libvirt.VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE,
)


class DeviceEvents:
    """Calls `hint()` at every such event, in the event loop's thread (`start_event_loop`), and at a new connection."""

    def __init__(self, connection: libvirt.virConnect, domain: Domain, hint: Callable[[], None]) -> None:
        self._domain = domain
        self._hint = hint
        self.renew(connection)

    def renew(self, connection: libvirt.virConnect) -> None:
        """Listen on this connection from now on: a registration ends with its connection."""
        self._connection = connection
        try:
            self._ids = [
                connection.domainEventRegisterAny(self._domain.handle, event, self._on_event, None) for event in EVENTS
            ]
        except libvirt.libvirtError as exc:
            raise VmError(f"changes of the VM's devices cannot be watched: {exc}") from exc
        self._hint()

    def close(self) -> None:
        """Listen no longer."""
        for number in self._ids:
            with contextlib.suppress(libvirt.libvirtError):  # the connection is gone, and the registration with it
                self._connection.domainEventDeregisterAny(number)

    def _on_event(self, *_event: Any) -> None:
        self._hint()
