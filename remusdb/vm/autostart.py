# SPDX-License-Identifier: Apache-2.0
"""libvirt's autostart of a protected VM: off, so that a host that comes back does not start what another one owns.
The backup is told, and switches it on in the definition of a VM that it took over.

All functions block as libvirt does: call them by `BlockingCalls`.
"""

from __future__ import annotations

import libvirt


def has_autostart(handle: libvirt.virDomain) -> bool:
    """Whether it is on. A VM without a persistent definition has none."""
    return bool(handle.isPersistent()) and bool(handle.autostart())


def autostart_off(handle: libvirt.virDomain) -> bool:
    """Switch it off; whether it was on."""
    was = has_autostart(handle)
    if was:
        handle.setAutostart(0)
    return was


def autostart_back(handle: libvirt.virDomain, was: bool) -> None:
    """Switch it on again if it `was`."""
    if was and handle.isPersistent():
        handle.setAutostart(1)
