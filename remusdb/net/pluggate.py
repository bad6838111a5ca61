# SPDX-License-Identifier: Apache-2.0
"""The plug gate: `sch_plug` holds the frames in the kernel, no process of ours touches them.

Owns a ring of IFB devices, each with a root plug qdisc, and the redirect at the VM's tap that names the open one:

    VM ──▶ tap ingress ──▶ rp0TAP | rp1TAP | ...  ──released──▶ the tap's bridge, as if the tap had received it

One plug is not enough for several epochs in flight: it remembers the size of the last epoch only, so a second
BUFFER before RELEASE_ONE forgets the first, and the next release lets that many frames of the wrong epoch go.
Here each IFB holds one epoch: `mark` points the redirect at a free IFB and says BUFFER to the one it leaves,
`release` says RELEASE_ONE to each in epoch order. Invariant: an IFB is either open (the redirect's target), marked
with one epoch, or empty. Without a free IFB a mark cuts nothing: the open IFB's frames wait for a later mark, so
they leave late, never early.

An IFB hands frames back with `tc_skip_classify` set, so the redirect does not see them again.
"""

from __future__ import annotations

import time
from collections import deque

from remusdb.errors import GateError
from remusdb.net.addresses import AddressWatch
from remusdb.net.bpf import match_all
from remusdb.net.gate import GateFigures
from remusdb.net.links import Link, Links, short_name
from remusdb.net.tc import Direction, PlugAction, Tc

RING = 4  # epochs: one open, three in flight
_TX_QUEUE_FRAMES = 1000
_IFB_MTU = 65535
_DRAIN_TIMEOUT_S = 5.0
_CLSACT_OURS = "clsact=ours"


