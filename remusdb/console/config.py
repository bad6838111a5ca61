# SPDX-License-Identifier: Apache-2.0
"""What the console is told: console.toml as a frozen struct.

Invariant: away from loopback there is TLS, and a token or certificates of clients; else this refuses to load.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from remusdb.config import Port, Text
from remusdb.errors import ConfigError
from remusdb.tomlstruct import decode, read_toml, refuse_unknown, subtable

TOKEN_LEAST, TOKEN_MOST = 24, 1024  # characters; nobody guesses 24 that were chosen at random
MAKE_ONE = "make one: head -c 24 /dev/urandom | base64"


class Console(Struct, frozen=True, kw_only=True):
    """`[console]` of console.toml."""

    listen: Text = "127.0.0.1"
    port: Port = 7480
    title: Text | None = None
    names: list[Text] = []
    run_dir: Path = Path("/run/remusdb")
    daemons: Annotated[list[Literal["host", "agent"]], Meta(min_length=1, max_length=2)] = field(
        default_factory=lambda: ["host", "agent"]
    )
    token_file: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @property
    def tls(self) -> bool:
        """Whether it is served by HTTPS."""
        return self.cert is not None

    @property
    def hosts(self) -> frozenset[str]:
        """What a request's Host may name, without a port."""
        own = {"localhost", "127.0.0.1", "::1"} if self.loopback else {self.listen}
        return frozenset(name.lower() for name in (*own, *self.names))

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.listen).is_loopback


def load_console(path: Path, *, required: bool) -> Console:
    """console.toml, validated; defaults where it is not there and need not be. ConfigError says what is wrong."""
    if not required and not path.exists():
        return Console()
    doc = read_toml(path)
    refuse_unknown(path, doc, ("console",))
    found = decode(path, subtable(path, doc, "console"), Console, "console")
    try:
        loopback = found.loopback
    except ValueError as exc:
        raise ConfigError(f"{path}: console.listen: {found.listen!r} is no IP address") from exc
    if (found.cert is None) != (found.key is None):
        raise ConfigError(f"{path}: console.cert and console.key: one is there without the other")
    if found.client_ca is not None and not found.tls:
        raise ConfigError(f"{path}: console.client_ca: certificates of clients need TLS: console.cert, console.key")
    if not loopback and not found.tls:
        raise ConfigError(
            f"{path}: console.listen: {found.listen} is not loopback, and there is no TLS",
            hint="set console.cert and console.key, or listen on 127.0.0.1 and come by `ssh -L`",
        )
    if not loopback and found.token_file is None and found.client_ca is None:
        raise ConfigError(
            f"{path}: console.listen: {found.listen} is not loopback, and nobody would have to show who he is",
            hint="set console.token_file, or console.client_ca",
        )
    return found


def read_token(path: Path) -> str:
    """The token in this file. ConfigError where it is none, too short, or open to every user of this machine."""
    try:
        with path.open("rb") as file:
            text = file.read(TOKEN_MOST + 1).decode("ascii").strip()
            if path.stat().st_mode & 0o007:
                raise ConfigError(f"{path}: every user of this machine may read the token", hint=f"chmod o= {path}")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: the token cannot be read: {exc}", hint=MAKE_ONE) from exc
    if not TOKEN_LEAST <= len(text) <= TOKEN_MOST or not text.isprintable():
        raise ConfigError(f"{path}: a token is one line of {TOKEN_LEAST} characters or more", hint=MAKE_ONE)
    return text
