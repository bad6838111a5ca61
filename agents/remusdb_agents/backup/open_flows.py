# SPDX-License-Identifier: Apache-2.0
"""What a takeover does with the connections that were inside a transaction at the committed cut: it breaks them.

With `release = "commit"` the primary may have sent bytes of these that the survivor does not know. Invariant: from
`shut` on, before the VM runs, nothing of theirs leaves until the guest has given them up (remusdb/net/resets.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from remusdb.core.release.frames import OpenFlow, unpack_flows
from remusdb.core.reset import Target
from remusdb.core.segments import End
from remusdb.errors import GateError
from remusdb.net.resets import Resets
from remusdb.threads import apart
from remusdb.vm.domain import Nic


class OpenFlows:
    """Of one takeover."""

    def __init__(self, nics: Sequence[Nic], open_flows: Sequence[bytes]) -> None:
        """Shut them. `open_flows`: as in COMMIT, one item an interface. GateError: the VM must not run like this."""
        if any(open_flows[len(nics) :]):
            raise GateError("connections inside a transaction were named on an interface that this VM does not have")
        flows = [(nic, unpack_flows(packed)) for nic, packed in zip(nics, open_flows, strict=False) if packed]
        self.count = sum(len(some) for _nic, some in flows)
        self._resets = [Resets(nic.tap, [target_of(flow) for flow in some]) for nic, some in flows if some]

    def reset(self) -> None:
        """The VM runs: break them, while it and all its other connections go on."""
        for resets in self._resets:
            apart(resets.run, name="resets")


def target_of(flow: OpenFlow) -> Target:
    """What is known of a flow, for its reset."""
    key = flow.key
    guest = End(flow.guest_mac, key.guest, key.guest_port)
    client = End(flow.client_mac, key.client, key.client_port)
    return Target(guest, client, flow.vlan, flow.next_seq, flow.last_ack)
