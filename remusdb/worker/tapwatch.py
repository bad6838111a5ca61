# SPDX-License-Identifier: Apache-2.0
"""Shuts every tap that a protected VM gets: a new interface must not speak past the gates.

Owns one thread and its news of links. Invariant: a tap that QEMU has open is one of the gated ones, or dropped by a
filter of ours that stays when this process dies. `open_taps` takes those away, once nobody can take over any more.

libvirt makes a tap (the kernel tells us), puts it on its bridge, hands it to QEMU (/proc tells), and only then adds the
device to the guest: until there is one, nobody can send. So a new tap is looked for in QEMU every 2 ms.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable

from remusdb.errors import GateError
from remusdb.net.linknews import LinkNews, LinkNewsSocket
from remusdb.net.tc import Tc
from remusdb.threads import start
from remusdb.vm.taps import has_files, taps_of

log = logging.getLogger(__name__)

KINDS = ("tun", "macvtap")
HOT_S = 0.002  # how often QEMU is asked whether a new tap is its own; asking takes 0.1 ms
HOT_FOR_S = 5.0  # so long after a tap was made: libvirt may wait for QEMU's monitor in between
LOOK_S = 1.0  # how often it is asked without any news


class TapWatch:
    """Of one VM, from `start` until `close`."""

    def __init__(self, pid: int, gated: Iterable[str], told: Callable[[str], None]) -> None:
        """`told` is called after a tap was shut, or when something happened to a gated one: with what it was."""
        self._pid = pid
        self._gated = frozenset(gated)
        self._told = told
        self._masters: dict[str, int] = {}
        self._hot_until = 0.0
        self._lasting = False  # something happened that does not undo itself
        self._known: set[str] = set()  # every link there is, so that a change of one is no new one
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._over = threading.Event()
        self._news = LinkNewsSocket()
        self._tc = Tc()
        self._thread = threading.Thread(target=self._watch, name="taps", daemon=True)

    def start(self) -> None:
        """Shut what QEMU has beside the gated taps now, then whatever comes."""
        self._look()
        start(self._thread)

    def wrong(self) -> bool:
        """Whether what was told is so still. Of a QEMU that is ending nothing is."""
        return self._lasting or (has_files(self._pid) and set(taps_of(self._pid)) != self._gated)

    def close(self) -> None:
        """Shut nothing more. What is shut stays so."""
        self._over.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        self._news.close()
        self._tc.close()
        os.close(self._wake)

    def _watch(self) -> None:
        """Task boundary: without this thread a new interface would speak, so its end is told."""
        with contextlib.suppress(OSError):  # as the cuts have it: a busy host must not delay this (docs/facts.md)
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_RR, os.sched_param(1))
        try:
            while not self._over.is_set():
                hot = time.monotonic() < self._hot_until
                self._hear(self._news.wait(HOT_S if hot else LOOK_S, self._wake))
                self._look()
        except Exception as exc:
            log.exception("watching for taps failed")
            self._lasting = True
            self._told(f"new interfaces cannot be watched for any more ({exc})")

    def _hear(self, news: list[LinkNews] | None) -> None:
        if news is None or any(not one.gone and one.kind in KINDS and one.name not in self._known for one in news):
            self._hot_until = time.monotonic() + HOT_FOR_S
        for one in news or ():
            (self._known.discard if one.gone else self._known.add)(one.name)
            if one.name in self._gated:
                self._judge(one)

    def _judge(self, one: LinkNews) -> None:
        """A gated tap that is gone, or elsewhere than it was."""
        if one.gone:
            self._told(f"interface {one.name} is gone")
        elif self._masters.setdefault(one.name, one.master) != one.master:
            self._masters[one.name], self._lasting = one.master, True
            self._told(f"interface {one.name} was put on another bridge")

    def _look(self) -> None:
        for tap, kind in taps_of(self._pid).items():
            if tap not in self._gated and _shut(self._tc, tap, kind):
                self._hot_until = 0.0
                self._told(f"QEMU has a new interface, {tap}")


def shut_taps(pid: int, gated: Iterable[str]) -> None:
    """Shut what `pid` has beside the gated taps, once: where output is held and nobody watches."""
    spared = frozenset(gated)
    with Tc() as tc:
        for tap, kind in taps_of(pid).items():
            if tap not in spared:
                _shut(tc, tap, kind)


def open_taps(pid: int) -> None:
    """Open what is shut of this VM's taps. One that went away meanwhile is no error."""
    with Tc() as tc:
        for tap in taps_of(pid):
            with contextlib.suppress(OSError, GateError):
                tc.open(socket.if_nametoindex(tap))


def _shut(tc: Tc, tap: str, kind: str) -> bool:
    """True where it was open until now."""
    try:
        index = socket.if_nametoindex(tap)
        if tc.is_shut(index):
            return False
        tc.shut(index, as_sent=kind == "macvtap")
        log.warning("%s was shut: it is not gated", tap)
    except OSError:
        return False  # gone already
    except GateError as exc:
        log.error("%s cannot be shut: %s", tap, exc)
    return True
