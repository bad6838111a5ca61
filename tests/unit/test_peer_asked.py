# SPDX-License-Identifier: Apache-2.0
"""`protect` asks the peer for what the VM needs there; an agent that does not answer is the worker's to tell."""

from __future__ import annotations

import pytest

from remusdb.config import HostConfig
from remusdb.errors import CannotProtect
from remusdb.preflight.checks import Check
from tests.unit.host_daemon_rig import NoLibvirt, Running


class Asked(NoLibvirt):
    """An inspection in which one check fails."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.peers: list[str | None] = []

    def check(self, vm: str, peer: str | None) -> list[Check]:
        self.peers.append(peer)
        return [Check(self._name, False, "required", "missing there", "make it")]


def test_what_the_backup_lacks_refuses(config: HostConfig) -> None:
    inspection = Asked("peer files")
    running = Running(config, inspection)
    try:
        with pytest.raises(CannotProtect, match="peer files: missing there") as caught:
            running.protect("db1")
        assert caught.value.hint == "make it" and inspection.peers == ["beta"]
    finally:
        running.daemon.stop()


def test_an_agent_that_does_not_answer_is_left_to_the_worker(config: HostConfig) -> None:
    running = Running(config, Asked("peer"))
    try:
        assert running.protect("db1").state == "protected"
    finally:
        running.unprotect("db1")
        running.daemon.stop()