class PlugGate:
    """The gate of tap `tap`; at most `held_max_bytes` over all epochs, split evenly."""

    def __init__(self, tap: str, held_max_bytes: int, *, guest_mac: str | None = None) -> None:
        self.tap = tap
        self.ifbs = tuple(short_name(f"rp{at}", tap) for at in range(RING))
        self._limit_bytes = held_max_bytes // RING
        self._guest_mac = guest_mac
        self._tc: Tc | None = None
        self._tap_index = 0
        self._open = 0
        self._free: deque[int] = deque()
        self._marked: deque[tuple[int, int]] = deque()  # (epoch, ifindex), oldest first
        self._draining: int | None = None
        self._last_epoch = -1
        self._lost = 0  # thrown away by drop_held, with the counters of the qdiscs that did it
        self._released_before = 0
        self._addresses: AddressWatch | None = None

    def install(self) -> None:
        with Links() as links:
            tc, link = Tc(), links.get(self.tap)
            try:
                _refuse_unless_plain(tc, link)
                for name in self.ifbs:  # half made by a process that died
                    links.delete(name)
                clsact_is_ours = tc.add_clsact(link.index)
                try:
                    self._make_ring(links, tc, _CLSACT_OURS if clsact_is_ours else "")
                    self._take(links, tc, link)
                except BaseException:
                    self._delete_ring(links)
                    if clsact_is_ours:
                        tc.del_clsact(link.index)
                    raise
            except BaseException:
                tc.close()
                raise

    def adopt(self) -> None:
        with Links() as links:
            tc, link = Tc(), links.get(self.tap)
            first = links.find(self.ifbs[0])
            clsact_is_ours = tc.add_clsact(link.index) or (first is not None and first.alias == _CLSACT_OURS)
            self._make_ring(links, tc, _CLSACT_OURS if clsact_is_ours else "")
            # What is held belongs to epochs that nobody knows any more.
            self._replug(links, tc)
            self._take(links, tc, link)
            self._redirect(self._open)

    def hold(self) -> None:
        tc = self._ready()
        self._drained()
        for index in (self._open, *self._free):
            tc.plug(index, PlugAction.BUFFER)
            tc.plug(index, PlugAction.RELEASE_ONE)  # of nothing: forgets the count of an earlier hold
        self._last_epoch = -1
        self._redirect(self._open)

    def mark(self, epoch: int) -> None:
        self.mark_begin(epoch)
        self.mark_wait()

    def mark_begin(self, epoch: int) -> None:
        tc = self._ready()
        if epoch <= self._last_epoch:
            raise GateError(f"the gate of {self.tap} was asked to mark epoch {epoch} after {self._last_epoch}")
        self._last_epoch = epoch
        if not self._free:
            return
        full, self._open = self._open, self._free.popleft()
        self._redirect(self._open)
        tc.plug(full, PlugAction.BUFFER)
        self._marked.append((epoch, full))

    def mark_wait(self) -> None:
        self._ready()

    def release(self, epoch: int) -> None:
        tc = self._ready()
        while self._marked and self._marked[0][0] <= epoch:
            self._drained()  # the epoch before it, so that the two cannot mix
            _epoch, index = self._marked.popleft()
            tc.plug(index, PlugAction.RELEASE_ONE)
            self._draining = index
            self._free.append(index)

    def open_all(self) -> None:
        tc = self._ready()
        self.release(self._last_epoch)
        self._drained()
        tc.plug(self._open, PlugAction.RELEASE_INDEFINITE)
        self._draining = self._open
        self._drained()
        tc.del_redirect(self._tap_index)
        self._drained_of(self._open)
        tc.plug(self._open, PlugAction.BUFFER)

    def drop_held(self) -> None:
        tc = self._ready()
        with Links() as links:
            self._replug(links, tc)
            self._forget(links)
        self._redirect(self._open)

    def remove(self) -> None:
        with Links() as links, Tc() as tc:
            link, first = links.find(self.tap), links.find(self.ifbs[0])
            ours = first is not None and first.alias == _CLSACT_OURS
            if link is not None and any(links.find(name) is not None for name in self.ifbs):
                tc.del_redirect(link.index)
                if ours and not tc.ingress_filters(link.index):
                    tc.del_clsact(link.index)
            self._delete_ring(links)
        if self._tc:
            self._tc.close()
        if self._addresses:
            self._addresses.close()
        self._tc = self._addresses = None

    def figures(self) -> GateFigures:
        tc = self._ready()
        stats = [tc.root_stats(index) for index in (self._open, *self._free, *(at for _epoch, at in self._marked))]
        return GateFigures(
            held_frames=sum(each.held_frames for each in stats),
            held_bytes=sum(each.held_bytes for each in stats),
            released_frames=sum(each.sent_frames for each in stats) + self._released_before,
            dropped_frames=sum(each.dropped_frames for each in stats) + self._lost,
            addresses=self._addresses.addresses() if self._addresses else (),
        )

    def _make_ring(self, links: Links, tc: Tc, alias: str) -> None:
        for at, name in enumerate(self.ifbs):
            if links.find(name) is None:
                links.add_ifb(name)
                tc.add_plug(links.get(name).index, self._limit_bytes)
            links.quieten(name, mtu=_IFB_MTU, txqlen=_TX_QUEUE_FRAMES, alias="" if at else alias)

    def _delete_ring(self, links: Links) -> None:
        for name in reversed(self.ifbs):  # the first one carries the note whose clsact it is
            links.delete(name)

    def _replug(self, links: Links, tc: Tc) -> None:
        """Fresh plugs. A plug that is emptied keeps its counts and would leak later, so it is made anew."""
        for name in self.ifbs:
            index = links.get(name).index
            before = tc.root_stats(index)
            self._lost += before.held_frames + before.dropped_frames
            self._released_before += before.sent_frames
            links.set_up(name, False)  # first: a link that is up would get a qdisc that lets frames through
            tc.del_plug(index)
            tc.add_plug(index, self._limit_bytes)
            links.set_up(name, True)

    def _take(self, links: Links, tc: Tc, link: Link) -> None:
        self._tc = tc
        self._tap_index = link.index
        self._forget(links)
        self._addresses = AddressWatch(self.tap, link.mac, self._guest_mac)

    def _forget(self, links: Links) -> None:
        self._open, *free = (links.get(name).index for name in self.ifbs)
        self._free = deque(free)
        self._marked.clear()
        self._draining = None

    def _redirect(self, target: int) -> None:
        self._ready().redirect(self._tap_index, match_all(), target, Direction.EGRESS)

    def _drained(self) -> None:
        """Wait until the IFB released last has handed over everything."""
        if self._draining is not None:
            self._drained_of(self._draining)
            self._draining = None

    def _drained_of(self, index: int) -> None:
        tc, deadline = self._ready(), time.monotonic() + _DRAIN_TIMEOUT_S
        while tc.root_stats(index).held_frames:
            if time.monotonic() > deadline:
                raise GateError(f"an IFB of {self.tap} does not let its frames go")
            time.sleep(0)

    def _ready(self) -> Tc:
        if self._tc is None:
            raise GateError(f"the gate of {self.tap} is not installed")
        return self._tc


def _refuse_unless_plain(tc: Tc, link: Link) -> None:
    if link.kind != "tun":
        raise GateError(f"{link.name} is a {link.kind or 'physical'} interface, not a VM's tap")
    if tc.redirected(link.index):
        hint = "a process that protected this VM died: protect it again, or unprotect it"
        raise GateError(f"the output of {link.name} is redirected already", hint=hint)
    if tc.ingress_filters(link.index):
        hint = "another program filters its ingress (tc filter show dev TAP ingress)"
        raise GateError(f"{link.name} has ingress filters of its own", hint=hint)
