# SPDX-License-Identifier: Apache-2.0
"""A worker without a VM, for the daemon's tests: what it does is told by the VM's name."""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path

from remusdb.control import LineChannel, Progress
from remusdb.control.codec import Done, Failed, Nothing, plain
from remusdb.control.status import VmStatus
from remusdb.errors import CannotProtect, Fenced, PeerUnreachable, RefusedForSafety, RemusError
from remusdb.state import StateStore
from remusdb.worker.spec import ORDERS, End, Order, Start, Stop, Told


def protect(channel: LineChannel, order: Order) -> None:
    """Answer `start` as the VM's name says."""
    vm, peer = order.vm, order.peer.name
    store = StateStore(order.state_dir)
    before = store.load(vm)
    (order.state_dir / f"{vm}.order").write_text(f"{before.role} {before.term}")
    channel.send(Progress(step="memory", done=1, total=2, unit="MiB"))
    seeding = VmStatus(vm=vm, peer=peer, state="seeding", reason="copying memory")
    channel.send({**plain(Told(status=seeding)), "unknown": 1})  # by a worker that is newer than its daemon
    if vm == "unfit":
        channel.send(Failed.by(CannotProtect("vhost-user", hint="take it out")))
        return
    if vm == "breaks" and before.role == "none":
        store.update(vm, role="seeding", term=7, peer=peer, wanted=True, reason="copying")
        os._exit(3)
    if vm == "dies":
        os._exit(3)
    if vm == "slow":
        return  # and never answers
    if vm == "flaky" and before.role == "protected" and not (order.state_dir / "peer-is-back").exists():
        channel.send(Failed.by(PeerUnreachable("no route")))
        return
    if vm == "unlucky":
        store.update(vm, role="fenced", term=9, owner=peer, reason="term 9", put_away=True)
        channel.send(Failed.by(Fenced("term 9 exists")))
        return
    store.update(vm, role="protected", term=max(7, before.term), peer=peer, wanted=True, armed=True, reason="protected")
    status = VmStatus(vm=vm, peer=peer, state="protected", term=7, committed=5, committed_age_ms=40.0)
    channel.send(Told(status=status))
    channel.send(Done.by(status))
    if vm == "renounced":
        store.update(vm, role="none", wanted=False, armed=False, reason="the agent gave up")
        channel.send(Told(status=VmStatus(vm=vm, state="unprotected", reason="the agent gave up")))


def serve(channel: LineChannel, vm: str) -> bool:
    """Speak the worker's protocol until the daemon hangs up; False when it said stop."""
    starting = False
    while (line := channel.line()) is not None:
        match ORDERS.read(line):
            case Start(order=order):
                vm, starting = order.vm, order.vm == "slow"
                protect(channel, order)
            case End() if starting:
                channel.send(Done.by(Nothing(), "unprotect"))
                channel.send(Failed.by(RemusError("given up"), "start"))
            case End(peer_is_dead=False) if vm == "stubborn":
                channel.send(Failed.by(RefusedForSafety("beta does not answer")))
            case End(order=order):
                if order is not None:
                    vm = order.vm
                    before = StateStore(order.state_dir).load(vm)
                    (order.state_dir / f"{vm}.taken-out").write_text(f"{before.role} {before.term}")
                channel.send(Done.by(Nothing()))
            case Stop() if vm != "deaf":
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
        channel.send(Done.by(Nothing(), "start"))  # that the daemon before was owed: it must do no harm
        status = VmStatus(vm="db1", peer="beta", state="protected", reason="it went on", term=7, committed=9)
        channel.send(Told(status=status))
        if not serve(channel, ""):
            return


main()
