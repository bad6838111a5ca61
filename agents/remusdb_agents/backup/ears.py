# SPDX-License-Identifier: Apache-2.0
"""Hears the heartbeat datagrams of all primaries at one UDP port, and answers each that is authentic with one.

Owns the socket and its one thread. Invariants: a stranger's datagram costs a look at 64 bytes, and nothing that stays;
however many come, no more than `JUNK_PER_S` are looked at, the kernel drops what has no room to wait. Nobody depends on
this: where nothing can be heard here, primaries are heard over their connections alone.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from remusdb.core.beats import BYTES, KEY_BYTES, SESSION_MAX, Ear, Mouth, Offer, Way, session_of
from remusdb.threads import vital
from remusdb.transport import problems

log = logging.getLogger(__name__)

JUNK_PER_S: Final = 2000  # some 10 us each: 2 % of a CPU
_BATCH = 40  # of junk, then a pause: so that what is genuine and waits behind it comes in time
PROBES_MOST = 64  # of `check`s whose datagrams may still come; the oldest goes


class Voice:
    """One connection's datagrams, as the agent hears and answers them. It lives as long as somebody holds it."""

    def __init__(self, offer: Offer, term: int) -> None:
        self.offer = offer
        self.heard_at = 0.0  # time.monotonic() of the last one; 0: none came
        self._ear, self._mouth = Ear(Way.TO_AGENT, offer, term), Mouth(Way.TO_PRIMARY, offer, term)

    def answer(self, data: memoryview) -> bytes | None:
        """What it is answered with; None where it is no sign of life."""
        if not self._ear.take(data):
            return None
        self.heard_at = time.monotonic()
        return self._mouth.next()


class Ears:
    """Listens until `close`."""

    def __init__(self, address: str, port: int, pause: Callable[[float], None] = time.sleep) -> None:
        """OSError where this port cannot be had."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._socket.bind((address, port))
        except OSError:
            self._socket.close()
            raise
        self._pause = pause
        self._closed = False
        self._junk = 0
        self._voices: WeakValueDictionary[int, Voice] = WeakValueDictionary()
        self._newest: dict[str, int] = {}  # the session of each VM that was ever kept here
        self._probes: dict[int, Voice] = {}
        vital(self._run, name="datagrams")

    def voice(self, vm: str, term: int) -> Voice:
        """For one connection of this VM's primary: heard until the next one, as long as it is held."""
        made = self._made(term)
        self._voices.pop(self._newest.get(vm, -1), None)
        self._newest[vm] = made.offer.session
        return made

    def probe(self) -> Offer:
        """For one `check`, of no session."""
        made = self._made(0)
        self._probes[made.offer.session] = made
        for session in list(self._probes)[:-PROBES_MOST]:
            self._probes.pop(session, None)
        return made.offer

    def close(self) -> None:
        """Hear nobody any more."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, though it is not connected

    def _made(self, term: int) -> Voice:
        made = Voice(Offer(secrets.randbelow(SESSION_MAX), secrets.token_bytes(KEY_BYTES)), term)
        self._voices[made.offer.session] = made
        return made

    def _run(self) -> None:
        data = memoryview(bytearray(BYTES + 1))  # one more, to tell a longer one
        with self._socket:
            while not self._closed:
                try:
                    count, address = self._socket.recvfrom_into(data)
                    self._hear(data[:count], address)
                except OSError as error:  # an answer that cannot leave; out of memory
                    log.debug("a heartbeat datagram: %s", error)
                    self._waste()

    def _hear(self, data: memoryview, address: object) -> None:
        session = session_of(data)
        voice = None if session is None else self._voices.get(session)
        answer = voice.answer(data) if voice is not None else None
        if answer is None:
            return self._waste()
        assert isinstance(address, tuple)
        with contextlib.suppress(BlockingIOError):
            self._socket.sendto(answer, socket.MSG_DONTWAIT, address)

    def _waste(self) -> None:
        self._junk += 1
        if self._junk % _BATCH == 0:
            self._pause(_BATCH / JUNK_PER_S)


def listen(address: str, port: int) -> Ears | None:
    """None, and a line in the log, where the port cannot be had."""
    try:
        return Ears(address, port)
    except OSError as error:
        where = problems.endpoint(address, port)
        log.warning("no heartbeat datagrams at UDP %s: %s", where, error.strerror or error)
        return None
