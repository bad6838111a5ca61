# SPDX-License-Identifier: Apache-2.0
"""A worker without a VM, for the daemon's tests: what it does is told by the VM's name."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from remusdb.control.lines import LineChannel
from remusdb.errors import CannotProtect, Fenced, PeerUnreachable, RefusedForSafety, RemusError

PR_SET_PDEATHSIG = 1


def protect(channel: LineChannel, order: dict[str, Any]) -> None:
    """Answer `start` as the VM's name says."""
    vm: str = order["vm"]
    Path(order["state_dir"], f"{vm}.order").write_text(repr(order["previous"]))
    channel.send({"progress": {"step": "memory", "done": 1, "total": 2, "unit": "MiB"}})
    channel.send({"status": {"vm": vm, "state": "seeding", "reason": "copying memory", "unknown": 1}})
    errors: dict[str, RemusError] = {
        "unfit": CannotProtect("vhost-user", hint="take it out"),
        "fenced": Fenced("term 3 exists"),
    }
    if vm in errors:
        channel.send({"error": errors[vm].to_dict()})
        return
    if vm == "dies":
        os._exit(3)
    if vm == "slow":
        return  # and never answers
    if vm == "flaky" and order["previous"] and not Path(order["state_dir"], "peer-is-back").exists():
        channel.send({"error": PeerUnreachable("no route").to_dict()})
        return
    channel.send({"save": {"role": "protected", "term": 7}})
    if channel.receive() != {"saved": True}:
        channel.send({"error": RemusError("not saved").to_dict()})
        return
    status = {"vm": vm, "state": "protected", "reason": "", "term": 7, "committed": 5, "committed_age_ms": 40.0}
    channel.send({"status": status})
    channel.send({"result": status})
    if vm == "renounced":
        channel.send({"save": {"role": "none", "term": 7}})
        channel.receive()
        channel.send({"status": {"vm": vm, "state": "failed", "reason": "the agent gave up"}})


def main() -> None:
    """Speak the worker's protocol until the daemon hangs up."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = LineChannel(socket.socket(fileno=int(sys.argv[1])))
    vm, starting = "", False
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
                    Path(order["state_dir"], f"{order['vm']}.taken-out").write_text(repr(order["previous"]))
                channel.send({"result": {}})
            case {"op": "stop"}:
                if vm == "deaf":
                    continue
                break


main()
