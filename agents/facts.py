# SPDX-License-Identifier: Apache-2.0
"""What this backup can run, for the primary that asks before it protects."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from remusdb import __version__
from remusdb.core.messages import AgentFacts
from remusdb.vm.deadline import Deadline
from remusdb.vm.domain import connect

CALL_S = 5.0


def gather(libvirt_uri: str) -> AgentFacts:
    """Ask this host's libvirt. VmError when it does not answer."""
    deadline = Deadline(CALL_S, threads=1)
    try:
        connection = connect(libvirt_uri, deadline)
        try:
            capabilities = ET.fromstring(deadline.call("capabilities", connection.getCapabilities))
            return AgentFacts(
                version=__version__,
                qemu_version=_triple(deadline.call("QEMU's version", connection.getVersion)),
                libvirt_version=_triple(deadline.call("libvirt's version", connection.getLibVersion)),
                machines=sorted(
                    {node.text or "" for node in capabilities.iterfind(".//arch[@name='x86_64']//machine")}
                ),
            )
        finally:
            connection.close()
    finally:
        deadline.close()


def _triple(number: int) -> tuple[int, int, int]:
    """libvirt writes a version as major * 1,000,000 + minor * 1,000 + release."""
    return number // 1_000_000, number // 1_000 % 1_000, number % 1_000
