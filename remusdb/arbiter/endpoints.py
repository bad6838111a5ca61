# SPDX-License-Identifier: Apache-2.0
"""Where etcd is and with which certificates it is asked, from `[arbiter]`."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from remusdb.config import Arbiter as Config
from remusdb.errors import ConfigError


@dataclass(frozen=True)
class Endpoint:
    """One member's client port."""

    url: str
    address: str
    port: int
    secure: bool


def parse_endpoint(url: str) -> Endpoint:
    """ConfigError when it is not http(s)://ADDRESS:PORT."""
    try:
        parts = urlsplit(url)
        port = parts.port
        address = str(ipaddress.ip_address(parts.hostname or ""))
    except ValueError as error:
        raise ConfigError(
            f"arbiter.endpoints: `{url}`: {error}",
            hint="give http(s)://ADDRESS:PORT; a name would have to be looked up just when the network fails",
        ) from error
    if parts.scheme not in ("http", "https") or port is None or parts.path.strip("/") or parts.query:
        raise ConfigError(f"arbiter.endpoints: `{url}`: expected http(s)://ADDRESS:PORT")
    return Endpoint(url, address, port, parts.scheme == "https")


def tls_context(config: Config, endpoints: list[Endpoint]) -> ssl.SSLContext | None:
    """One context for all endpoints: making one reads files, which a question must not wait for. ConfigError."""
    if not any(one.secure for one in endpoints):
        if config.ca or config.cert or config.key:
            raise ConfigError("arbiter: ca, cert and key need endpoints with https://")
        return None
    if bool(config.cert) != bool(config.key):
        raise ConfigError("arbiter: cert and key go together")
    try:
        context = ssl.create_default_context(cafile=config.ca)
        if config.cert and config.key:
            # A password stops OpenSSL from asking on the terminal for the one of an encrypted key.
            context.load_cert_chain(config.cert, config.key, password="")
        return context
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"arbiter: cannot load {config.ca}, {config.cert}, {config.key}: {error}") from error
