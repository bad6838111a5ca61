# SPDX-License-Identifier: Apache-2.0
"""The tap gate: works on any kernel with cls_bpf, act_mirred, tun and veth.

Owns the wiring around one VM's tap, and the process that holds its frames:

    VM ──▶ tap ingress ──(no mark)──▶ rgTAP, read by the gate process ──released──▶ riTAP ═veth═ roTAP
                │ ▲                                                        SO_MARK                │
                │ └────────────────────────── mirred, as if received ◀───────────────────────────┘
                └──(mark)──▶ the tap's bridge, as ever

Invariant: while the redirect is on the tap's ingress, a frame of the VM goes on only with our mark, which only
the gate process's socket gives. The tap stays the bridge's port: its VLANs, forwarding entries and the bridge's
own address never change, inbound frames never meet any of this, and all of it holds when our processes are dead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from remusdb.core.release.settings import ReleaseSettings
from remusdb.deadline import Deadline
from remusdb.errors import GateError
from remusdb.net.addresses import AddressWatch
from remusdb.net.bpf import match_all_but_mark, match_mark
from remusdb.net.gate import GateMetrics
from remusdb.net.gatechild import GateChild
from remusdb.net.gatewire import Op
from remusdb.net.links import Links, short_name
from remusdb.net.tc import Direction, Tc
from remusdb.net.tuntap import open_sender, open_tap
from remusdb.net.wiring import add_clsact, refuse_unless_plain, restore

# Bits that kube-proxy (0x4000, 0x8000) and Tailscale (0xff0000 as a field) do not use as flags.
MARK = 0x52530000
_RING_FRAMES = 10000  # the tap's queue: what may come while the gate process is not running
_TAP_MTU, _VETH_MTU = 65521, 65535  # never the limit: the VM's own MTU stays the only one
_BUSY_TIMEOUT_S = 2.0
OVERRUN_S = 1.0  # how old the number of frames may be that the kernel had no room for
_MARK_TIMEOUT_S = 1.0  # the VM stands still meanwhile; 0.2 ms is usual


class TapGate:
    """The gate of tap `tap` in this process's network namespace."""

    def __init__(
        self,
        tap: str,
        held_max_bytes: int,
        *,
        guest_mac: str | None = None,
        release: ReleaseSettings | None = None,
        bell_fd: int | None = None,
    ) -> None:
        """`release`: what may go early, None for nothing; `bell_fd`: rung when a frame must wait."""
        self.tap = tap
        self._settings = release
        self._bell_fd = bell_fd
        self._guest_mac = guest_mac
        self.held_tap = short_name("rg", tap)
        self.send_end = short_name("ri", tap)
        self.exit_end = short_name("ro", tap)
        self._held_max_bytes = held_max_bytes
        self._child: GateChild | None = None
        self._addresses: AddressWatch | None = None
        self._overrun, self._overrun_at = 0, float("-inf")

    def install(self) -> None:
        with Links() as links, Tc() as tc:
            link = links.get(self.tap)
            refuse_unless_plain(tc, link)
            self._delete_links(links)  # half made by a process that died
            alias = add_clsact(tc, link, None)
            try:
                self._wire(links, tc, alias)
                self._start(links, closed=False)
            except BaseException:
                self._stop()
                self._delete_links(links)
                restore(tc, link, alias)
                raise

    def adopt(self) -> None:
        with Links() as links, Tc() as tc:
            alias = add_clsact(tc, links.get(self.tap), links.find(self.held_tap))
            os.close(open_tap_when_free(self.held_tap))
            self._redirect(links, tc)  # first of all: closed
            if links.find(self.exit_end) is None:
                links.delete(self.send_end)
            self._wire(links, tc, alias)
            self._start(links, closed=True)

    def hold(self) -> None:
        self._process().ask(Op.HOLD)
        with Links() as links, Tc() as tc:
            self._redirect(links, tc)

    def mark(self, epoch: int) -> None:
        self.mark_begin(epoch)
        self.mark_wait()

    def mark_begin(self, epoch: int) -> None:
        self._process().begin(Op.MARK, epoch)

    def mark_wait(self) -> None:
        self._process().finish(_MARK_TIMEOUT_S)

    def release(self, epoch: int, early_until: float = 0.0) -> None:
        self._process().ask(Op.RELEASE, epoch, early_until)

    def open_flows(self) -> bytes:
        return self._process().ask(Op.FLOWS).flows if self._settings is not None else b""

    def open_all(self) -> None:
        child = self._process()
        child.ask(Op.OPEN_ALL)
        with Links() as links, Tc() as tc:
            tc.del_redirect(links.get(self.tap).index)
        child.ask(Op.FLUSH)  # what was between the redirect and the process

    def drop_held(self) -> None:
        self._process().ask(Op.DROP_HELD)

    def remove(self) -> None:
        with Links() as links, Tc() as tc:
            link, held = links.find(self.tap), links.find(self.held_tap)
            if link is not None and held is not None:
                restore(tc, link, held.alias)
            self._stop()
            self._delete_links(links)

    def metrics(self) -> GateMetrics:
        reply = self._process().ask(Op.METRICS)
        now = time.monotonic()
        if now - self._overrun_at >= OVERRUN_S:  # netlink from Python takes milliseconds of CPU
            with Links() as links:
                self._overrun, self._overrun_at = links.get(self.held_tap).tx_dropped, now
        return GateMetrics(
            held_frames=reply.held_frames,
            held_bytes=reply.held_bytes,
            released_frames=reply.released_frames,
            dropped_frames=reply.dropped_frames + self._overrun,
            early_frames=reply.early_frames,
            addresses=self._addresses.addresses() if self._addresses else (),
        )

    @property
    def process_id(self) -> int:
        """Pid of the process that holds the frames."""
        return self._process().pid

    def _wire(self, links: Links, tc: Tc, alias: str) -> None:
        """Everything but the redirect on the VM's tap; what is there already is kept."""
        link = links.get(self.tap)
        os.close(open_tap_when_free(self.held_tap))
        held = links.quieten(self.held_tap, mtu=_TAP_MTU, txqlen=_RING_FRAMES, alias=alias)
        tc.no_queue(held.index)
        if links.find(self.send_end) is None:
            # The exit end has the tap's address, so that the kernel judges "for this host" as it would on the tap.
            links.add_veth(self.send_end, self.exit_end, link.mac)
        links.quieten(self.send_end, mtu=_VETH_MTU, txqlen=_RING_FRAMES)
        leave = links.quieten(self.exit_end, mtu=_VETH_MTU, txqlen=_RING_FRAMES)
        tc.add_clsact(leave.index)
        tc.redirect(leave.index, match_mark(MARK), link.index, Direction.INGRESS)

    def _redirect(self, links: Links, tc: Tc) -> None:
        held = links.get(self.held_tap)
        tc.redirect(links.get(self.tap).index, match_all_but_mark(MARK), held.index, Direction.EGRESS)

    def _start(self, links: Links, *, closed: bool) -> None:
        self._stop()
        tap_fd = open_tap_when_free(self.held_tap)
        try:
            sender = open_sender(self.send_end, MARK)
        except GateError:
            os.close(tap_fd)
            raise
        self._child = GateChild(
            self.tap,
            tap_fd,
            sender,
            self._held_max_bytes,
            closed=closed,
            release=self._settings,
            bell_fd=self._bell_fd,
        )
        self._addresses = AddressWatch(self.tap, links.get(self.tap).mac, self._guest_mac)

    def _stop(self) -> None:
        if self._child:
            self._child.end()
        if self._addresses:
            self._addresses.close()
        self._child = self._addresses = None

    def _process(self) -> GateChild:
        if self._child is None:
            raise GateError(f"the gate of {self.tap} is not installed")
        return self._child

    def _delete_links(self, links: Links) -> None:
        with contextlib.suppress(OSError):
            if links.find(self.held_tap) is not None:
                os.close(open_tap(self.held_tap, persist=False))
        for name in (self.held_tap, self.send_end, self.exit_end):
            links.delete(name)


def open_tap_when_free(name: str) -> int:
    """Attach to our tap, waiting a little for the process of a dead worker to let go of it."""
    deadline = Deadline.after(_BUSY_TIMEOUT_S)
    while True:
        try:
            return open_tap(name, persist=True)
        except OSError as error:
            if error.errno != errno.EBUSY or deadline.over:
                raise GateError(f"opening {name} failed: {error.strerror}", hint="run as root") from error
            time.sleep(0.01)
