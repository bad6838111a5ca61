# SPDX-License-Identifier: Apache-2.0
"""Until when a primary with commit protection may let frames go early, after its last word with the agent.

Nothing is lost, and nothing contradicts the survivor, where this is too long: frames that go early are of transactions
that a takeover breaks (docs/decisions/0035-what-goes-early-and-what-a-takeover-breaks.md). It only sees to it that a
primary which was replaced is mute, as with `release = "all"`, so that its frames do not draw the VM's address back.
"""

from __future__ import annotations

from remusdb.core.patience import LEAST_DATAGRAMS_S

# Of the least time for which the agent waits: clocks of two hosts differ by far less, frames take some ms to leave.
SHARE = 0.75


def lease_until(cut_at_s: float, silence_s: float) -> float:
    """The end of the lease that the ACK of an epoch gives, by the clock of `cut_at_s`, in seconds.

    The agent has heard the COMMIT of that epoch, which was sent after its cut: it does not take the VM over before its
    least silence limit is over since then. `silence_s`: what its operator set.
    """
    return cut_at_s + SHARE * min(silence_s, LEAST_DATAGRAMS_S)
