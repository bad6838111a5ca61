# SPDX-License-Identifier: Apache-2.0
"""TLS 1.3 with certificates on both sides: contexts, `connect`, and the agent's listener.

In TLS 1.3 a client has finished its handshake before the server has looked at the client's certificate. So
that a refusal shows in `connect` and not in some later call, the listener sends one greeting, a HEARTBEAT of
term 0, once it accepts, and `connect` waits for it; users of the streams do not see it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from remusdb.core.wire import FrameType
from remusdb.errors import ConfigError, PeerRefused, PeerUnreachable, RemusError
from remusdb.transport import problems
from remusdb.transport.link import TlsLink
from remusdb.transport.stream import FrameStream

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
MAX_HANDSHAKES = 32  # at once; a peer beyond that is dropped and tries again
REFUSAL_DRAIN_S = 1.0  # so long a refused peer may take to read why

Session = Callable[[FrameStream], None]


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
    deadline = time.monotonic() + timeout_s
    try:
        sock = socket.create_connection((address, port), timeout=timeout_s)
    except OSError as error:
        raise problems.socket_failure(error, problems.endpoint(address, port)) from error
    return _open(sock, context, server_name, deadline, _await_greeting)


class Listener:
    """Accepts sessions; each gets a thread, which shakes hands and then runs the session.

    Owns the listening socket and the accepting thread. Invariant: whatever a peer does ends its own session
    at most. The session lasts as long as its callback: the stream is closed when that returns or raises.
    """

    def __init__(self, address: str, port: int, context: ssl.SSLContext) -> None:
        """Bind and listen; port 0 takes a free one (see `port`). ConfigError if the address cannot be had."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._socket = socket.create_server((address, port), family=family, backlog=MAX_HANDSHAKES)
        except OSError as error:
            where = problems.endpoint(address, port)
            raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from error
        self.port: int = self._socket.getsockname()[1]
        self._context = context
        self._handshakes = threading.BoundedSemaphore(MAX_HANDSHAKES)
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, session: Session) -> None:
        """Accept from now on, in a thread of its own; call `session` in a new thread for every peer let in."""
        self._thread = threading.Thread(target=self._accept, args=(session,), name="accept", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept nobody any more. Sessions that run are not touched."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    def _accept(self, session: Session) -> None:
        while not self._closed:
            try:
                sock, _ = self._socket.accept()
            except OSError as error:
                if not self._closed:  # out of files or memory: the sessions we have must go on
                    log.warning("cannot accept a connection: %s", error)
                    time.sleep(0.1)
                continue
            self._hand_over(sock, session)

    def _hand_over(self, sock: socket.socket, session: Session) -> None:
        if not self._handshakes.acquire(blocking=False):
            log.warning("dropped %s: %d handshakes are under way", problems.address_of(sock), MAX_HANDSHAKES)
            sock.close()
            return
        name = f"session {problems.address_of(sock)}"
        threading.Thread(target=self._serve, args=(sock, session), name=name, daemon=True).start()

    def _serve(self, sock: socket.socket, session: Session) -> None:
        try:
            stream = _open(sock, self._context, None, time.monotonic() + HANDSHAKE_TIMEOUT_S, _greet)
        except RemusError as error:
            log.warning("no session: %s", error)
            return
        finally:
            self._handshakes.release()
        try:
            session(stream)
        except RemusError as error:
            log.warning("session with %s (%s) ended: %s", stream.peer_name, stream.peer_address, error)
        except Exception:
            log.exception("session with %s (%s) failed", stream.peer_name, stream.peer_address)
        finally:
            stream.close()


def _open(
    sock: socket.socket,
    context: ssl.SSLContext,
    server_name: str | None,
    deadline: float,
    greeting: Callable[[FrameStream, float], None],
) -> FrameStream:
    """Handshake and greeting over a connected socket, which is closed if they fail."""
    link = None
    try:
        _set_options(sock)
        link = TlsLink(sock, context, server_name=server_name)
        link.handshake(max(0.0, deadline - time.monotonic()))
        stream = FrameStream(link)
        greeting(stream, deadline)
        return stream
    except (RemusError, OSError) as error:
        # A refused peer gets the time to read the alert; a reset would destroy it on its side.
        link.close(REFUSAL_DRAIN_S if isinstance(error, PeerRefused) else 0.0) if link else sock.close()
        if isinstance(error, RemusError):
            raise
        raise problems.socket_failure(error, "peer") from error


def _greet(stream: FrameStream, deadline: float) -> None:
    stream.send(FrameType.HEARTBEAT, 0, 0)


def _await_greeting(stream: FrameStream, deadline: float) -> None:
    frame = stream.receive(max(0.0, deadline - time.monotonic()))
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


def _set_options(sock: socket.socket) -> None:
    """Frames leave at once; a host that is gone without a word is noticed by the kernel too, in about 11 s."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
