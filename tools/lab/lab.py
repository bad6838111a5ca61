# SPDX-License-Identifier: Apache-2.0
"""The lab as a context manager: what is made in it is gone when it ends, however it ends."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from tools.lab import sweep
from tools.lab.host import Host
from tools.lab.links import ip
from tools.lab.node import Node
from tools.lab.paths import LABS

_Handler = Callable[[int, FrameType | None], object] | int | None


class Lab:
    """Hosts `a` and `b`, a `client`, a `witness`, and the LAN's switch between them. Needs root.

    Invariant: everything that belongs to a lab is named by its id, and its owner is saved before the first
    thing is made, so that `sweep` finds all of a lab whose owner died.

    Leaving the `with` block removes it: on success, on any exception, on SIGINT and on SIGTERM. When the owner is
    killed outright, a reaper process does it.
    """

    def __init__(self) -> None:
        self.id = secrets.token_hex(2)
        self.folder = LABS / self.id
        self._state: Path | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._nodes: dict[str, Node] = {}
        self._old_handlers: dict[int, _Handler] = {}

    def host(self, name: str) -> Host:
        """Host `a` or `b`."""
        node = self._nodes[name]
        assert isinstance(node, Host)
        return node

    @property
    def client(self) -> Node:
        """The machine from which clients use the database."""
        return self._nodes["client"]

    @property
    def witness(self) -> Node:
        """The third machine, on which an arbiter may run (`tools.lab.etcd`)."""
        return self._nodes["witness"]

    @property
    def lan(self) -> str:
        """Name of the network namespace that is the switch; its bridge is `lan0`."""
        return f"rdb{self.id}-lan"

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise PermissionError("the lab needs root: it makes namespaces")
        sweep.sweep()
        if threading.current_thread() is threading.main_thread():
            # By default SIGTERM ends a process without any clean-up; and a shell starts background jobs deaf to SIGINT.
            for signum, handler in ((signal.SIGTERM, _raise_exit), (signal.SIGINT, signal.default_int_handler)):
                self._old_handlers[signum] = signal.signal(signum, handler)
        try:
            self._state = sweep.claim(self.id)
            self._reaper = sweep.start_reaper(self.id)
            self._create()
        except BaseException:
            self.close()
            raise
        return self

    def _create(self) -> None:
        assert self._state is not None
        self.folder.mkdir(parents=True)
        ip(f"netns add {self.lan}")
        ip("link set lo up\nlink add lan0 type bridge stp_state 0 forward_delay 0\nlink set lan0 up\n", netns=self.lan)
        for number, name in ((1, "a"), (2, "b")):
            self._nodes[name] = Host(self.id, name, number, self.folder / name, self._state)
        self._nodes["client"] = Node(self.id, "client", 100)
        self._nodes["witness"] = Node(self.id, "witness", 90)
        for node in self._nodes.values():
            node.create()

    def start_libvirt(self, timeout_s: float = 90.0) -> None:
        """Starts libvirt on both hosts."""
        for name in ("a", "b"):
            self.host(name).start_libvirt(timeout_s)

    def close(self) -> None:
        """Removes the lab. Safe to call twice; a second Ctrl-C does not stop it half way."""
        with _no_interrupts():
            for node in self._nodes.values():
                node.close()
            if self._state:
                sweep.remove(self.id)
                self._state = None
            if self._reaper and self._reaper.stdin:
                self._reaper.stdin.close()
                self._reaper.wait()
                self._reaper = None
            while self._old_handlers:
                signal.signal(*self._old_handlers.popitem())

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _raise_exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back until the block ends; they arrive then."""
    held = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
