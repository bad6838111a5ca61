# SPDX-License-Identifier: Apache-2.0
"""What must be right of a HELLO before a session is agreed on: until then nothing is written, made or given up here."""

from __future__ import annotations

from remusdb import safexml
from remusdb.core.identity import require_same_vm
from remusdb.core.messages import Hello
from remusdb_agents.backup.context import Context


def examine(context: Context, hello: Hello) -> None:
    """CannotProtect, or another error of ours, where this VM cannot be kept here. Nothing is changed by it."""
    tree = safexml.parse(hello.domain_xml)
    require_same_vm(hello.vm, hello.uuid, tree.findtext("name"), tree.findtext("uuid"))
    context.admission.check(hello.vm, sum(block.size for block in hello.blocks))
