# SPDX-License-Identifier: Apache-2.0
"""The heartbeat datagrams of one session, on the primary: sent beside the connection, and answered by the agent.

Owns a UDP socket. Invariant: whatever becomes of them, or comes instead, nothing else does: where they do not come
through, the agent hears the connection alone, as it does from a primary that sends none.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Final

from remusdb.core.beats import BYTES, Ear, Mouth, Offer, Way
from remusdb.transport.link import Endpoint

READS: Final = 16  # answers at a beat; there is one for each
TRY_S: Final = 1.0  # `check` waits for an answer
FRESH_S: Final = 1.0  # an answer that is no older says that they come through

Ends = tuple[Endpoint, Endpoint] | None


class Datagrams:
    """`beat` is for one thread; `follow` and `close` for any."""

    def __init__(self) -> None:
        self.heard_at = 0.0  # time.monotonic() of the agent's last answer; 0: none came
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._to: Endpoint = ("", 0)
        self._mouth: Mouth | None = None
        self._ear: Ear | None = None

    @property
    def offered(self) -> bool:
        """Whether there is anybody who would hear them."""
        return self._mouth is not None

    @property
    def heard(self) -> bool:
        """Whether they come through, both ways."""
        return self.offered and time.monotonic() - self.heard_at < FRESH_S

    def follow(self, offer: Offer | None, term: int, ends: Ends) -> None:
        """Another connection, with these ends: datagrams have the same addresses, and the same port of the agent."""
        with self._lock:
            self._shut()
            if offer is None or ends is None:
                return
            with contextlib.suppress(OSError):  # no socket, no datagrams
                self._open(ends[0][0], ends[1])
                self._mouth, self._ear = Mouth(Way.TO_AGENT, offer, term), Ear(Way.TO_PRIMARY, offer, term)

    def beat(self) -> None:
        """Send one, and take in what was answered. Waits for nobody."""
        with self._lock:
            if self._socket is None or self._mouth is None or self._ear is None:
                return
            data = self._mouth.next()
            with contextlib.suppress(OSError):  # no route just now, or an ICMP error of the last one
                if data is not None:
                    self._socket.sendto(data, self._to)
            with contextlib.suppress(OSError):
                for _ in range(READS):
                    if self._ear.take(self._socket.recv(BYTES + 1)):
                        self.heard_at = time.monotonic()

    def close(self) -> None:
        """Send nothing more."""
        with self._lock:
            self._shut()

    def _open(self, here: str, agent: Endpoint) -> None:
        family = socket.AF_INET6 if ":" in agent[0] else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            made.bind((here, 0))
        except OSError:
            made.close()
            raise
        self._socket, self._to = made, agent

    def _shut(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self._mouth = self._ear = None


def come_through(offer: Offer, address: str, port: int, within_s: float = TRY_S) -> bool:
    """Whether one is answered in time, of those sent meanwhile: for `check`, which begins no session (term 0)."""
    tried, until = Datagrams(), time.monotonic() + within_s
    try:
        (*_, found), *_ = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    tried.follow(offer, 0, (("", 0), (str(found[0]), port)))
    try:
        while not tried.heard_at and time.monotonic() < until:
            tried.beat()
            time.sleep(within_s / 20)
        return bool(tried.heard_at)
    finally:
        tried.close()
