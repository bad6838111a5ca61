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

from remusdb.deadline import Deadline
from remusdb.errors import GateError
from remusdb.net.addresses import AddressWatch
from remusdb.net.bpf import match_all
from remusdb.net.gate import GateMetrics
from remusdb.net.links import Link, Links, short_name
from remusdb.net.tc import Direction, PlugAction, Tc
from remusdb.net.wiring import add_clsact, refuse_unless_plain, restore

WINDOW = 4  # epochs in flight
WINDOW_MOST = 16
_TX_QUEUE_FRAMES = 1000
_IFB_MTU = 65535
_DRAIN_TIMEOUT_S = 5.0


class PlugGate:
    """The gate of tap `tap`; at most `held_max_bytes` over all epochs, split evenly; `window` of them in flight."""

    def __init__(self, tap: str, held_max_bytes: int, *, guest_mac: str | None = None, window: int = WINDOW) -> None:
        self.tap = tap
        # All names that a gate of this tap may have used, and those that this one uses: one more than in flight.
        self._names = [short_name(f"rp{at:x}" if at < 16 else "rpg", tap) for at in range(WINDOW_MOST + 1)]
        self.ifbs = tuple(self._names[: window + 1])
        self._limit_bytes = held_max_bytes // len(self.ifbs)
        self._guest_mac = guest_mac
        self._tc: Tc | None = None
        self._tap_index = 0
        self._open = 0
        self._free: deque[int] = deque()
        self._marked: deque[tuple[int, int]] = deque()  # (epoch, ifindex), oldest first
        self._draining: int | None = None  # the IFB released last
        self._holding = False
        self._last_epoch = -1
        self._lost = 0  # counters of qdiscs that drop_held threw away
        self._released_before = 0
        self._addresses: AddressWatch | None = None

    def install(self) -> None:
        with Links() as links, Tc() as tc:
            link = links.get(self.tap)
            refuse_unless_plain(tc, link)
            self._delete_ring(links)  # half made by a process that died
            alias = add_clsact(tc, link, None)
            try:
                self._make_ring(links, tc, alias)
                self._take(links, link)
            except BaseException:
                self._let_go()
                self._delete_ring(links)
                restore(tc, link, alias)
                raise

    def adopt(self) -> None:
        with Links() as links, Tc() as tc:
            link = links.get(self.tap)
            alias = add_clsact(tc, link, links.find(self.ifbs[0]))
            self._make_ring(links, tc, alias)
            # First of all: closed. From whichever of a larger ring the dead process used, to one of ours.
            tc.redirect(link.index, match_all(), links.get(self.ifbs[0]).index, Direction.EGRESS)
            self._replug(links, tc)  # what is held belongs to epochs that nobody knows any more
            self._take(links, link)
            self._holding = True

    def hold(self) -> None:
        if not self._holding:
            self._redirect(self._open)
            self._holding, self._last_epoch = True, -1

    def mark(self, epoch: int) -> None:
        self.mark_begin(epoch)
        self.mark_wait()

    def mark_begin(self, epoch: int) -> None:
        tc = self._ready()
        if epoch <= self._last_epoch:
            raise GateError(f"the gate of {self.tap} was asked to mark epoch {epoch} after {self._last_epoch}")
        self._last_epoch = epoch
        if not self._free or not self._holding:
            return
        full, self._open = self._open, self._free.popleft()
        self._redirect(self._open)
        tc.plug(full, PlugAction.BUFFER)
        self._marked.append((epoch, full))

    def mark_wait(self) -> None:
        self._ready()  # the mark was made by `mark_begin`, in two netlink calls

    def open_flows(self) -> bytes:
        return b""

    def release(self, epoch: int, early_until: float = 0.0) -> None:
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
        for index in (*self._free, self._open):
            self._drained()
            tc.plug(index, PlugAction.RELEASE_INDEFINITE)
            self._draining = index
        self._drained()
        tc.del_redirect(self._tap_index)
        self._drained_of(self._open)
        for index in (*self._free, self._open):
            tc.plug(index, PlugAction.BUFFER)
        self._holding = False

    def drop_held(self) -> None:
        self._ready()
        with Links() as links, Tc() as tc:
            # The new plugs are all closed: what comes until the redirect names the first one waits there.
            self._replug(links, tc)
            self._forget(links)
        self._redirect(self._open)
        self._holding, self._last_epoch = True, -1

    def remove(self) -> None:
        with Links() as links, Tc() as tc:
            link, first = links.find(self.tap), links.find(self.ifbs[0])
            if link is not None and first is not None:
                restore(tc, link, first.alias)
            self._let_go()
            self._delete_ring(links)

    def metrics(self) -> GateMetrics:
        tc = self._ready()
        stats = [tc.root_stats(index) for index in (self._open, *self._free, *(at for _epoch, at in self._marked))]
        return GateMetrics(
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
        for name in reversed(self._names):  # the first one carries the note whose clsact it is
            links.delete(name)

    def _replug(self, links: Links, tc: Tc) -> None:
        """Fresh plugs. A plug that is emptied keeps its counts and would leak later, so it is made again."""
        for name in self.ifbs:
            index = links.get(name).index
            before = tc.root_stats(index)
            self._lost += before.held_frames + before.dropped_frames
            self._released_before += before.sent_frames
            links.set_up(name, False)  # first: a link that is up would get a qdisc that lets frames through
            tc.del_plug(index)
            tc.add_plug(index, self._limit_bytes)
            links.set_up(name, True)

    def _take(self, links: Links, link: Link) -> None:
        self._let_go()
        self._tc = Tc()
        self._tap_index = link.index
        self._forget(links)
        self._addresses = AddressWatch(self.tap, link.mac, self._guest_mac)

    def _let_go(self) -> None:
        for each in (self._tc, self._addresses):
            if each:
                each.close()
        self._tc = self._addresses = None
        self._holding = False

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
        tc, deadline = self._ready(), Deadline.after(_DRAIN_TIMEOUT_S)
        while tc.root_stats(index).held_frames:
            if deadline.over:
                raise GateError(f"an IFB of {self.tap} does not release its frames")
            time.sleep(0)

    def _ready(self) -> Tc:
        if self._tc is None:
            raise GateError(f"the gate of {self.tap} is not installed")
        return self._tc
