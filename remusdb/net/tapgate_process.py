# SPDX-License-Identifier: Apache-2.0
"""The process that holds one interface's frames: `python -P -m remusdb.net.tapgate_process`.

Owns the reading end of the gate's tap, the sending socket and every held frame. Invariant: it sends only what
the worker released, or what the rule of commit protection lets go early while the lease runs. It ends, without
sending another frame, as soon as the control socket does: a dead worker can commit nothing. Separate from the
worker so that frames are read while the worker is busy with pages.

One loop: control first, then a batch in, then a batch out, so that a long release delays neither a mark nor the
reading by more than one batch.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator

from remusdb.core.release.rule import CommitRule
from remusdb.core.release.settings import ReleaseSettings
from remusdb.net.gatewire import MESSAGE_MAX_BYTES, Op, Reply, Request, Status
from remusdb.net.hold import EpochOrder, Held, HoldQueue
from remusdb.net.tuntap import FRAME_MAX_BYTES

_BATCH_FRAMES = 64
# A mark must be answered at once beside a busy emulated guest, while the VM is stopped. Nice is not enough: it
# counts only within a session's or a cgroup's share (docs/facts.md). The kernel still keeps 5 % for the others.
_PRIORITY = 1
_NICE = -15  # where real-time scheduling is not allowed
_RETRY_MS = 1
_NO_ROOM = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


class GateProcess:
    """The loop; `tap_fd` is non-blocking."""

    def __init__(
        self,
        control: socket.socket,
        tap_fd: int,
        sender: socket.socket,
        max_bytes: int,
        closed: bool,
        rule: CommitRule | None = None,
        bell_fd: int | None = None,
    ) -> None:
        """`rule`: what may go early, None for nothing. `bell_fd`: rung once after each mark when a frame waits."""
        self._control = control
        self._tap_fd = tap_fd
        self._sender = sender
        self._queue = HoldQueue(max_bytes, rule)
        self._bell_fd = bell_fd
        self._rung = False
        self._flushes: list[int] = []
        self._stuck = False
        if closed:
            self._queue.hold()

    def run(self) -> None:
        """Until the worker is gone."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._tap_fd, select.POLLIN)
        control_fd, queue = self._control.fileno(), self._queue
        while True:
            wait_ms = (_RETRY_MS if self._stuck else 0) if queue.sending or queue.early else None
            ready = {fd for fd, _events in poll.poll(wait_ms)}
            if control_fd in ready and not self._serve():
                return
            if self._tap_fd in ready:
                self._read(_BATCH_FRAMES)
            if queue.early:
                self._send_early()
            if queue.sending and not queue.early:
                self._send()
            if self._flushes and not queue.sending and not queue.early:
                self._answer_flushes()

    def _read(self, most: int) -> int:
        """Take at most this many frames from the tap; how many there were."""
        frames: list[bytes] = []
        read, fd, append = os.read, self._tap_fd, frames.append
        with contextlib.suppress(BlockingIOError):
            for _ in range(most):
                append(read(fd, FRAME_MAX_BYTES))
        self._queue.accept(frames, time.monotonic())
        self._ring()
        return len(frames)

    def _ring(self) -> None:
        if self._bell_fd is not None and not self._rung and self._queue.waits:
            self._rung = True
            os.eventfd_write(self._bell_fd, 1)

    def _drain(self) -> None:
        """Take every frame that was sent before now; the VM is stopped, so this ends."""
        while self._read(_BATCH_FRAMES) == _BATCH_FRAMES:
            pass

    def _send(self) -> None:
        """Send at most one batch of what was released."""
        queue = self._queue
        for held, ok in self._batch(queue.sending):
            queue.sent(held, ok)
            queue.left(held)

    def _send_early(self) -> None:
        """Send at most one batch of what may go early, if the lease still runs: it may have stood still since."""
        queue = self._queue
        queue.hold_back(time.monotonic())
        for held, ok in self._batch(queue.early):
            queue.sent_early(held, ok)
        self._ring()

    def _batch(self, sending: deque[Held]) -> Iterator[tuple[Held, bool]]:
        """What is gone of it, and whether it was sent; it ends early where the kernel has no room."""
        send = self._sender.send
        self._stuck = False
        for _ in range(min(_BATCH_FRAMES, len(sending))):
            ok = True
            try:
                send(sending[0].frame)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._stuck = True
                    return
                # A frame the kernel will not take (a malformed header from the guest) must not stop the rest.
                ok = False
            yield sending.popleft(), ok

    def _serve(self) -> bool:
        """Answer one request; False once the worker is gone."""
        try:
            data = self._control.recv(MESSAGE_MAX_BYTES)
            if not data:
                return False
            request = Request.unpack(data)
            if request.op is Op.FLUSH:
                self._drain()
                self._flushes.append(request.sequence)
            elif request.op is Op.FLOWS:
                flows = b"".join(flow.pack() for flow in self._queue.flows)
                self._control.send(self._reply(request.sequence, Status.DONE, flows))
            else:
                self._control.send(self._reply(request.sequence, self._do(request)))
                if request.op is Op.MARK:  # what was read is of the time before the mark; the VM need not wait for it
                    self._queue.name_flows()
        except (ConnectionError, BrokenPipeError):
            return False
        return True

    def _do(self, request: Request) -> Status:
        queue = self._queue
        match request.op:
            case Op.HOLD:
                queue.hold()
            case Op.MARK:
                self._drain()
                self._send_early()  # or they would wait for this epoch
                try:
                    queue.mark(request.epoch)
                except EpochOrder:
                    return Status.EPOCH_ORDER
                self._rung = False
            case Op.RELEASE:
                queue.release(request.epoch, request.early_until)
            case Op.OPEN_ALL:
                queue.open_all()
            case Op.DROP_HELD:
                self._drain()
                queue.drop_held()
        return Status.DONE

    def _reply(self, sequence: int, status: Status, flows: bytes = b"") -> bytes:
        queue = self._queue
        counters = (queue.held_frames, queue.held_bytes, queue.released, queue.dropped, queue.released_early)
        return Reply(status, sequence, *counters, flows=flows).pack()

    def _answer_flushes(self) -> None:
        for sequence in self._flushes:
            self._control.send(self._reply(sequence, Status.DONE))
        self._flushes.clear()


def _be_prompt() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def main() -> None:
    """Entry point; the descriptors are inherited."""
    parser = argparse.ArgumentParser()
    for name in ("--control-fd", "--tap-fd", "--sender-fd", "--max-bytes"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--closed", action="store_true")
    parser.add_argument("--release", default="")
    parser.add_argument("--bell-fd", type=int)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the daemon's terminal is the daemon's business
    _be_prompt()
    control = socket.socket(fileno=args.control_fd)
    sender = socket.socket(fileno=args.sender_fd)
    gc.disable()  # frames are bytes: no cycles, and a collection would lengthen a mark
    rule = CommitRule(ReleaseSettings.unpack(args.release)) if args.release else None
    control.send(Reply(Status.DONE, 0).pack())
    with contextlib.suppress(OSError):  # the worker went, or took the tap away: either way this is the end
        GateProcess(control, args.tap_fd, sender, args.max_bytes, args.closed, rule, args.bell_fd).run()


if __name__ == "__main__":
    main()
