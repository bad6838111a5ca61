# SPDX-License-Identifier: Apache-2.0
"""One connection that shakes hands with the listener, step by step, and never waits.

Owns the socket until it becomes a link. Invariant: a peer that has not sent the whole first record costs a socket and
no TLS; whatever it sends, it is over after `HANDSHAKE_TIMEOUT_S`.

    new ──first record──▶ shaking ──▶ done: `link`
                            └──refused──▶ draining: the peer may read why ──▶ closed
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import time

from remusdb.errors import PeerUnreachable, RemusError
from remusdb.transport import problems
from remusdb.transport.link import TlsLink, TlsState, set_options

HANDSHAKE_TIMEOUT_S = 5.0
REFUSAL_DRAIN_S = 1.0  # so long a refused peer may take to read why
STALL_S = 20.0  # a primary always reads; one that takes nothing for so long has its connection ended
_CHUNK = 16 * 1024  # bytes received in one go; a handshake needs about 4 KiB
_HANDSHAKE, _RECORD_HEADER_BYTES = 22, 5  # RFC 8446, 5.1


class Handshake:
    """The listener's side of one handshake. For one thread."""

    def __init__(self, sock: socket.socket, peer: str, context: ssl.SSLContext) -> None:
        """`peer`: its address and port, as it is told."""
        self._socket = sock
        self._received = b""  # before there is any TLS
        self._context = context
        self._tls: TlsState | None = None
        self._unsent = b""
        self._shaken = self._draining = False
        self._timeout_s = HANDSHAKE_TIMEOUT_S
        self.deadline = time.monotonic() + self._timeout_s
        self.peer = peer
        sock.setblocking(False)

    def fileno(self) -> int:
        """Of its socket, for a selector."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What it waits for, as a selector has it."""
        return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def step(self) -> bool:
        """Do what can be done now; True once hands are shaken. PeerRefused where the peer is (it may then be told so by
        `drain`), PeerUnreachable when it is gone."""
        try:
            self._send()
            if self._unsent or self._shaken:
                return self._shaken and not self._unsent
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise problems.socket_failure(error, self.peer) from error
        if not data:
            raise PeerUnreachable(f"{self.peer} closed the connection")
        return not self._draining and self._shake(data)

    def drain(self, now: float) -> None:
        """It was refused: closing now would reset the connection and destroy the alert that says why, so what it still
        sends is thrown away until it closes, at most `REFUSAL_DRAIN_S`."""
        self._draining = True
        self.deadline = min(self.deadline, now + REFUSAL_DRAIN_S)
        with contextlib.suppress(OSError):
            self._send()
            self._socket.shutdown(socket.SHUT_WR)

    def late(self) -> RemusError | None:
        """The time is over: what to say of it, if anything."""
        return None if self._draining else problems.no_handshake(self.peer, self._timeout_s)

    def link(self) -> TlsLink:
        """The connection, hands shaken: the socket is the link's from now on."""
        assert self._tls is not None
        return TlsLink(self._socket, self._tls, stall_s=STALL_S)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _shake(self, data: bytes) -> bool:
        if self._tls is None:
            self._received = data = self._received + data
            if not _whole_record(data):
                return False
            set_options(self._socket)
            self._tls, self._received = TlsState(self._context, server_name=None), b""
        self._tls.incoming.write(data)
        try:
            self._shaken = self._tls.shake(self.peer)
        finally:  # also the alert that tells a refused peer why
            self._unsent += self._tls.outgoing.read()
        try:
            self._send()
        except OSError as error:
            raise problems.socket_failure(error, self.peer) from error
        return self._shaken and not self._unsent

    def _send(self) -> None:
        if self._unsent:
            with contextlib.suppress(BlockingIOError):
                self._unsent = self._unsent[self._socket.send(self._unsent) :]


def _whole_record(data: bytes) -> bool:
    """Whether OpenSSL may be asked: the first record is here, or it is none."""
    length = int.from_bytes(data[3:5], "big")
    if data[0] != _HANDSHAKE or length > _CHUNK:
        return True
    return len(data) >= _RECORD_HEADER_BYTES + length and len(data) >= _RECORD_HEADER_BYTES
