# SPDX-License-Identifier: Apache-2.0
"""What happened to each VM, when and why: one JSON line an event, in STATE_DIR/history/VM.jsonl.

Owns these files together with the other processes of this machine. Invariant: history never stops what it tells of;
`record` only queues, and a disk that is full or slow costs lines, not a takeover.

Each line is one append, so lines of several processes do not mix. What a power cut left of a line is not read, and the
next writer starts on a new line. Of a file that exceeds 4 MiB the newest events that fit in half of it are kept.
"""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from remusdb import durable
from remusdb.deadline import Deadline
from remusdb.errors import RemusError
from remusdb.hooks import Hooks
from remusdb.jsontext import parse_json
from remusdb.log import VmLog
from remusdb.names import file_stem
from remusdb.printable import printable
from remusdb.reasons import Reason
from remusdb.says import says
from remusdb.threads import spawn

log = logging.getLogger(__name__)

FILE_MAX_BYTES = 4 << 20
LINE_MAX_BYTES = 64 << 10  # an event has less, for `record` cuts its texts; a longer line is none
READ_MAX_BYTES = 4 * FILE_MAX_BYTES  # of the end of a file that something else made longer
TEXT_MAX_BYTES, DETAILS_MAX = 4096, 32  # the longest of ours name the disks of a VM that was quarantined
QUEUE_MAX_EVENTS = 1024
TOLD_MAX_BYTES = 1 << 20  # a control line has room for four times that
LOCK_S = 2.0  # for another writer; if that one hangs (a stopped process), we append all the same: one line never mixes

Author = Literal["agent", "worker", "host", "operator"]
EventName = Literal[
    "protect",  # asked for: the initial sync begins
    "protected",
    "proven",  # the standby's QEMU takes the device state after all
    "unproven",  # it does not, or it could not be tried: a takeover may have to boot the disks
    "lost",  # the other side is not heard any more
    "held",
    "resumed",  # the other side is back, and the session goes on
    "solo",
    "takeover",  # the backup decided to take the VM over
    "promoted",  # it runs there
    "fenced",
    "quarantined",  # a fenced VM was shut off, and its disks moved aside
    "renounced",  # the backup gave its replica up
    "unprotect",
    "switchover",
    "rehearse",
    "resync",
    "changed",  # the VM's devices did: its session ends, and one with the new devices follows
    "failed",
    "clock",  # the guest's clock was corrected at each cut, and is not any more
    "trouble",  # something is wrong while it is protected all the same; `details.what` names it
    "cleared",  # it is so no longer
    "adopted",  # a restarted daemon found the VM protected, and went on with it
]


# Of an event in the log, by who must act on it: see log.py. The others tell the story.
LEVELS: Final[dict[EventName, int]] = {
    **dict.fromkeys(("held", "failed"), logging.ERROR),  # clients wait, or what should protect it does not
    **dict.fromkeys(
        ("lost", "solo", "unproven", "promoted", "fenced", "renounced", "clock", "trouble"), logging.WARNING
    ),  # it runs, with no backup or a weaker one
}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One transition of a VM, with its evidence. A hook gets the same ([hooks.md](hooks.md))."""

    vm: Annotated[str, says("its name in libvirt")]
    at_ns: Annotated[int, Meta(ge=0, le=(1 << 63) - 1), says("when, by the clock of `host`")]
    host: Annotated[str, says("where it happened")]
    by: Annotated[Author, says("who did it; operator: it was asked for")]
    event: Annotated[EventName, says("what")]
    was: Annotated[str, says("the state before it, as `status` names it")]
    now: Annotated[str, says("the state after it")]
    reason: Annotated[str, says("why, in words")]
    why: Annotated[Reason | None, says("the same for programs; null: written by a version that had no codes")] = None
    hint: Annotated[str, says("what to do about it; empty: nothing")] = ""
    term: Annotated[int, Meta(ge=0), says("the VM's")]
    epoch: Annotated[int | None, says("the newest that is committed")]
    heard_ms_ago: Annotated[
        float | None, says("age of the other side's last sign of life; null: that says nothing here")
    ]
    peer: Annotated[str, says("the other host")]
    details: Annotated[dict[str, str | int | float], says("more evidence, by event")] = {}


class VmEvents(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to a VM, as far as this host was there."""

    vm: Annotated[str, says("its name in libvirt")]
    events: Annotated[list[Event], says("the oldest first")]


