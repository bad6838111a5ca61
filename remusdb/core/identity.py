# SPDX-License-Identifier: Apache-2.0
"""Whether the VM of a message is the VM of its XML: a VM is its name and its UUID, both."""

from __future__ import annotations

from uuid import UUID

from remusdb.errors import CannotProtect


def require_same_vm(vm: str, uuid: str, xml_name: str | None, xml_uuid: str | None) -> None:
    """CannotProtect unless the `<name>` and `<uuid>` of a VM's XML (None: not there) are those that it was sent under.

    Everything that is kept of the VM is kept under `vm`; what libvirt starts and ends is what the XML names.
    """
    hint = "the primary sends both from libvirt: this one does not speak for a VM that it has"
    if xml_name != vm:
        raise CannotProtect(f"the XML of VM {vm} is that of a VM named {xml_name or ''!r:.80}", hint=hint)
    try:
        same = xml_uuid is not None and UUID(xml_uuid.strip()) == UUID(uuid)
    except ValueError:
        same = False
    if not same:
        raise CannotProtect(f"the XML of VM {vm} has UUID {xml_uuid or ''!r:.80}, it was sent as {uuid}", hint=hint)
