# SPDX-License-Identifier: Apache-2.0
"""The clocks of one running VM: what the cuts take from them is given back.

Owns the addresses of the fields in QEMU's memory from which a start takes the guest's clocks. At each cut, QEMU waiting
in the FIFO, they are read, and written with what they would be without cuts (core/clock_repair.py). The checkpoint
is not touched: it holds them already, and after each cut both are compared.

    learn ─found▶ mended at each cut ─a value that cannot be▶ left alone: under KVM set once a second, else it runs slow
      └─ not found ─────────────────────────────────────────▶

Invariant: a field is written only while QEMU waits, only when it was read and stands where the last write left it plus
the time that passed, and never again after the first time that it does not. Nothing here ends or delays protection.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from remusdb.capture.clock_fields import Fields
from remusdb.capture.clock_inject import SlowWay
from remusdb.capture.clock_search import Search
from remusdb.core import clock_stream
from remusdb.core.clock_repair import Book, ClockWrong, Instant
from remusdb.core.clock_stream import Clocks, Places
from remusdb.errors import VmError
from remusdb.vm.ramblocks import Block

log = logging.getLogger(__name__)

BUFFERED_BYTES = 32 << 10  # QEMU has read its clocks up to here when the first byte comes (migration/qemu-file.c)
SHIFT_BYTES = 4096  # the sections before kvmclock grow as the guest uses more of its CPU
BLOCKED_BYTES = 16 << 10  # so much must be left for QEMU to be sure to wait for its reader
APART_S = 0.25  # two states that far apart tell the rate of the ticks to some ppm
SHOWN_CUTS = 101  # what status shows is the median of so many


@dataclass(frozen=True)
class ClockMetrics:
    """How late the guest's clock is, how much that is of the time since the cuts began, and why it is not corrected."""

    lag_ms: float | None = None
    lost_ppm: float | None = None
    slow: str = ""


