# SPDX-License-Identifier: Apache-2.0
"""A worker without a VM, for the daemon's tests: `python fake_worker.py SCRIPTS FD SOCKET`.

What it does with a command is in SCRIPTS/VM.json (`Script`), read when the command comes, so that a test can change it.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from remusdb.control import LineChannel, Progress
from remusdb.control.api import Switched
from remusdb.control.codec import Done, Failed, Nothing, plain
from remusdb.control.status import State, VmStatus
from remusdb.errors import RefusedForSafety, RemusError
from remusdb.state import StateStore
from remusdb.worker.spec import COMMANDS, End, Move, ProtectionSpec, Start, Stop, Told


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker does with its commands. That of no script protects the VM, and ends when it is told to."""

    saves: dict[str, Any] | None = None  # fields of the VM's state that become durable in the copy
    dies: bool = False  # then, in the copy
    refusal: Failed | None = None  # else the answer to the command to protect
    answers: bool = True  # False: nothing comes of the copy, for as long as it is let
    ends_up: State = "protected"  # the state that the answer tells
    over: str = ""  # a reason: the session ends by itself as soon as it has begun
    lets_go: bool = True  # False: an unprotect is refused, unless the peer is dead
    breaks_wiring: bool = False  # it dies when it is to take out what an earlier worker left
    moves: bool = True  # False: a switchover is refused
    deaf: bool = False  # to being told to stop


def script_of(folder: Path, vm: str) -> Script:
    path = folder / f"{vm}.json"
    return msgspec.json.decode(path.read_bytes(), type=Script) if path.exists() else Script()


def protect(channel: LineChannel, spec: ProtectionSpec, script: Script) -> None:
    """Answer `start` by the script."""
    vm, peer = spec.vm, spec.peer.name
    store = StateStore(spec.state_dir)
    before = store.load(vm)
    (spec.state_dir / f"{vm}.spec").write_text(f"{before.role} {before.term}")
    channel.send(Progress(step="memory", done=1, total=2, unit="MiB"))
    seeding = VmStatus(vm=vm, peer=peer, state="seeding", reason="copying memory")
    channel.send({**plain(Told(status=seeding)), "unknown": 1})  # by a worker that is newer than its daemon
    if script.saves is not None:
        store.update(vm, **script.saves)
    if script.dies:
        os._exit(3)
    if script.refusal is not None:
        channel.send(script.refusal)
    if script.refusal is not None or not script.answers:
        return
    store.update(vm, role="protected", term=max(7, before.term), peer=peer, wanted=True, armed=True, reason="protected")
    status = VmStatus(vm=vm, peer=peer, state=script.ends_up, term=7, committed=5, committed_age_ms=40.0)
    channel.send(Told(status=status))
    channel.send(Done.by(status))
    if script.over:
        store.update(vm, role="none", wanted=False, armed=False, reason=script.over)
        channel.send(Told(status=VmStatus(vm=vm, state="unprotected", reason=script.over)))


def serve(channel: LineChannel, folder: Path, vm: str) -> bool:
    """Speak the worker's protocol until the daemon hangs up; False when it said stop."""
    unanswered = False
    while (line := channel.line()) is not None:
        match COMMANDS.read(line):
            case Start(spec=spec):
                vm = spec.vm
                script = script_of(folder, vm)
                unanswered = not script.answers
                protect(channel, spec, script)
            case End() if unanswered:
                channel.send(Done.by(Nothing(), "unprotect"))
                channel.send(Failed.by(RemusError("given up"), "start"))
            case End(peer_is_dead=False, spec=None) if not script_of(folder, vm).lets_go:
                channel.send(Failed.by(RefusedForSafety("beta does not answer")))
            case End(spec=spec):
                if spec is not None:
                    vm = spec.vm
                    if script_of(folder, vm).breaks_wiring:
                        os._exit(3)
                    before = StateStore(spec.state_dir).load(vm)
                    (spec.state_dir / f"{vm}.taken-out").write_text(f"{before.role} {before.term}")
                channel.send(Done.by(Nothing()))
            case Move() if script_of(folder, vm).moves:
                channel.send(Done.by(Switched(to="beta", term=8, took_ms=80.0)))
            case Move():
                channel.send(Failed.by(RefusedForSafety("beta does not answer")))
            case Stop() if not script_of(folder, vm).deaf:
                return False
    return True


def main() -> None:
    """Serve the daemon that made this process, then the one after it, but no test that has ended."""
    folder, path = Path(sys.argv[1]), Path(sys.argv[3])
    tester = os.pidfd_open(int(os.environ["REMUSDB_TESTER"]))
    listener = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    listener.listen(1)
    listener.settimeout(0.2)
    if not serve(LineChannel(socket.socket(fileno=int(sys.argv[2]))), folder, ""):
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
        if not serve(channel, folder, ""):
            return


if __name__ == "__main__":
    main()
