# SPDX-License-Identifier: Apache-2.0
"""How fast the write log is, with QEMU's own NBD client. The floors are far below what any machine gives.

python -m pytest tests/bench/test_nbd_speed.py -o log_cli=true --log-cli-level=INFO
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from pathlib import Path

import pytest

from remusdb.disk.writelog import WriteLog
from remusdb.errors import DiskError

EPOCH_S = 0.05
log = logging.getLogger(__name__)


class Taker(threading.Thread):
    """Takes what is there every epoch, as the worker does, until the log ends; knows what that cost."""

    def __init__(self, writes: WriteLog) -> None:
        super().__init__(daemon=True)
        self.writes = writes
        self.longest_s = 0.0
        self.start()

    def run(self) -> None:
        while True:
            time.sleep(EPOCH_S)
            started = time.perf_counter()
            try:
                self.writes.take(self.writes.position(), 5)
            except DiskError:
                return
            self.longest_s = max(self.longest_s, time.perf_counter() - started)


@pytest.mark.parametrize(
    ("size", "count", "depth", "floor"),
    [(4096, 20000, 1, 300), (4096, 40000, 16, 300), (65536, 8000, 16, 100), (1 << 20, 1000, 4, 10)],
)
def test_writes_per_second(tmp_path: Path, size: int, count: int, depth: int, floor: int) -> None:
    writes = WriteLog(tmp_path, 0, 2 << 30)
    writes.start()
    taker, cpu = Taker(writes), time.process_time()
    url = f"nbd+unix:///?socket={writes.nbd_socket}"
    bench = ["qemu-img", "bench", "-w", "-f", "raw", "-c", str(count), "-s", str(size), "-d", str(depth), url]
    said = subprocess.run(bench, capture_output=True, text=True, check=True, timeout=100).stdout
    seconds = float(said.split("Run completed in ")[1].split()[0])
    cpu = time.process_time() - cpu
    taker.join(5)
    writes.close()
    rate = count / seconds
    log.info(
        "%7d bytes, %2d in flight: %6.0f writes/s, %5.0f MB/s; worker CPU %3.0f %%, longest take %.1f ms",
        *(size, depth, rate, rate * size / 1e6, 100 * cpu / seconds, taker.longest_s * 1e3),
    )
    assert rate > floor


def test_a_position_costs_nothing(tmp_path: Path) -> None:
    """It is read with the VM stopped."""
    writes = WriteLog(tmp_path, 0, 1 << 20)
    writes.start()
    started = time.perf_counter()
    for _ in range(1000):
        writes.position()
    each_us = (time.perf_counter() - started) * 1e3
    writes.close()
    log.info("position(): %.2f us", each_us)
    assert each_us < 100
