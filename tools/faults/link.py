# SPDX-License-Identifier: Apache-2.0
"""Faults of one node's cable, made at its port of the LAN's bridge, where no process of the node can undo them.

A frame that is cut or lost is dropped by a classic-BPF filter on the port: the carrier stays, as with a broken
switch further away, and a packet socket on the port still sees what the node tried to send.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

from remusdb.deadline import Deadline, poll_until
from tools.lab.links import ip
from tools.lab.node import Node
from tools.lab.paths import NETNS, REPO

# As `tc` writes them: how many instructions, then "code if_true if_false operand" of each; 2 is TC_ACT_SHOT, a drop.
_ALL = "1,6 0 0 2"
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM


class LinkFault:
    """The cable of one node. One fault at a time; `heal()`, or leaving the context, undoes it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._proxy: subprocess.Popen[str] | None = None
        self._slow_tap = ""
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def cut(self, *, outgoing: bool = True, incoming: bool = True) -> None:
        """Nothing passes: out of the node, into it, or both."""
        self._filter(_ALL if outgoing else "", _ALL if incoming else "")

    def lose(self, share: float) -> None:
        """This share of the frames of each direction is lost at random; a batch that the kernel sends as one is one."""
        limit = round(share * 2**32)
        program = f"4,32 0 0 {_RANDOM},53 0 1 {limit},6 0 0 {2**32 - 1},6 0 0 2"
        self._filter(program, program)

    def blink(self, for_s: float) -> None:
        """Cut both ways now, and whole again after that time, which a timer sees to."""
        self.cut()
        self._timer = threading.Timer(for_s, self.heal)
        self._timer.daemon = True
        self._timer.start()

    def arm_delay(self, out_s: float, in_s: float = 0.0) -> None:
        """Gets ready for `delay()`, which then takes no time; each frame will come later by these times, in order."""
        command = [sys.executable, "-m", "tools.faults.delay", self._node.port, str(out_s), str(in_s)]
        self._proxy = subprocess.Popen(
            ["nsenter", f"--net={NETNS / self._node.lan}", "--", *command],
            cwd=REPO,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._proxy.stdout is not None
        self._slow_tap = self._proxy.stdout.readline().strip()
        if not self._slow_tap:
            raise RuntimeError("the delay's process did not start (the reason is above)")

    def delay(self) -> None:
        """From now on: a process takes the port's place on the bridge."""
        assert self._proxy is not None, "arm_delay() first"
        # One after the other: never both in the bridge, which would be a loop.
        ip(f"link set {self._node.port} nomaster\nlink set {self._slow_tap} master lan0\n", netns=self._node.lan)

    def reset(self, port: int, within_s: float = 1.0) -> int:
        """Resets the node's TCP connections with this port at either end, if it can while one has unsent data.

        Gives how many there were; with none in `within_s`, 0.
        """
        which = ["state", "established", f"( sport = :{port} or dport = :{port} )"]

        def busy() -> bool:
            lines = self._node.run(["ss", "-Htn", *which]).stdout.splitlines()
            return any(int(line.split()[1]) > 0 for line in lines)

        poll_until(busy, Deadline.after(within_s), 0.0)
        killed = self._node.run(["ss", "-HKtn", *which]).stdout
        return len(killed.splitlines())

    def heal(self) -> None:
        """As if nothing had been. Idempotent, from any thread."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
                self._timer = None
            if self._proxy:
                # The tap is gone with its process.
                self._proxy.kill()
                self._proxy.wait()
                if self._proxy.stdout:
                    self._proxy.stdout.close()
                self._proxy = None
                ip(f"link set {self._node.port} master lan0\n", netns=self._node.lan)
            self._tc("qdisc", "del", "dev", self._node.port, "clsact", check=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.heal()

    def _filter(self, outgoing: str, incoming: str) -> None:
        """What leaves the node comes in at the port."""
        port = self._node.port
        lines = [f"qdisc add dev {port} clsact"]
        for way, program in (("ingress", outgoing), ("egress", incoming)):
            if program:
                lines.append(f"filter add dev {port} {way} bpf da bytecode '{program}'")
        self._tc("-batch", "-", stdin="\n".join(lines) + "\n")

    def _tc(self, *args: str, stdin: str | None = None, check: bool = True) -> None:
        done = subprocess.run(
            ["tc", "-netns", self._node.lan, *args], input=stdin, capture_output=True, text=True, timeout=20
        )
        if check and done.returncode:
            raise RuntimeError(f"tc on {self._node.port}: {done.stderr.strip()}")
