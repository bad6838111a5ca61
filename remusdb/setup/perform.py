# SPDX-License-Identifier: Apache-2.0
"""Doing the steps on a host. Each is whole or not there, so that a run that was cut short is simply run again."""

from __future__ import annotations

import io
import shlex
from contextlib import closing
from typing import IO, Protocol

from remusdb.setup.facts import LOOK, Facts, read_facts
from remusdb.setup.steps import Put, Run, Send, Step

LOOK_S = 60.0
PUT_S = 60.0
SEND_S = 600.0
PRIVATE = ("/etc/remusdb/tls/", "/etc/remusdb/etcd/")


class Shell(Protocol):
    """What is needed of a host: remusdb.setup.ssh.Remote."""

    def must(self, command: str, timeout_s: float, stdin: IO[bytes] | None = None) -> str:
        """Run a shell's command as root; what it printed. RemusError where it fails."""


def look(host: Shell) -> Facts:
    """What this host is like. Nothing is changed."""
    return read_facts(host.must(LOOK, LOOK_S))


def do(host: Shell, step: Step) -> None:
    """One step. RemusError where it fails."""
    match step:
        case Put(path=path, content=content, mode=mode):
            host.must(_write(path, mode), PUT_S, io.BytesIO(content))
        case Send(source=source, path=path):
            with closing(source.open("rb")) as file:
                host.must(_write(path, 0o600), SEND_S, file)
        case Run(argv=argv, timeout_s=timeout_s):
            host.must(shlex.join(argv), timeout_s)


def _write(path: str, mode: int) -> str:
    """The command that makes a file of its stdin. A key is never to be read by others, not for a moment."""
    target, partial, folder = shlex.quote(path), shlex.quote(f"{path}.partial"), shlex.quote(path.rpartition("/")[0])
    mode_of_folder = "700" if mode & 0o077 == 0 or path.startswith(PRIVATE) else "755"
    make = f"umask 022 && {{ [ -d {folder} ] || mkdir -p -m {mode_of_folder} {folder}; }}"
    return f"{make} && umask 077 && cat > {partial} && chmod {mode:o} {partial} && mv {partial} {target}"
