# SPDX-License-Identifier: Apache-2.0
"""A takeover breaks the connections that COMMIT named, each at the interface on which it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from remusdb.core.release.frames import FlowKey, OpenFlow
from remusdb.core.reset import Target
from remusdb.core.segments import End
from remusdb.errors import GateError
from remusdb.vm.domain import Nic
from remusdb_agents.backup.open_flows import OpenFlows

GUEST, CLIENT = End(b"\2" + bytes(5), bytes([10, 0, 0, 1]), 5432), End(b"\4" + bytes(5), bytes([10, 0, 0, 2]), 40000)
FLOW = OpenFlow(FlowKey(GUEST.address, 5432, CLIENT.address, 40000), GUEST.mac, CLIENT.mac, 9, 100, 200)
NICS = [Nic("vnet0", "br0", "02:00:00:00:00:00"), Nic("vnet1", "br1", "02:00:00:00:00:01")]


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sequence[Target]]]:
    """What was shut, by tap."""
    found: list[tuple[str, Sequence[Target]]] = []

    def shut_it(tap: str, targets: Sequence[Target]) -> object:
        found.append((tap, targets))
        return object()

    monkeypatch.setattr("remusdb_agents.backup.open_flows.Resets", shut_it)
    return found


def test_each_is_shut_at_its_own_interface(shut: list[tuple[str, Sequence[Target]]]) -> None:
    flows = OpenFlows(NICS, [b"", FLOW.pack() * 2])
    assert flows.count == 2
    assert shut == [("vnet1", [Target(GUEST, CLIENT, 9, 100, 200)] * 2)]


def test_where_none_is_named_nothing_is_touched(shut: list[tuple[str, Sequence[Target]]]) -> None:
    assert OpenFlows(NICS, []).count == OpenFlows(NICS, [b"", b""]).count == 0
    assert shut == []


def test_one_of_an_interface_that_is_not_there_keeps_the_vm_from_running() -> None:
    with pytest.raises(GateError):
        OpenFlows(NICS[:1], [b"", FLOW.pack()])
