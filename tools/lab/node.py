# SPDX-License-Identifier: Apache-2.0
"""A network namespace with an address, in which commands run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tools.lab import procs
from tools.lab.links import LinkSwitch, ip
from tools.lab.paths import NETNS, REPO

PREFIX4, PREFIX6 = 24, 64


class Node:
    """One machine on the lab's LAN. Its link is a veth into the LAN's bridge.

    `ip4`, `ip6` and `mac` are those of the interface `device`; `netns` is a name for `ip netns`.
    """

    device = "eth0"

    def __init__(self, lab_id: str, name: str, number: int) -> None:
        self.name = name
        self.netns = f"rdb{lab_id}-{name}"
        self.lan = f"rdb{lab_id}-lan"
        self.port = f"p-{name}"  # this node's port on the LAN's bridge
        self.ip4 = f"10.77.0.{number}"
        self.ip6 = f"fd77::{number}"
        self.mac = f"02:77:00:00:00:{number:02x}"
        self._switch: LinkSwitch | None = None

    def create(self) -> None:
        """Makes the namespace and plugs it into the LAN, whose namespace exists already."""
        ip(f"netns add {self.netns}")
        ip(
            f"link add {self.port} type veth peer name eth0 netns {self.netns}\nlink set {self.port} master lan0 up\n",
            netns=self.lan,
        )
        ip("link set lo up\n" + self._wire() + self._addresses(), netns=self.netns)
        self._switch = LinkSwitch(self.lan, self.port)

    def _wire(self) -> str:
        return f"link set eth0 address {self.mac} up\n"

    def _addresses(self) -> str:
        # nodad: an address that is tentative for a second makes the first connection fail.
        return (
            f"addr add {self.ip4}/{PREFIX4} dev {self.device}\naddr add {self.ip6}/{PREFIX6} dev {self.device} nodad\n"
        )

    @property
    def netns_id(self) -> tuple[int, int]:
        """Device and inode of its network namespace, by which processes are known to be here."""
        return procs.namespace_id(NETNS / self.netns)

    def pids(self) -> list[int]:
        """All processes that run on this node."""
        return procs.members(self.netns_id)

    def enter(self, cwd: Path = REPO) -> list[str]:
        """The command prefix that runs a program on this node."""
        return ["nsenter", f"--net={NETNS / self.netns}", "--", "env", f"--chdir={cwd}"]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = 60.0,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path = REPO,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end and gives its output as text.

        Raises RuntimeError with the program's stderr if `check` and it failed, subprocess.TimeoutExpired after
        `timeout_s` (the program is killed then).
        """
        done = subprocess.run(
            [*self.enter(cwd), *argv],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=_environment(env),
        )
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        log: Path | None = None,
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        stdout: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path = REPO,
    ) -> subprocess.Popen[str]:
        """Starts a program in its own session, so that a Ctrl-C at the terminal reaches only the lab's owner.

        With `log`, stdout and stderr are appended to that file; otherwise stderr is the caller's.
        """
        sink = log.open("a") if log else None
        try:
            return subprocess.Popen(
                [*self.enter(cwd), *argv],
                stdin=stdin,
                stdout=stdout if stdout is not None else sink,
                stderr=sink,
                text=True,
                start_new_session=True,
                env=_environment(env),
            )
        finally:
            if sink:
                sink.close()

    def cut_link(self) -> None:
        """Unplugs the cable: the node keeps running and neither sends nor receives."""
        assert self._switch is not None, "create() first"
        self._switch.set(False)

    def restore_link(self) -> None:
        """Plugs the cable in again."""
        assert self._switch is not None, "create() first"
        self._switch.set(True)

    def close(self) -> None:
        """Lets go of what this object holds; removing the namespace is the lab's part."""
        if self._switch:
            self._switch.close()
            self._switch = None


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """The caller's environment, with the programs of this interpreter's virtual environment in front."""
    bin_dir = Path(sys.executable).parent
    return {**os.environ, "PATH": f"{bin_dir}:{os.environ.get('PATH', '')}", **(extra or {})}
