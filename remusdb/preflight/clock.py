# SPDX-License-Identifier: Apache-2.0
"""What a guest will see of time under protection: decided from its definition and its QEMU, told as advice.

Each epoch stops the VM, and QEMU stops the guest's clocks with it. They are corrected at each cut (capture/clock.py);
what that cannot do, or was never seen to do, is named here, with what to do in the guest.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from remusdb.preflight.checks import Check, advice
from remusdb.preflight.gather import Inventory

# Each cut loses up to 10 % where the clock is not corrected. ntpd and systemd-timesyncd follow 0.05 %, chrony 9 %.
KVM_HINT = "should it run slow (status: clock_slow), chrony in the guest follows: `refclock PHC /dev/ptp_kvm poll 2`"
TCG_HINT = "should it run slow (status: clock_slow), chrony in the guest follows: `refclock RTC /dev/rtc0:utc`"
WINDOWS_HINT = (
    "compare the guest's time with a server's under protection (w32tm /stripchart), and have it synchronised often"
)


def decide(inventory: Inventory, tree: ET.Element) -> list[Check]:
    """One check: whether the guest's clock is expected to lose nothing."""
    if _hyperv(tree):
        problem, hint = "it is corrected for kvmclock; Windows' own, made of it, was never measured", WINDOWS_HINT
    elif not inventory.vm.clock_named:
        problem = "QEMU's program does not say where it keeps the clock: it is searched for when protection begins"
        hint = KVM_HINT if tree.get("type") == "kvm" else TCG_HINT
    else:
        problem = hint = ""
    return [advice("guest clock", problem, "it is corrected at each epoch", hint)]


def _hyperv(tree: ET.Element) -> bool:
    """Whether the guest is offered Windows' clock."""
    timers = tree.iterfind("./clock/timer[@name='hypervclock']")
    return tree.find("./features/hyperv") is not None or any(timer.get("present") == "yes" for timer in timers)
