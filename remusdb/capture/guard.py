# SPDX-License-Identifier: Apache-2.0
"""The guard: frees a QEMU that waits on the state FIFO when the worker is dead.

QEMU's open of a FIFO without a reader would wait for ever, with the VM stopped. The guard sleeps until the
worker's end of its stdin closes. A `q` before that means a good end. Otherwise it removes the FIFO's name (a
later open makes an ordinary file), opens the read end once so that a waiting QEMU goes on, and empties it.

Runs as `python -P -m remusdb.capture.guard FIFO_FD FOLDER_FD NAME`, in a session of its own: it outlives the worker.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

from remusdb.deadline import Deadline
from remusdb.safefiles import remove, reopen

FREE_FOR_S = 5.0  # a monitor call that libvirt had already begun reaches QEMU within this


def free(fifo: int, folder: int, name: str) -> None:
    """Let every present and coming writer of the FIFO go on."""
    reader = reopen(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with contextlib.suppress(OSError):
        remove(folder, name)
    deadline = Deadline.after(FREE_FOR_S)
    while not deadline.over:
        select.select([reader], [], [], 0.05)
        try:
            if not os.read(reader, 1 << 16):
                time.sleep(0.02)  # no writer now
        except BlockingIOError:
            pass


def main() -> None:
    """Wait for the worker's end, then free QEMU unless the end was a good one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    fifo, folder, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if os.read(0, 1) != b"q":
        free(fifo, folder, name)


if __name__ == "__main__":
    main()
