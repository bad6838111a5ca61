# SPDX-License-Identifier: Apache-2.0
"""TLS 1.3 with certificates on both sides: contexts, and `connect`; the agent's side is `listener.py`.

In TLS 1.3 a client has finished its handshake before the server has looked at the client's certificate. So
that a refusal shows in `connect` and not in some later call, the listener sends one greeting, a HEARTBEAT of
term 0, once it accepts, and `connect` waits for it; users of the streams do not see it.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from remusdb.core.wire import FrameType
from remusdb.deadline import Deadline
from remusdb.errors import ConfigError, PeerRefused, PeerUnreachable, RemusError
from remusdb.transport import problems
from remusdb.transport.handshake import REFUSAL_DRAIN_S
from remusdb.transport.link import TlsLink, TlsState, set_options
from remusdb.transport.stream import FrameStream


def server_context(ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    """The listener's side: a peer without a certificate of this CA is refused. ConfigError if a file does not do."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, ca, cert, key)
    context.num_tickets = 0  # no resumption: every session shows its certificate
    return context


def client_context(ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    """The connecting side: also checks that the listener's certificate is for the name one connects to."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, ca, cert, key)


def connect(address: str, port: int, context: ssl.SSLContext, server_name: str, timeout_s: float) -> FrameStream:
    """A session with the listener at `address`, whose certificate must be for `server_name`.

    PeerUnreachable if nobody answers within `timeout_s`; PeerRefused if one side's certificate does not do;
    BadFrame if the listener speaks another version of the protocol.
    """
    deadline = Deadline.after(timeout_s)
    try:
        sock = socket.create_connection((address, port), timeout=timeout_s)
    except OSError as error:
        raise problems.socket_failure(error, problems.endpoint(address, port)) from error
    return _open(sock, context, server_name, deadline)


def _open(sock: socket.socket, context: ssl.SSLContext, server_name: str, deadline: Deadline) -> FrameStream:
    """Handshake and greeting over a connected socket, which is closed if they fail."""
    link = None
    try:
        set_options(sock)
        link = TlsLink(sock, TlsState(context, server_name=server_name))
        link.handshake(deadline.left())
        stream = FrameStream(link)
        _await_greeting(stream, deadline)
        return stream
    except (RemusError, OSError) as error:
        # A listener that is refused gets the time to read the alert; a reset would destroy it on its side.
        link.close(REFUSAL_DRAIN_S if isinstance(error, PeerRefused) else 0.0) if link else sock.close()
        if isinstance(error, RemusError):
            raise
        raise problems.socket_failure(error, "peer") from error


def _await_greeting(stream: FrameStream, deadline: Deadline) -> None:
    frame = stream.receive(deadline.left())
    if frame is None:
        raise PeerUnreachable(f"{stream.peer_address} did not accept the session in time")
    if (frame.type, frame.term, frame.epoch) != (FrameType.HEARTBEAT, 0, 0):
        raise PeerRefused(f"{stream.peer_address} began with a {frame.type.name} frame, not with a greeting")


def _context(side: int, ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cafile=str(ca))
        # A password stops OpenSSL from asking on the terminal for the one of an encrypted key.
        context.load_cert_chain(str(cert), str(key), password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"cannot load the certificates {ca}, {cert}, {key}: {error}", hint="make them with `remusdb certs`"
        ) from error
    return context
