# SPDX-License-Identifier: Apache-2.0
"""What both gates do at the VM's tap: judge it, and put it back as it was.

Whether clsact is ours is written down where it survives us: as the alias of a device of the gate.
"""

from __future__ import annotations

from remusdb.errors import GateError
from remusdb.net.links import Link
from remusdb.net.tc import RESETS_PREFERENCE, Tc

CLSACT_OURS = "clsact=ours"


def refuse_unless_plain(tc: Tc, link: Link) -> None:
    """GateError unless this is a VM's tap whose ingress nobody uses."""
    if link.kind != "tun":
        raise GateError(
            f"{link.name} is a {link.kind or 'physical'} interface, not a VM's tap",
            hint="the VM needs a bridge interface (libvirt: <interface type='bridge'> or 'network')",
        )
    if tc.redirected(link.index):
        hint = "a process that protected this VM died: protect it again, or unprotect it"
        raise GateError(f"the output of {link.name} is redirected already", hint=hint)
    if tc.ingress_filters(link.index) - {(RESETS_PREFERENCE, "bpf")}:
        hint = f"see `tc filter show dev {link.name} ingress`, and remove what filters there"
        raise GateError(f"{link.name} has ingress filters of its own", hint=hint)


def add_clsact(tc: Tc, link: Link, noted: Link | None) -> str:
    """Make sure of clsact; the alias that says whose it is. `noted` is the device that carries it from before.

    A tap that was shut when it appeared (remusdb/worker/tapwatch.py) had none before that.
    """
    added = tc.add_clsact(link.index) or tc.is_shut(link.index)
    return CLSACT_OURS if added or (noted is not None and noted.alias == CLSACT_OURS) else ""


def restore(tc: Tc, link: Link, alias: str) -> None:
    """Take our redirect away, and clsact if it is ours and nobody else uses it by now."""
    tc.del_redirect(link.index)
    if alias == CLSACT_OURS and not tc.ingress_filters(link.index) and not tc.egress_filters(link.index):
        tc.del_clsact(link.index)
