# SPDX-License-Identifier: Apache-2.0
"""What the host daemon answers to orders and questions, with workers that have no VM."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import pytest

from remusdb.config import HostConfig
from remusdb.control import call
from remusdb.errors import (
    CannotProtect,
    ConfigError,
    Fenced,
    NotProtected,
    RefusedForSafety,
    RemusError,
    UsageError,
    VmError,
)
from remusdb.state import StateStore
from tests.unit.host_daemon_rig import DeadLibvirt, NoLibvirt, Running, gone, put, wait_for


def test_protect_tells_progress_and_keeps_state(daemon: Running, config: HostConfig) -> None:
    seen: list[dict[str, Any]] = []
    status = call(daemon.socket, "protect", {"vm": "db1", "to": "beta"}, seen.append, timeout_s=20)
    assert seen == [{"step": "memory", "done": 1, "total": 2, "unit": "MiB"}]
    assert (status["state"], status["peer"], status["term"]) == ("protected", "beta", 7)
    assert "unknown" not in status
    kept = StateStore(config.host.state_dir).load("db1")
    assert (kept.role, kept.peer, kept.term, kept.wanted) == ("protected", "beta", 7, True)


def test_the_order_carries_the_vms_own_settings(daemon: Running) -> None:
    order = daemon.daemon._keeper.workers.order(daemon.daemon._keeper.record("db1"), "beta")
    assert order["protection"]["epoch_ms"] == 25
    assert order["peer"] == {"name": "beta", "address": "192.0.2.2", "port": 7473}
    assert order["tls"]["ca"] == "/etc/remusdb/tls/ca.pem"
    msgspec.json.encode(order)


def test_status_lists_what_libvirt_knows(daemon: Running) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    states = {vm["vm"]: (vm["state"], vm["reason"]) for vm in daemon.ask("status", vm=None)["vms"]}
    assert states == {
        "db1": ("protected", ""),
        "web": ("unprotected", ""),
        "spare": ("unprotected", "not running"),
    }
    with pytest.raises(VmError, match="no VM nosuch"):
        daemon.ask("status", vm="nosuch")


def test_status_without_libvirt(config: HostConfig) -> None:
    running = Running(config, DeadLibvirt())
    running.ask("protect", vm="db1", to="beta")
    told = running.ask("status")
    assert [vm["vm"] for vm in told["vms"]] == ["db1"]
    assert "no socket" in told["warnings"][0]
    running.daemon.stop()


def test_the_age_of_the_last_commit_grows_without_news(daemon: Running) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    first = daemon.status("db1")["committed_age_ms"]
    time.sleep(0.05)
    assert daemon.status("db1")["committed_age_ms"] >= first + 40


def test_protecting_twice_is_once(daemon: Running) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    pid = daemon.worker_pid("db1")
    assert daemon.ask("protect", vm="db1", to="beta")["state"] == "protected"
    assert daemon.worker_pid("db1") == pid
    with pytest.raises(RefusedForSafety, match="which may have taken it over"):
        daemon.ask("protect", vm="db1", to="gamma")


def test_an_unknown_peer_names_the_known(daemon: Running) -> None:
    with pytest.raises(ConfigError, match="unknown peer `delta`") as caught:
        daemon.ask("protect", vm="db1", to="delta")
    assert caught.value.hint.endswith("beta, gamma")


@pytest.mark.parametrize("vm", [None, "", "../x", "a" * 300, "a\nb", 7])
def test_a_vm_must_have_a_name(daemon: Running, vm: object) -> None:
    with pytest.raises(UsageError, match="`vm`: a name"):
        daemon.ask("protect", vm=vm, to="beta")


def test_unprotect_forgets(daemon: Running, config: HostConfig) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    pid = daemon.worker_pid("db1")
    assert daemon.ask("unprotect", vm="db1", peer_is_dead=False) == {}
    kept = StateStore(config.host.state_dir).load("db1")
    assert (kept.role, kept.term, kept.wanted, kept.armed) == ("none", 7, False, False)
    assert daemon.status("db1")["state"] == "unprotected"
    wait_for(lambda: gone(pid))
    with pytest.raises(NotProtected):
        daemon.ask("unprotect", vm="db1", peer_is_dead=False)
    assert daemon.ask("protect", vm="db1", to="gamma")["state"] == "protected"


def test_a_refused_unprotect_leaves_it_protected(daemon: Running) -> None:
    daemon.libvirt.known["stubborn"] = True
    daemon.ask("protect", vm="stubborn", to="beta")
    with pytest.raises(RefusedForSafety):
        daemon.ask("unprotect", vm="stubborn", peer_is_dead=False)
    assert daemon.status("stubborn")["state"] == "protected"
    daemon.ask("unprotect", vm="stubborn", peer_is_dead=True)
    with pytest.raises(UsageError):
        daemon.ask("unprotect", vm="stubborn", peer_is_dead="yes")


def test_a_vm_that_is_off_can_always_be_forgotten(daemon: Running) -> None:
    daemon.ask("protect", vm="stubborn", to="beta")
    assert "only forgotten (beta does not answer)" in daemon.ask("unprotect", vm="stubborn", peer_is_dead=False)["note"]
    with pytest.raises(NotProtected):
        daemon.ask("unprotect", vm="stubborn", peer_is_dead=False)


def test_a_vm_is_not_forgotten_when_libvirt_does_not_know(config: HostConfig) -> None:
    running = Running(config, DeadLibvirt())
    running.ask("protect", vm="stubborn", to="beta")
    with pytest.raises(RefusedForSafety):
        running.ask("unprotect", vm="stubborn", peer_is_dead=False)
    running.daemon.stop()


def test_a_fenced_vm_is_protected_to_nobody(config: HostConfig) -> None:
    put(config, "db1", role="fenced", term=8, peer="beta", owner="beta", put_away=True)
    running = Running(config)
    assert running.status("db1")["term"] == 8
    for peer in ("beta", "gamma"):
        with pytest.raises(Fenced, match="host beta owns VM db1 since term 8"):
            running.ask("protect", vm="db1", to=peer)
    running.daemon.stop()


def test_an_initial_copy_that_was_broken_off_may_go_elsewhere(config: HostConfig) -> None:
    put(config, "db1", role="seeding", term=8, peer="beta")
    running = Running(config)
    assert running.ask("protect", vm="db1", to="gamma")["state"] == "protected"
    running.daemon.stop()


def test_a_vm_that_cannot_be_protected(daemon: Running) -> None:
    for _ in range(2):  # the second try gets as far as the first
        with pytest.raises(CannotProtect, match="vhost-user") as caught:
            daemon.ask("protect", vm="unfit", to="beta")
        assert caught.value.hint == "take it out"
        assert (daemon.status("unfit")["state"], daemon.status("unfit")["reason"]) == ("failed", "vhost-user")


class Picky(NoLibvirt):
    """An inspection that finds something."""

    def check(self, vm: str, peer: str | None) -> list[dict[str, Any]]:
        return [{"name": "devices", "ok": False, "level": "required", "detail": "a TPM", "hint": "take it out"}]


def test_the_preflight_refuses_before_a_worker_is_started(config: HostConfig) -> None:
    running = Running(config, Picky())
    with pytest.raises(CannotProtect, match="VM db1 cannot be protected: devices: a TPM"):
        running.ask("protect", vm="db1", to="beta")
    assert running.status("db1")["state"] == "failed"
    assert not (config.host.state_dir / "db1.order").exists()
    running.daemon.stop()


def test_a_vm_with_the_gate_still_in_has_passed_the_preflight(config: HostConfig) -> None:
    put(config, "db1", role="protected", term=7, peer="beta", armed=True, wanted=True)
    running = Running(config, Picky())
    wait_for(lambda: running.status("db1")["state"] == "protected")
    running.daemon.stop()


def test_a_vm_that_turns_out_to_be_fenced_says_so(daemon: Running) -> None:
    with pytest.raises(Fenced):
        daemon.ask("protect", vm="unlucky", to="beta")
    assert (daemon.status("unlucky")["state"], daemon.status("unlucky")["term"]) == ("fenced", 9)


def test_unprotect_while_seeding(daemon: Running) -> None:
    failed: list[RemusError] = []

    def protect() -> None:
        try:
            daemon.ask("protect", vm="slow", to="beta")
        except RemusError as exc:
            failed.append(exc)

    thread = threading.Thread(target=protect)
    thread.start()
    wait_for(lambda: bool(daemon.daemon._keeper.statuses().get("slow", {}).get("reason") == "copying memory"))
    daemon.ask("unprotect", vm="slow", peer_is_dead=False)
    thread.join(10)
    assert str(failed[0]) == "given up"


def test_check_and_prepare_reach_the_inspection(daemon: Running) -> None:
    assert daemon.ask("check", vm="db1", to="beta")["checks"][0]["detail"] == "db1 beta"
    assert daemon.ask("check", vm="db1", to=None)["checks"][0]["detail"] == "db1 None"
    assert daemon.ask("prepare", vm="db1") == {"changes": ["edited db1"]}
    with pytest.raises(ConfigError):
        daemon.ask("check", vm="db1", to="delta")


@pytest.mark.parametrize("term", [True, False, None, "8", 8.0, -1, 1 << 63, [8]])
def test_a_term_that_is_none_fences_nothing(daemon: Running, term: object) -> None:
    with pytest.raises(UsageError, match="term"):
        daemon.ask("fence", vm="db1", owner="gamma", term=term)
    assert daemon.status("db1")["state"] != "fenced"
