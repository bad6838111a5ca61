# SPDX-License-Identifier: Apache-2.0
"""Who may keep standbys on this host: agent.toml says so, by the name in a certificate.

A certificate of the CA says only who somebody is. Both answers are a plain REFUSE: they say nothing of a replica that
may be here, so the output of a primary that was taken off the list stays held.
"""

from __future__ import annotations

import json

from remusdb.config import AgentConfig
from remusdb.core.messages import Refuse


def not_listed(config: AgentConfig, peer: str) -> Refuse | None:
    """Why nothing of what host `peer` says is looked at, or None. `peer`: the name in its certificate."""
    if peer in config.primaries:
        return None
    return Refuse(
        reason=f"host {peer} is not among the primaries that may keep standbys on {config.agent.name}",
        hint=f"put the line {_table(peer)} into agent.toml of {config.agent.name}, and restart remusdb-agent there",
        code="preflight",
    )


def not_for_vm(config: AgentConfig, peer: str, vm: str) -> Refuse | None:
    """Why host `peer`, which is listed, may not keep or ask about this VM, or None."""
    vms = config.primaries[peer].vms
    if vms is None or vm in vms:
        return None
    where = f"{_table(peer)} in agent.toml of {config.agent.name}"
    return Refuse(
        reason=f"VM {vm!r:.80} is not among those that host {peer} may keep on {config.agent.name}",
        hint=f"add its name to vms of {where}, or leave vms out for any VM; then restart remusdb-agent there",
        code="preflight",
    )


def _table(peer: str) -> str:
    """The table's head as TOML has it: a name with a dot in it needs quotes."""
    bare = peer.isascii() and peer.replace("-", "").replace("_", "").isalnum()
    return f"[primaries.{peer if bare else json.dumps(peer)}]"
