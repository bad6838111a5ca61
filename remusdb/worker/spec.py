# SPDX-License-Identifier: Apache-2.0
"""What the daemon orders a worker to do: the `start` message, decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from remusdb.config import Arbiter, Protection, Tls
from remusdb.errors import BadFrame
from remusdb.names import socket_stem

LONGEST_FILE = "/disk255.nbd"  # in a VM's own folder


class PeerAddress(msgspec.Struct, frozen=True):
    """The agent to protect to."""

    name: str
    address: str
    port: int


class Order(msgspec.Struct, frozen=True):
    """Protect one VM. What an earlier session left is in the VM's state file (remusdb/state.py)."""

    vm: str
    host: str
    libvirt_uri: str
    run_dir: Path
    state_dir: Path
    hooks_dir: Path
    peer: PeerAddress
    tls: Tls
    protection: Protection
    arbiter: Arbiter | None = None
    asked: bool = True  # by somebody who waits for the answer; False: begun by the host daemon itself

    @property
    def goes_solo(self) -> bool:
        """Whether the VM goes on alone when its backup is lost: only where an arbiter can tell who may."""
        return self.arbiter is not None and self.protection.on_backup_loss != "hold"

    @property
    def folder(self) -> Path:
        """The VM's own folder for sockets and small files."""
        return self.run_dir / socket_stem(self.run_dir, "", self.vm, LONGEST_FILE)


def read_order(arguments: dict[str, Any]) -> Order:
    """The order in a `start` message. BadFrame for what is none."""
    try:
        return msgspec.convert(arguments, Order, dec_hook=_path)
    except (ValueError, TypeError) as exc:
        raise BadFrame(f"an order cannot be read: {exc}") from exc


def _path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise TypeError(f"no way to read {kind}")
