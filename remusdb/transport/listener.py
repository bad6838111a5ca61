# SPDX-License-Identifier: Apache-2.0
"""The agent's listener: one thread accepts and shakes hands with everybody at once; whoever is let in gets a thread.

Owns the listening socket and the connections that are not let in yet. Invariants: whatever a peer does ends its own
connection at most; strangers cost no thread, and never more than `MOST_WAITING` sockets; however many there are, a peer
that shakes hands at once gets in (`crowd.py`). The accepting thread waits for nobody.

    accepted ──hands shaken──▶ session: a thread of its own, until the callback returns
        └──refused, late, or too many──▶ closed
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable

from remusdb.core.wire import FrameType
from remusdb.errors import ConfigError, NoThread, PeerRefused, RemusError
from remusdb.quietly import NOISY
from remusdb.threads import spawn, vital
from remusdb.transport import problems
from remusdb.transport.crowd import Crowd, source_of
from remusdb.transport.handshake import Handshake
from remusdb.transport.stream import FrameStream

log = logging.getLogger(__name__)

MOST_WAITING = 256  # connections that are not let in yet; each is a socket, and some 100 KiB once it speaks TLS
MOST_EACH = 32  # of one source: a host with more VMs connects again, which it does every 20 ms
BACKLOG = 4096  # in the kernel, which takes net.core.somaxconn at most; in a full one a connection waits a second
ACCEPTS = 32  # in one go; then those are served that are here, or a flood of new ones would starve them
LATE_LOOK_S = 0.1
FULL_S = 0.1  # out of files or memory: so long nobody is accepted

Session = Callable[[FrameStream], None]


class Listener:
    """Accepts sessions. A session lasts as long as its callback: the stream is closed when that returns or raises."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext) -> None:
        """Bind and listen; port 0 takes a free one (see `port`). ConfigError if the address cannot be had."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._socket = socket.create_server((address, port), family=family, backlog=BACKLOG)
        except OSError as error:
            where = problems.endpoint(address, port)
            raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from error
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._context = context
        self._crowd: Crowd[Handshake] = Crowd(MOST_EACH, MOST_WAITING)
        self._selector = selectors.DefaultSelector()
        self._next_look = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, session: Session) -> None:
        """Accept from now on, in a thread of its own, whose death ends the process; call `session` in a new thread for
        every peer let in. NoThread when there is none to be had."""
        self._thread = vital(self._run, session, name="accept")

    def close(self) -> None:
        """Accept nobody any more. Sessions that run are not touched."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the selector
        if self._thread is not None:
            self._thread.join()
        self._selector.close()
        self._socket.close()

    def _run(self, session: Session) -> None:
        self._selector.register(self._socket, selectors.EVENT_READ)
        while not self._closed:
            for key, _ in self._selector.select(LATE_LOOK_S if self._crowd else None):
                if isinstance(key.fileobj, Handshake):
                    self._step(key.fileobj, session)
                else:
                    self._accept()
            self._end_late()
        for handshake in self._crowd:
            self._drop(handshake)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if not self._closed:  # out of files or memory: the sessions we have must go on
                    log.warning("cannot accept a connection: %s", error, extra=NOISY)
                    self._make_room(self._crowd.shed(), "there is no room for more connections")
                    time.sleep(FULL_S)
                return
            handshake = Handshake(sock, problems.endpoint(address[0], address[1]), self._context)
            self._selector.register(handshake, handshake.events)
            self._make_room(self._crowd.enter(source_of(address[0]), handshake), "too many shake hands")

    def _make_room(self, victim: Handshake | None, why: str) -> None:
        if victim is not None:
            log.warning("dropped %s, which has not shown who it is: %s", victim.peer, why, extra=NOISY)
            self._drop(victim)

    def _step(self, handshake: Handshake, session: Session) -> None:
        if handshake.fileno() < 0:  # dropped since it was found ready
            return
        try:
            done = handshake.step()
        except PeerRefused as error:
            log.warning("no session: %s", error, extra=NOISY)
            handshake.drain(time.monotonic())
        except RemusError as error:
            log.warning("no session: %s", error, extra=NOISY)
            return self._drop(handshake)
        except Exception:  # task boundary: one peer's connection must not end the thread that hears all of them
            log.exception("no session with %s", handshake.peer, extra=NOISY)
            return self._drop(handshake)
        else:
            if done:
                return self._let_in(handshake, session)
        self._selector.modify(handshake, handshake.events)

    def _let_in(self, handshake: Handshake, session: Session) -> None:
        self._forget(handshake)
        try:
            spawn(_serve, handshake, session, name=f"session {handshake.peer}")
        except NoThread as error:
            log.error("no session with %s: %s; %s", handshake.peer, error, error.hint, extra=NOISY)
            handshake.close()

    def _end_late(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LATE_LOOK_S
        for handshake in self._crowd:
            if handshake.deadline <= now:
                late = handshake.late()
                if late is not None:
                    log.warning("no session: %s", late, extra=NOISY)
                self._drop(handshake)

    def _drop(self, handshake: Handshake) -> None:
        self._forget(handshake)
        handshake.close()

    def _forget(self, handshake: Handshake) -> None:
        self._crowd.leave(handshake)
        self._selector.unregister(handshake)


def _serve(handshake: Handshake, session: Session) -> None:
    """One session, in its own thread."""
    try:
        stream = FrameStream(handshake.link())
    except BaseException:
        handshake.close()
        raise
    try:
        stream.send(FrameType.HEARTBEAT, 0, 0)  # the greeting
        session(stream)
    except RemusError as error:
        log.warning("session with %s (%s) ended: %s", stream.peer_name, stream.peer_address, error, extra=NOISY)
    except Exception:
        log.exception("session with %s (%s) failed", stream.peer_name, stream.peer_address, extra=NOISY)
    finally:
        stream.close()
