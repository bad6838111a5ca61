# SPDX-License-Identifier: Apache-2.0
"""Who may use a control socket besides root, and for what: by the kernel's word, not by theirs."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remusdb.control import ControlServer, call
from remusdb.control import server as server_module
from remusdb.control.api import (
    CONSOLE,
    Evacuate,
    Export,
    Failover,
    Fence,
    Forget,
    HostStatus,
    HostVms,
    Prepare,
    Unprotect,
    Unprotected,
    console_may,
)
from remusdb.control.codec import Request
from remusdb.control.server import Handler
from remusdb.errors import RefusedForSafety
from remusdb.history import Event, append, newest
from tests.unit.console_rig import FOLLOWS

GROUP = grp.getgrgid(os.getegid()).gr_name


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server whose clients are all of the group, and not root."""
    monkeypatch.setattr(server_module, "_is_ours", lambda _sock: False)
    handlers: dict[type[Request[Any]], Handler] = {
        HostStatus: lambda _asked, _progress: HostVms(vms=[]),
        Unprotect: lambda _asked, _progress: Unprotected(),
        Prepare: lambda _asked, _progress: pytest.fail("it was done"),
    }
    server = ControlServer(tmp_path / "host.sock", handlers, group=GROUP, group_may=console_may)
    server.start()
    yield tmp_path / "host.sock"
    server.close()


def test_the_group_may_connect_and_others_may_not(path: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660 and path.stat().st_gid == os.getegid()
    for group in ("", "no-such-group-here"):
        server = ControlServer(tmp_path / f"x{group}.sock", {}, group=group)
        server.start()
        assert stat.S_IMODE((tmp_path / f"x{group}.sock").stat().st_mode) == 0o600
        server.close()


def test_it_is_answered_what_the_console_needs_and_nothing_else(path: Path) -> None:
    assert call(path, HostStatus()) == HostVms(vms=[])
    assert call(path, msgspec.convert({"op": "unprotect", "vm": "db1"}, Unprotect)) == Unprotected()
    for asked in ({"op": "prepare", "vm": "db1"}, {"op": "unprotect", "vm": "db1", "peer_is_dead": True}):
        kind: Any = Prepare if asked["op"] == "prepare" else Unprotect
        with pytest.raises(RefusedForSafety, match="root"):
            call(path, msgspec.convert(asked, kind))


def test_no_word_of_honour_and_no_path_is_taken_from_it() -> None:
    vm: Any = "db1"
    refused: list[Request[Any]] = [
        Failover(vm=vm, primary_is_dead=True), Unprotect(vm=vm, peer_is_dead=True), Evacuate(), Forget(vm=vm),
        Export(vm=vm, to="/x", folder=[1, 2]), Fence(vm=vm, owner=vm, term=3),
    ]  # fmt: skip
    assert [one for one in refused if console_may(one)] == []
    assert console_may(Failover(vm=vm)) and len(CONSOLE) == 9


def test_a_history_fits_in_a_line_however_long_its_events_are(tmp_path: Path) -> None:
    for number in range(300):
        append(tmp_path / "history", Event(
            vm="db1", at_ns=number, host="alpha", by="worker", event="held", was="protected", now="held",
            reason="x" * 9000, why=FOLLOWS, term=1, epoch=number, heard_ms_ago=None, peer="beta",
        ))  # fmt: skip
    told = newest(tmp_path, "db1", 500)
    assert told.events[-1].at_ns == 299 and 50 < len(told.events) < 200
    assert len(msgspec.json.encode(told)) < (4 << 20)
    assert len(newest(tmp_path, "db1", 3).events) == 3
