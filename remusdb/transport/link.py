# SPDX-License-Identifier: Apache-2.0
"""A TLS connection that one thread reads while others write.

`ssl.SSLSocket` of CPython 3.11 must not be read and written by two threads at once, and a lock around it
would let a blocked read hold up every write. So TLS runs between two memory buffers, under a lock that is held
for the arithmetic alone; the socket is read and written outside of it.

    write   _send_lock ── encrypt (_crypto) ── socket.send ...      order on the wire = order of encryption
    read    _recv_lock ── socket.recv ── decrypt (_crypto)

Owns: the socket and the TLS state. Invariant: bytes leave in the order in which they were encrypted. States, each
for good: open → not sending (a write failed: what the peer said last can still be read, and it may say why) →
ended (end of input, a broken record, or `close`). Every later caller is told the first cause.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import ssl
import termios
import threading
import time
from collections.abc import Iterable

from remusdb.deadline import Deadline
from remusdb.errors import PeerUnreachable, RemusError
from remusdb.transport import problems

_CHUNK = 256 * 1024  # bytes encrypted, or received, in one go

Endpoint = tuple[str, int]
Buffer = bytes | bytearray | memoryview


class TlsState:
    """TLS between two memory buffers: what the socket brought, and what it is to take away."""

    def __init__(self, context: ssl.SSLContext, *, server_name: str | None) -> None:
        """`server_name` is what the peer's certificate must say (client), or None to be the server."""
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_name is None, server_hostname=server_name
        )

    def shake(self, peer: str) -> bool:
        """Go on; False while more must come. PeerRefused when it failed; `outgoing` then tells the peer why."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise problems.tls_failure(error, peer) from error
        return True


class TlsLink:
    """The bytes of one TLS connection. Any thread may call any method."""

    def __init__(self, sock: socket.socket, state: TlsState, *, stall_s: float | None = None) -> None:
        """`state` may have shaken hands already. `stall_s`: a peer that takes no byte of what is sent for so long is
        given up, None to wait for it; for a side whose peer always reads."""
        self._incoming, self._outgoing, self._tls, self._state = state.incoming, state.outgoing, state.tls, state
        self._stall_s = stall_s
        self._socket = sock
        self._crypto, self._send_lock, self._recv_lock = threading.Lock(), threading.Lock(), threading.Lock()
        self._received = memoryview(bytearray(_CHUNK))
        self._send_failure: RemusError | None = None
        self._recv_failure: RemusError | None = None
        self.peer = problems.address_of(sock)
        self.ends = _ends(sock)
        self.last_heard = time.monotonic()
        sock.setblocking(False)

    @property
    def unread(self) -> bool:
        """Whether the kernel has bytes of the peer that nobody has read yet. Waits for nobody."""
        try:
            count = fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, bytes(4))
        except (OSError, ValueError):  # closed meanwhile
            return False
        return any(count)

    def handshake(self, timeout_s: float) -> None:
        """Shake hands. PeerRefused if a certificate or version does not do; PeerUnreachable after `timeout_s`."""
        deadline = Deadline.after(timeout_s)
        with self._send_lock, self._recv_lock:
            while not self._shaken():
                self._flush()
                if not self._receive_some(deadline):
                    raise self._ended(problems.no_handshake(self.peer, timeout_s))
            self._flush()

    def peer_certificate_name(self) -> str:
        """The common name in the peer's certificate."""
        subject = (self._tls.getpeercert() or {}).get("subject", ())
        names = [pair[1] for group in subject for pair in group if pair[0] == "commonName"]
        return str(names[0]) if names else ""

    def write(self, pieces: Iterable[Buffer]) -> None:
        """Send the pieces, with nothing of another writer in between. Blocks while the peer does not read."""
        with self._send_lock:
            for piece in pieces:
                view = memoryview(piece).cast("B")
                for at in range(0, len(view), _CHUNK):
                    _raise_again(self._send_failure)
                    self._send(self._encrypted(view[at : at + _CHUNK]))

    def write_if_room(self, data: bytes) -> bool:
        """Send a few bytes if that waits for nobody; False when another thread sends now, or the peer does not read."""
        if not self._send_lock.acquire(blocking=False):
            return False
        try:
            _raise_again(self._send_failure)
            if not self._wait(select.POLLOUT, 0.0):
                return False
            self._send(self._encrypted(memoryview(data)))
            return True
        finally:
            self._send_lock.release()

    def read_into(self, target: memoryview, deadline: Deadline | None) -> int:
        """Fill `target` from its start; return the bytes filled, fewer only when `deadline` came first."""
        filled = 0
        with self._recv_lock:
            while filled < len(target):
                count = self._decrypt_into(target[filled:])
                filled += count
                if not count and not self._receive_some(deadline):
                    break
        return filled

    def close(self, drain_s: float = 0.0) -> None:
        """Close; whoever is blocked in here gets PeerUnreachable. Never blocks longer than `drain_s`.

        Closing a socket that has unread input resets it, and the peer then may lose what was sent last. With
        `drain_s`, input is thrown away until the peer closes too, at most that long.
        """
        self._ended(PeerUnreachable(f"the connection with {self.peer} was closed on this side"))
        if drain_s:
            self._drain(Deadline.after(drain_s))
        with contextlib.suppress(OSError):  # already closed, or never connected
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the threads that poll it
        with self._send_lock, self._recv_lock:  # they are out: its number can be given to another file now
            self._socket.close()

    def _shaken(self) -> bool:
        try:
            return self._state.shake(self.peer)
        except RemusError as error:
            with contextlib.suppress(RemusError):
                self._flush()  # the alert that tells the peer why
            self._ended(error)
            raise

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._send(self._outgoing.read())

    def _encrypted(self, view: memoryview) -> bytes:
        try:
            with self._crypto:
                while len(view):
                    view = view[self._tls.write(view) :]
                return self._outgoing.read()
        except ssl.SSLError as error:
            raise self._ended(problems.tls_failure(error, self.peer)) from error

    def _decrypt_into(self, target: memoryview) -> int:
        """Decrypt what has arrived, up to the size of `target`; 0 if more must arrive first."""
        filled = 0
        try:
            with self._crypto:
                while filled < len(target):
                    count = self._tls.read(len(target) - filled, target[filled:])
                    if not count:
                        raise ssl.SSLZeroReturnError
                    filled += int(count)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError as error:
            raise self._ended(PeerUnreachable(f"{self.peer} closed the connection")) from error
        except ssl.SSLError as error:
            raise self._ended(problems.tls_failure(error, self.peer)) from error
        return filled

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            _raise_again(self._send_failure)
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                if not self._wait(select.POLLOUT, self._stall_s):
                    raise self._ended(
                        PeerUnreachable(f"{self.peer} took nothing of what it was sent for {self._stall_s:g} s")
                    ) from None
            except OSError as error:
                self._send_failure = self._send_failure or problems.socket_failure(error, self.peer)
                raise self._send_failure from error

    def _receive_some(self, deadline: Deadline | None) -> bool:
        """Take in what the socket has, waiting for it until `deadline`; False if nothing came."""
        while True:
            _raise_again(self._recv_failure)
            try:
                count = self._socket.recv_into(self._received)
                break
            except BlockingIOError:
                if (deadline and deadline.over) or not self._wait(select.POLLIN, deadline.left() if deadline else None):
                    return False
            except OSError as error:
                raise self._ended(problems.socket_failure(error, self.peer)) from error
        if not count:
            raise self._ended(PeerUnreachable(f"{self.peer} closed the connection"))
        self.last_heard = time.monotonic()
        with self._crypto:
            self._incoming.write(self._received[:count])
        return True

    def _wait(self, event: int, within_s: float | None) -> bool:
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(None if within_s is None else max(0.0, within_s) * 1000))

    def _drain(self, deadline: Deadline) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while not deadline.over and self._wait(select.POLLIN, deadline.left()):
                if not self._socket.recv(_CHUNK):
                    return

    def _ended(self, error: RemusError) -> RemusError:
        """Let nothing more happen. The failure to raise is the first one, for it names the cause."""
        self._recv_failure = self._recv_failure or error
        self._send_failure = self._send_failure or self._recv_failure
        return self._recv_failure


def _ends(sock: socket.socket) -> tuple[Endpoint, Endpoint] | None:
    """Address and port of both ends; None where it is gone already, or no connection over IP."""
    try:
        (here, port), (there, its_port) = sock.getsockname()[:2], sock.getpeername()[:2]
    except (OSError, ValueError):
        return None
    return (here, port), (there, its_port)


def _raise_again(failure: RemusError | None) -> None:
    """A fresh exception each time: one object raised in two threads would collect both tracebacks."""
    if failure is not None:
        raise type(failure)(str(failure), hint=failure.hint) from failure


def set_options(sock: socket.socket) -> None:
    """Frames leave at once; a host that is gone without a word is noticed by the kernel too, in about 11 s."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
