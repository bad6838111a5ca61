# SPDX-License-Identifier: Apache-2.0
"""libvirt's autostart of a protected VM: off, so that a host that comes back does not start what another one owns.

Both functions block as libvirt does: call them under a deadline.
"""

from __future__ import annotations

import libvirt


def autostart_off(handle: libvirt.virDomain) -> bool:
    """Switch it off; whether it was on. A VM without a persistent definition has none."""
    was = bool(handle.isPersistent()) and bool(handle.autostart())
    if was:
        handle.setAutostart(0)
    return was


def autostart_back(handle: libvirt.virDomain, was: bool) -> None:
    """Switch it on again if it `was`."""
    if was and handle.isPersistent():
        handle.setAutostart(1)
