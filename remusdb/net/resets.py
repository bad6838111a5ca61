# SPDX-License-Identifier: Apache-2.0
"""Breaks connections of a guest behind its tap, before anything of them can leave (core/reset.py decides).

Owns the filter that drops what the guest sends in them, and a packet socket that hears it all the same. Invariant: from
`Resets.__init__` on, until the guest's socket is gone, nothing that the guest sends in such a connection passes its
tap; the filter is kernel state, and stays when this process dies.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
from collections.abc import Sequence

from remusdb.core.reset import Out, Reset, Target, Way
from remusdb.core.segments import read
from remusdb.errors import GateError
from remusdb.net.links import Links
from remusdb.net.tc import Tc

log = logging.getLogger(__name__)

SLOW_S = 10.0  # a guest that has not given a socket up by then is named in the log
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_RECEIVE_BUFFER_BYTES = 4 << 20
_FRAME_START_BYTES = 128  # headers are enough
_LOOK_S = 1.0


class Resets:
    """Of one interface. Made before the guest runs; `run` is for a thread of its own."""

    def __init__(self, tap: str, targets: Sequence[Target]) -> None:
        """Drop what the guest sends in these connections from now on. GateError when that cannot be had."""
        self._tap = tap
        now = time.monotonic()
        self._open = [Reset(target, now) for target in targets]
        self._shut: list[Target] = []
        with Links() as links, Tc() as tc:
            self._link = links.get(tap)
            tc.drop_flows(self._link.index, list(targets))
            self._shut = list(targets)
            out = links.name_of(self._link.master) if self._link.master else ""
        try:
            self._guest = _socket(tap, hears=True)
            self._network = _socket(out, hears=False) if out else None
        except OSError as error:
            raise GateError(f"connections of the guest behind {tap} cannot be reset: {error.strerror}") from error

    def run(self) -> None:
        """Until every one is broken and its client was told, or the tap is gone."""
        began, told = time.monotonic(), False
        try:
            while self._open and self._goes_on():
                late = time.monotonic() - began > SLOW_S and self._shut
                if late and not told:
                    told = True
                    log.warning("%s: the guest has not given up %d connections yet", self._tap, len(self._shut))
        except GateError as error:
            log.warning("%s: connections are not reset any more, what is left stays shut: %s", self._tap, error)
        finally:
            self._guest.close()
            if self._network is not None:
                self._network.close()

    def _goes_on(self) -> bool:
        """Do what is due; False where the tap is gone, with the guest behind it."""
        try:
            self._step()
        except OSError:  # the link is down, or gone
            with Links() as links:
                found = links.find(self._tap)
            return found is not None and found.index == self._link.index
        return True

    def _step(self) -> None:
        now = time.monotonic()
        due_s = max(0.0, min(one.due_at for one in self._open) - now)
        if select.select([self._guest], [], [], min(due_s, _LOOK_S))[0]:
            self._hear()
        self._let_go()
        now = time.monotonic()
        for one in self._open:
            self._send(one.due(now))
        self._open = [one for one in self._open if not one.done]

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                segment = read(self._guest.recv(_FRAME_START_BYTES))
                if segment is None:
                    continue
                now = time.monotonic()
                for one in self._open:
                    if one.is_of(segment):
                        self._send(one.heard(segment, now))

    def _let_go(self) -> None:
        """Let pass what the guest says where its socket is gone: that is RST, and its client must hear it."""
        shut = [one.target for one in self._open if one.shut]
        if len(shut) != len(self._shut):
            with Tc() as tc:
                tc.drop_flows(self._link.index, shut)
            self._shut = shut

    def _send(self, frames: Sequence[Out]) -> None:
        for out in frames:
            way = self._guest if out.way is Way.GUEST else self._network
            if way is not None:
                with contextlib.suppress(OSError):  # it is sent again
                    way.send(out.frame)


def _socket(name: str, *, hears: bool) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    one = socket.socket(socket.AF_PACKET, kind, 0)
    try:
        if hears:
            one.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)  # what the guest is sent
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        one.bind((name, _ETH_P_ALL if hears else 0))
    except OSError:
        one.close()
        raise
    return one
