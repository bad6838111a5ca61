# SPDX-License-Identifier: Apache-2.0
"""A domain's state in libvirt, in words."""

from __future__ import annotations

import libvirt

STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended by the guest",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
}

PAUSED = {
    libvirt.VIR_DOMAIN_PAUSED_USER: "by an operator",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "for a migration",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "while it is saved",
    libvirt.VIR_DOMAIN_PAUSED_DUMP: "while it is dumped",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "by QEMU for an I/O error",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "by its watchdog",
    libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT: "since it was made from a snapshot",
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: "while a snapshot is made",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "after a crash of its guest",
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: "while it is started",
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY: "for a post-copy migration",
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: "by a post-copy migration that failed",
}


def state_of(domain: libvirt.virDomain) -> tuple[str, str]:
    """The state, and why, of one that is paused. Blocks as libvirt does."""
    state, reason = domain.state()
    return STATES.get(state, "not running"), PAUSED.get(reason, "") if state == libvirt.VIR_DOMAIN_PAUSED else ""
