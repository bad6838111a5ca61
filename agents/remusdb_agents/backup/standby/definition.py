# SPDX-License-Identifier: Apache-2.0
"""The persistent definition of a promoted VM: kept as soon as libvirt can take it, while the VM runs already."""

from __future__ import annotations

import logging
import time

import libvirt

from remusdb.errors import NoThread
from remusdb.threads import spawn

log = logging.getLogger(__name__)

TRIES = 120
LOST = "{vm} could not be defined: it will be gone when it stops; see virsh dumpxml, virsh define"
PAUSE_S = 1.0  # between two tries; one that hangs in a stopped libvirtd goes on with it


class Definition:
    """One VM's definition, on its way into libvirt."""

    def __init__(self, uri: str, vm: str, xml: str, autostart: bool) -> None:
        """`autostart`: whether libvirt is to start it when the host boots, as it did where the VM ran before."""
        self._uri = uri
        self._vm = vm
        self._xml = xml
        self._autostart = autostart

    def keep(self) -> None:
        """Define the VM, so that it outlives a stop; in a thread of its own, for libvirt may be away."""
        try:
            spawn(self._try_often, name=f"define-{self._vm}")
        except NoThread as exc:  # the VM runs: that is not undone for this
            log.error("%s: %s", LOST.format(vm=self._vm), exc)

    def define(self, connection: libvirt.virConnect) -> libvirt.virDomain:
        """Define it now. Blocks as libvirt does; libvirtError when libvirt does not take it."""
        handle = connection.defineXML(self._xml)
        handle.setAutostart(int(self._autostart))
        return handle

    def _try_often(self) -> None:
        for _ in range(TRIES):
            try:
                connection = libvirt.open(self._uri)
                try:
                    self.define(connection)
                finally:
                    connection.close()
            except libvirt.libvirtError as exc:
                log.warning("%s is not defined yet: %s", self._vm, exc)
                time.sleep(PAUSE_S)
            else:
                log.info("%s is defined here", self._vm)
                return
        log.error("%s", LOST.format(vm=self._vm))