class History:
    """This process's pen. One thread writes and tells the hooks, in the order of `record`."""

    def __init__(
        self,
        state_dir: Path,
        hooks: Hooks | None,
        write: Callable[[Path, Event], None] | None = None,
        queue_max: int = QUEUE_MAX_EVENTS,
    ) -> None:
        self.dropped = 0  # events for which there was no room in the queue: neither written nor told
        self._folder = state_dir / "history"
        self._hooks = hooks
        self._queue: queue.Queue[Event] = queue.Queue(queue_max)
        self._write = write or append
        spawn(self._write_all, name="history")

    def record(self, event: Event) -> None:
        """Note it. Returns at once, and never fails. What others said in it is cut, and safe to show."""
        try:
            self._queue.put_nowait(_bounded(event))
        except queue.Full:
            self.dropped += 1

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is on the disk and no hook runs any more; False when that took too long."""
        deadline = Deadline.after(timeout_s)
        with self._queue.all_tasks_done:
            done = self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, timeout_s)
        return done and (self._hooks is None or self._hooks.wait_idle(deadline.left()))

    def _write_all(self) -> None:
        told = 0
        while True:
            event = self._queue.get()
            if (dropped := self.dropped) != told:
                log.error("%d events are missing in the history: they came faster than the disk", dropped - told)
                told = dropped
            try:
                _tell(event)
                if self._hooks is not None:
                    self._hooks.run(event)  # first: it needs no disk that works
                self._write(self._folder, event)
            except OSError as exc:
                VmLog(log, event.vm).error("%s is missing in the history: %s", event.event, exc)
            except Exception:  # task boundary: the next event must still be written
                VmLog(log, event.vm).exception("%s is missing in the history", event.event)
            finally:
                self._queue.task_done()


def read(state_dir: Path, vm: str) -> list[Event]:
    """The VM's events, oldest first; none for an unknown VM. Lines that are no event are left out."""
    path = _path(state_dir / "history", vm)
    try:
        lines = _lines(path)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise RemusError(f"{path}: cannot be read: {exc.strerror}") from exc
    events = []
    for line in lines:
        try:
            events.append(parse_json(line, Event))
        except ValueError as exc:
            log.debug("%s: a line is left out: %s", path, exc)
    return events


def newest(state_dir: Path, vm: str, last: int) -> VmEvents:
    """So many of the newest events, fewer where they are long: all of them fit in a line of a control socket."""
    kept: list[Event] = []
    room = TOLD_MAX_BYTES
    for event in reversed(read(state_dir, vm)[-last:]):
        room -= len(msgspec.json.encode(event))
        if room < 0:
            break
        kept.append(event)
    return VmEvents(vm=vm, events=kept[::-1])


def append(folder: Path, event: Event, *, file_max_bytes: int = FILE_MAX_BYTES, lock_s: float = LOCK_S) -> None:
    """Put one line at the end, and on the disk. OSError when it may not be there.

    A file that is longer after that loses its older half, unless another writer keeps its lock for so long.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path(folder, event.vm)
    with durable.alone(path.with_suffix(".lock"), lock_s) as alone:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(fd).st_size
            torn = before > 0 and os.pread(fd, 1, before - 1) != b"\n"
            line = b"\n" * torn + msgspec.json.encode(event) + b"\n"
            if os.write(fd, line) != len(line):
                raise OSError(f"{path}: the disk has no room for the whole line")
            os.fsync(fd)
        finally:
            os.close(fd)
        if before == 0:
            durable.sync_folder(folder)
        if alone and before + len(line) > file_max_bytes:
            _halve(path, file_max_bytes // 2)


def _tell(event: Event) -> None:
    """A line in the log, by its level."""
    extra = {"term": event.term, "epoch": event.epoch or 0}
    VmLog(log, event.vm).log(
        LEVELS.get(event.event, logging.INFO), "%s: %s", event.event, event.reason or event.now, extra=extra
    )


def _bounded(event: Event) -> Event:
    """With texts that fill no file by themselves, and that a terminal may be shown."""
    texts = {
        field: printable(getattr(event, field), TEXT_MAX_BYTES) for field in ("was", "now", "reason", "hint", "peer")
    }
    details = {
        key: printable(value, TEXT_MAX_BYTES) if isinstance(value, str) else value
        for key, value in list(event.details.items())[:DETAILS_MAX]
    }
    return msgspec.structs.replace(event, details=details, **texts)


def _lines(path: Path) -> list[bytes]:
    """The lines that may be events, oldest first. OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - READ_MAX_BYTES))
        lines = file.read(READ_MAX_BYTES).split(b"\n")
    if size > READ_MAX_BYTES:
        del lines[0]  # its beginning is not there
    return [line for line in lines if 0 < len(line) <= LINE_MAX_BYTES]


def _halve(path: Path, room: int) -> None:
    """Keep the newest lines that fit in so many bytes."""
    try:
        kept = []
        for line in reversed(_lines(path)):
            room -= len(line) + 1
            if room < 0:
                break
            kept.append(line + b"\n")
        durable.write_file(path, b"".join(reversed(kept)))
    except OSError as exc:  # the event itself is on the disk
        log.warning("%s: cannot be shortened: %s", path, exc)


def _path(folder: Path, vm: str) -> Path:
    return folder / f"{file_stem(vm)}.jsonl"
