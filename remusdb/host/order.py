# SPDX-License-Identifier: Apache-2.0
"""What the daemon orders a worker to do: the `start` message, decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from remusdb.config import Protection, Tls


class PeerAddress(msgspec.Struct, frozen=True):
    """The agent to protect to."""

    name: str
    address: str
    port: int


class Order(msgspec.Struct, frozen=True):
    """Protect one VM. `previous`: what was saved of an earlier session, None for the first."""

    vm: str
    host: str
    libvirt_uri: str
    run_dir: Path
    state_dir: Path
    peer: PeerAddress
    tls: Tls
    protection: Protection
    previous: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """The VM's own folder for sockets and small files."""
        return self.run_dir / self.vm


def read_order(arguments: dict[str, Any]) -> Order:
    """The order in a `start` message."""
    return msgspec.convert(arguments, Order, dec_hook=_path)


def _path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise TypeError(f"no way to read {kind}")
