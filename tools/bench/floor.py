# SPDX-License-Identifier: Apache-2.0
"""How long QEMU itself lets a VM stand still to save the state of its devices: no cut of this VM can be shorter.

    python -m tools.bench.floor VM        on the VM's host; the VM is not protected

Its state goes into a pipe that is read at once, nothing else is done. The median in ms is on stdout.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

from remusdb.capture.fifo import StateFifo, drain, wait_any, widen
from remusdb.capture.pauses import PauseMeter, start_event_loop
from remusdb.capture.stops import SAVE
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import Domain
from remusdb.vm.libvirt_link import LibvirtLink
from remusdb.worker.hurry import hurry

SAVES, APART_S, ANSWER_S = 100, 0.05, 10.0


def main(vm: str) -> None:
    """Saves the state again and again, as often as epochs by the clock would."""
    start_event_loop()
    calls = BlockingCalls(ANSWER_S)
    link = LibvirtLink("qemu:///system", calls)
    domain = Domain(link.connection, vm, calls)
    owner = Path(f"/proc/{domain.pid}").stat()
    fifo = StateFifo(domain.state_folder(), owner.st_uid, owner.st_gid)
    pauses: list[float] = []
    meter = PauseMeter(link.connection, domain, pauses.append)
    hurry()
    for _ in range(SAVES):
        fd = fifo.open()
        widen(fd)
        save = calls.start(domain.qmp_blocking, SAVE, filename=str(fifo.path), live=False)
        wait_any((fd,), ANSWER_S)
        drain(fd, ANSWER_S)
        calls.finish(save, SAVE)
        os.close(fd)
        time.sleep(APART_S)
    meter.close()
    fifo.close()
    print(round(statistics.median(pauses), 3))


if __name__ == "__main__":
    main(sys.argv[1])