class GuestClock:
    """Hooks for `Capture`, in its thread: `begin`, `repair`, `done`. Metrics are for any thread."""

    def __init__(self, pid: int, blocks: Sequence[Block], *, kvm: bool) -> None:
        """Nothing is mended before `learn`."""
        self._pid, self._blocks, self._kvm = pid, blocks, kvm
        self.told: Callable[[str], None] = log.warning  # hears, in the cutting thread, why it is mended no more
        self.after_bytes = 0  # of device state that must be out before `repair`
        self.why_not = "it was not looked at yet"  # why the clocks are not mended at each cut
        self._at_stop: Callable[[], None] | None = None  # while learning
        self._fields: Fields | None = None
        self._places: Places | None = None
        self._book: Book | None = None
        self._slow: SlowWay | None = None
        self._found: Clocks | None = None  # of this cut, read from QEMU's memory
        self._began: int | None = None
        self._halted: int | None = None  # stopped by our side before the cut
        self._stopped_at = self._looked_at = self._ended = self._since = 0
        self._at = _now()  # of the last look
        self._failed = ""  # why the clocks were not mended in this cut
        self._late: deque[int] = deque(maxlen=SHOWN_CUTS)

    # --- a cut ---

    def begin(self) -> None:
        """QEMU is about to be asked for its state."""
        if self._began is None:
            self._began = time.monotonic_ns()

    @contextlib.contextmanager
    def halting(self) -> Iterator[None]:
        """Around a stop by our side before the next cut: that time is ours, too."""
        self.begin()
        yield
        self._halted = time.monotonic_ns()

    def repair(self, stopped_at: int) -> None:
        """QEMU waits since `stopped_at` (time.monotonic_ns()), or a little longer: mend its clocks. 30-90 us."""
        self._stopped_at = stopped_at if self._halted is None else self._halted
        self._at, self._failed = _now(), ""
        try:
            if self._at_stop is not None:
                self._at_stop()
            elif self._fields is not None and self._book is not None:
                self._mend(self._fields, self._book)
        except (VmError, OSError) as exc:
            self._failed = str(exc)  # dealt with once the VM runs again

    def done(self, devices: bytes) -> int | None:
        """The VM runs again; `devices` is what QEMU saved. When it was stopped; None if it did not run until then."""
        self._ended = time.monotonic_ns()
        ran = self._book is not None and self._after(self._book, devices)
        if self._slow is not None:
            self._set(self._slow)
        self._began = self._halted = None
        return self._stopped_at if ran else None

    def held_until_now(self) -> None:
        """A last cut was called off: the VM, which our side had stopped, runs again."""
        self._ended = time.monotonic_ns()

    def _mend(self, fields: Fields, book: Book) -> None:
        found = self._found = Clocks(*fields.read())
        self._at = _now()
        wanted = book.look(found, self._at, self._ours())
        if wanted != found:
            fields.write(wanted.values)
            book.wrote(wanted)

    def _after(self, book: Book, devices: bytes) -> bool:
        """Whether the VM ran until the cut. A clock that is wrong is followed again, from what was saved on."""
        saved = None
        try:
            saved = clock_stream.read(devices, self._where(devices))
            self._compare(book, saved)
        except (VmError, OSError) as exc:
            if self._fields is not None:
                self._give_up(str(exc))
            self._book = None
            if saved is not None:
                self._open(saved, book.ticks_per_ns)
            return False
        return book.ran

    def _compare(self, book: Book, saved: Clocks) -> None:
        """With what QEMU saved; where nothing is mended, that tells how late the clocks are."""
        if self._fields is None:
            book.look(saved, self._at, self._ours())
        elif self._failed:
            raise ClockWrong(self._failed)
        elif saved != self._found:
            raise ClockWrong(f"QEMU saved {saved}, where its memory held {self._found}")
        self._looked_at = self._at.mono
        self._late.append(max(0, book.late_ns - (self._at.mono - self._stopped_at)))
        book.settle()

    def _ours(self) -> int:
        """For how long cuts may have held the VM since the last look, at most."""
        return (self._ended - self._looked_at) + (self._at.mono - (self._began or self._at.mono))

    def _where(self, devices: bytes) -> Places:
        """Where the clocks stand: as before, or somewhere else because a section before them has grown."""
        if self._places is None or not clock_stream.still(devices, self._places):
            self._places = clock_stream.places(devices)
            self._bound(devices, self._places)
        return self._places

    def _bound(self, devices: bytes, where: Places) -> None:
        """QEMU must have read its clocks for the save before they are written, and must still wait."""
        self.after_bytes = 0 if where.end + SHIFT_BYTES <= BUFFERED_BYTES else where.end + SHIFT_BYTES
        if len(devices) < self.after_bytes + BLOCKED_BYTES and self.after_bytes:
            self.after_bytes = 0
            raise VmError("kvmclock stands too near the end of the device state")

    # --- finding ---

    def learn(self, save: Callable[[], bytes]) -> None:
        """Find the fields. `save` cuts device state alone; it is called twice, and its errors go through."""
        search = Search(self._pid, self._blocks)
        first = self._save(save, search.copy)
        began = time.monotonic()
        try:
            one = clock_stream.read(first, self._where(first))
        except VmError as exc:
            return self._give_up(str(exc))
        search.look(one)
        time.sleep(max(0.0, APART_S - (time.monotonic() - began)))
        second = self._save(save, search.read_again)
        try:
            self._settle(search, one, second)
        except VmError as exc:
            self._give_up(str(exc))

    def _save(self, save: Callable[[], bytes], at_stop: Callable[[], None]) -> bytes:
        self._at_stop = at_stop
        try:
            return save()
        finally:
            self._at_stop = None

    def _settle(self, search: Search, one: Clocks, second: bytes) -> None:
        """From here on the clocks are followed, and mended if they were found."""
        two = clock_stream.read(second, self._where(second))
        self._open(two, clock_stream.rate(one, two))
        if self._kvm and two.kvmclock is None:
            raise VmError("QEMU does not start kvmclock from what it saved: is the host's Linux older than 4.9?")
        self._fields, self.why_not = search.found(two), ""

    def _open(self, clocks: Clocks, ticks_per_ns: float) -> None:
        """From the last stop on the clocks are to lose nothing."""
        at = Instant(self._stopped_at, self._at.raw - (self._at.mono - self._stopped_at))
        self._book = Book(clocks, at, ticks_per_ns)
        self._looked_at = self._since = self._stopped_at

    # --- where it cannot be done ---

    def _give_up(self, why: str) -> None:
        """Write no more, for good. Under KVM the clock is set once a second from here on, while that goes."""
        mended, self._fields, self.after_bytes = self._fields is not None, None, 0
        self.why_not = f"{why}; it runs slow"
        self._slow = None
        if self._kvm:
            try:
                self._slow = SlowWay(self._pid)
                self.why_not = f"{why}; it is set once a second instead"
            except VmError as exc:
                self.why_not = f"{why}; it runs slow: {exc}"
        log.warning("the guest's clock is not corrected at each cut: %s", self.why_not)
        if mended:
            self.told(self.why_not)

    def _set(self, slow: SlowWay) -> None:
        try:
            slow.after_cut(self._ended - (self._began or self._ended))
        except (VmError, OSError) as exc:
            self._slow = None
            self.why_not = f"{self.why_not.partition(';')[0]}; it runs slow, setting it once a second failed: {exc}"
            self.told(self.why_not)

    # --- metrics ---

    def metrics(self) -> ClockMetrics:
        """What status shows of it now."""
        late = list(self._late)
        since, book = self._since, self._book
        if not late or book is None:
            return ClockMetrics(slow=self.why_not)
        lag = statistics.median(late)
        passed = max(1, time.monotonic_ns() - since)
        return ClockMetrics(round(lag / 1e6, 2), round(1e6 * lag / passed, 1), self.why_not)


def _now() -> Instant:
    return Instant(time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW))
