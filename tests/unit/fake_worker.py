# SPDX-License-Identifier: Apache-2.0
"""A worker without a VM, for the daemon's tests: what it does is told by the VM's name."""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

from remusdb.control.lines import LineChannel
from remusdb.errors import CannotProtect, Fenced, PeerUnreachable, RefusedForSafety, RemusError
from remusdb.state import StateStore


def protect(channel: LineChannel, order: dict[str, Any]) -> None:
    """Answer `start` as the VM's name says."""
    vm: str = order["vm"]
    store = StateStore(Path(order["state_dir"]))
    before = store.load(vm)
    Path(order["state_dir"], f"{vm}.order").write_text(f"{before.role} {before.term}")
    channel.send({"progress": {"step": "memory", "done": 1, "total": 2, "unit": "MiB"}})
    channel.send({"status": {"vm": vm, "state": "seeding", "reason": "copying memory", "unknown": 1}})
    errors: dict[str, RemusError] = {
        "unfit": CannotProtect("vhost-user", hint="take it out"),
    }
    if vm in errors:
        channel.send({"error": errors[vm].to_dict()})
        return
    if vm == "breaks" and before.role == "none":
        store.update(vm, role="seeding", term=7, peer=order["peer"]["name"], wanted=True, reason="copying")
        os._exit(3)
    if vm == "dies":
        os._exit(3)
    if vm == "slow":
        return  # and never answers
    if vm == "flaky" and before.role == "protected" and not Path(order["state_dir"], "peer-is-back").exists():
        channel.send({"error": PeerUnreachable("no route").to_dict()})
        return
    if vm == "unlucky":
        store.update(vm, role="fenced", term=9, owner=order["peer"]["name"], reason="term 9", put_away=True)
        channel.send({"error": Fenced("term 9 exists").to_dict()})
        return
    peer = order["peer"]["name"]
    store.update(vm, role="protected", term=max(7, before.term), peer=peer, wanted=True, armed=True, reason="protected")
    status = {"vm": vm, "state": "protected", "reason": "", "term": 7, "committed": 5, "committed_age_ms": 40.0}
    channel.send({"status": status})
    channel.send({"result": status})
    if vm == "renounced":
        store.update(vm, role="none", wanted=False, armed=False, reason="the agent gave up")
        channel.send({"status": {"vm": vm, "state": "unprotected", "reason": "the agent gave up"}})


def serve(channel: LineChannel, vm: str) -> bool:
    """Speak the worker's protocol until the daemon hangs up; False when it said stop."""
    starting = False
    while (message := channel.receive()) is not None:
        match message:
            case {"op": "start", "args": order}:
                vm, starting = order["vm"], order["vm"] == "slow"
                protect(channel, order)
            case {"op": "unprotect", "args": args}:
                if starting:
                    channel.send({"result": {}, "op": "unprotect"})
                    channel.send({"error": RemusError("given up").to_dict(), "op": "start"})
                    continue
                if vm == "stubborn" and not args["peer_is_dead"]:
                    channel.send({"error": RefusedForSafety("beta does not answer").to_dict()})
                    continue
                if "start" in args:
                    order = args["start"]
                    vm = order["vm"]
                    before = StateStore(Path(order["state_dir"])).load(vm)
                    Path(order["state_dir"], f"{vm}.taken-out").write_text(f"{before.role} {before.term}")
                channel.send({"result": {}})
            case {"op": "stop"}:
                if vm != "deaf":
                    return False
    return True


def main() -> None:
    """Serve the daemon that made this process, then the one after it, but no test that has ended."""
    tester = os.pidfd_open(int(os.environ["REMUSDB_TESTER"]))
    listener = socket.socket(socket.AF_UNIX)
    Path(sys.argv[2]).unlink(missing_ok=True)
    listener.bind(sys.argv[2])
    listener.listen(1)
    listener.settimeout(0.2)
    if not serve(LineChannel(socket.socket(fileno=int(sys.argv[1]))), ""):
        return
    while not select.select([tester], [], [], 0)[0]:
        try:
            sock = listener.accept()[0]
        except TimeoutError:
            continue
        sock.settimeout(None)
        channel = LineChannel(sock)
        channel.send({"op": "start", "result": {}})  # that the daemon before was owed: it must do no harm
        channel.send({"status": {"state": "protected", "reason": "it went on", "term": 7, "committed": 9}})
        if not serve(channel, ""):
            return


main()
