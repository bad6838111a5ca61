# SPDX-License-Identifier: Apache-2.0
"""A host over SSH, as root: by logging in as root, or with sudo that asks for no password.

Its key must be known already (known_hosts): the first connection is where somebody in between would be believed. One
logs in with the keys of an SSH agent or of ~/.ssh; passwords are not asked for.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import paramiko

from remusdb.errors import PeerUnreachable, RefusedForSafety, RemusError

CONNECT_S = 15.0
ANSWER_MAX_BYTES = 32 << 20
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Login:
    """How to log in, for all hosts of one run."""

    user: str = "root"
    port: int = 22
    identity: Path | None = None
    known_hosts: Path | None = None  # besides the user's own


class Remote:
    """One host. Use as a context manager."""

    def __init__(self, name: str, address: str, login: Login) -> None:
        """Connects. RefusedForSafety: its key is not known, or another; PeerUnreachable: it cannot be logged in to."""
        self.name = name
        self._sudo = "" if login.user == "root" else "sudo -n -- "
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what fails is raised, and told in our own words
        self._client = paramiko.SSHClient()
        try:
            self._client.load_system_host_keys()
            if login.known_hosts is not None:
                self._client.load_host_keys(str(login.known_hosts))
            self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
            self._client.connect(
                address,
                login.port,
                login.user,
                key_filename=str(login.identity) if login.identity else None,
                timeout=CONNECT_S,
                banner_timeout=CONNECT_S,
                auth_timeout=CONNECT_S,
            )
        except paramiko.BadHostKeyException as exc:
            self.close()
            raise RefusedForSafety(
                f"{name} ({address}) shows another key than the one that is known of it: somebody may stand in between",
                hint="if the host was installed again, remove its old line from known_hosts",
            ) from exc
        except (paramiko.SSHException, OSError) as exc:
            self.close()
            if "not found in known_hosts" in str(exc):
                raise RefusedForSafety(
                    f"the key of {name} ({address}) is not known",
                    hint=f"connect once by hand: ssh {login.user}@{address}",
                ) from exc
            raise PeerUnreachable(
                f"{name} ({address}) cannot be logged in to as {login.user}: {exc}",
                hint="a key in ~/.ssh or in an SSH agent is needed, or --identity; --user and --ssh-port name others",
            ) from exc

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def run(self, command: str, timeout_s: float, stdin: IO[bytes] | None = None) -> tuple[int, str, str]:
        """Run a shell's command as root: exit code, stdout, stderr. PeerUnreachable where the host falls silent."""
        line = f"{self._sudo}sh -c {shlex.quote(command)}"
        try:
            to, out, err = self._client.exec_command(line, timeout=timeout_s)
            if stdin is not None:
                while chunk := stdin.read(CHUNK_BYTES):
                    to.write(chunk)
            to.channel.shutdown_write()
            told = out.read(ANSWER_MAX_BYTES).decode(errors="replace")
            complained = err.read(ANSWER_MAX_BYTES).decode(errors="replace")
            return out.channel.recv_exit_status(), told, complained
        except (paramiko.SSHException, OSError) as exc:
            raise PeerUnreachable(f"{self.name} does not answer any more: {exc or 'silence'}") from exc

    def must(self, command: str, timeout_s: float, stdin: IO[bytes] | None = None) -> str:
        """The same; what it printed. RemusError with its last words where it fails."""
        code, told, complained = self.run(command, timeout_s, stdin)
        if code:
            words = (complained.strip() or told.strip() or "nothing").splitlines()[-1]
            hint = "this user needs sudo without a password, or log in as root" if "sudo:" in words else ""
            raise RemusError(f"{self.name}: `{command:.200}` failed ({code}): {words}", hint=hint)
        return told
