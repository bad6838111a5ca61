# SPDX-License-Identifier: Apache-2.0
"""What a cut costs by the VM's size: against its RAM, and against the pages that it writes in an epoch.

    python -m tools.bench.size [--quick]

A bare guest (under KVM, where there is one) in RAM of several sizes, most of it untouched, or all of it touched by QEMU
at its start; then one whose rounds write more and more pages. And the walk through the page tables alone, of memory of
this process, whose time for 256 GiB is calculated from that of 1 GiB. One JSON object on stdout; milliseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import mmap
import os
import statistics
import struct
import time
import xml.etree.ElementTree as ET
from contextlib import closing
from typing import Any

from remusdb.capture import kernel
from remusdb.capture.pagemap import PageMap
from tools.bench.pair import two_hosts
from tools.lab import Lab, domains, guest
from tools.lab.domains import Vm
from tools.lab.product import Product
from tools.load import wait_for

RAM_MIB, WRITES = (512, 1024, 2048, 4096), (100, 1000, 10_000, 50_000)
QUICK_RAM_MIB, QUICK_WRITES = (512, 2048), (100, 10_000)
CALCULATED_GIB = 256
_IDLE_PAGES, _WRITES_MIB = 2, 512
_SETTLE_S, _START_S, _PROTECT_S = 6.0, 30.0, 240.0
_WALKS, _WALKED_BYTES = 21, 1 << 30
SHOWN = ("pause_ms_p50", "pause_ms_p99", "dirty_pages", "bytes_per_epoch", "epochs_per_s", "stages_ms")


def walk_ms(*, huge: bool, touched: bool = True, written: bool = False) -> float:
    """The median of a walk of 1 GiB, every page protected and none written since.

    `huge`: in pages of 2 MiB; `touched`: there at all; `written`: each page was, once, and was protected again.
    """
    memory = mmap.mmap(-1, _WALKED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    if touched:
        _write(memory)
    anchor = ctypes.c_char.from_buffer(memory)
    start = ctypes.addressof(anchor)
    end = start + _WALKED_BYTES
    flags = os.O_CLOEXEC | os.O_NONBLOCK | kernel.UFFD_USER_MODE_ONLY
    watch = kernel.check(kernel.libc.syscall(kernel.SYS_USERFAULTFD, flags), "userfaultfd")
    try:
        fcntl.ioctl(watch, kernel.UFFDIO_API, bytearray(struct.pack("<QQQ", 0xAA, kernel.UFFD_FEATURES, 0)))
        area = struct.pack("<QQQQ", start, _WALKED_BYTES, kernel.UFFDIO_REGISTER_MODE_WP, 0)
        fcntl.ioctl(watch, kernel.UFFDIO_REGISTER, bytearray(area))
        with closing(PageMap(os.getpid())) as pages:
            pages.protect(start, end, whole=True)
            if written:
                _write(memory)
                pages.protect(start, end)
            took = []
            for _ in range(_WALKS):
                began = time.perf_counter()
                pages.written(start, end)
                took.append(time.perf_counter() - began)
    finally:
        os.close(watch)
        del anchor
        memory.close()
    return round(1e3 * statistics.median(took), 3)


def _write(memory: mmap.mmap) -> None:
    for at in range(0, _WALKED_BYTES, mmap.PAGESIZE):
        memory[at] = 1


def walks() -> dict[str, float]:
    """Of 1 GiB, and of CALCULATED_GIB (calculated: it is linear) at the best and at the worst."""
    found = {
        "1_gib_untouched": walk_ms(huge=False, touched=False),
        "1_gib_4k": walk_ms(huge=False),
        "1_gib_2m": walk_ms(huge=True),
        "1_gib_2m_written_since": walk_ms(huge=True, written=True),
    }
    far = {name.replace("1_gib", f"{CALCULATED_GIB}_gib") + "_calculated": round(CALCULATED_GIB * one, 1)
           for name, one in found.items() if name in ("1_gib_4k", "1_gib_2m")}  # fmt: skip
    return {**found, **far}


class Sizes:
    """A pair of hosts, on which one bare guest after the other is protected."""

    def __init__(self, lab: Lab, product: Product) -> None:
        self._host, self._product = lab.host("a"), product

    def measure(self, memory_mib: int, writes: int, *, touched: bool = False) -> dict[str, Any]:
        """What status says of a guest of this size that is protected for some seconds."""
        name = f"size{memory_mib}-{writes}{'-touched' if touched else ''}"
        kernel_file = guest.build_rounds(writes, 0)
        vm = domains.define_bare(self._host, guest.Mode.DIRTIER, name=name, memory_mib=memory_mib, kernel=kernel_file)
        if touched:
            domains.change(self._host, name, _touch)
        self._host.run(["virsh", "start", name])
        wait_for(lambda: self._counts(vm), _START_S, "the guest does not count")
        self._product.cli("a", "protect", name, "--to", "b", timeout_s=_PROTECT_S)
        time.sleep(_SETTLE_S)
        status = self._product.status(name)
        self._product.cli("a", "unprotect", name, timeout_s=_PROTECT_S)
        self._host.run(["virsh", "destroy", name])
        self._host.run(["virsh", "undefine", name])
        return {key: status[key] for key in SHOWN}

    def _counts(self, vm: Vm) -> bool:
        return vm.serial_text(self._host).count("\n") > 1


def _touch(domain: ET.Element) -> None:
    """QEMU touches all of the RAM at its start."""
    backing = ET.SubElement(domain, "memoryBacking")
    ET.SubElement(backing, "allocation", mode="immediate")


def main() -> None:
    """All of it, one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.size")
    parser.add_argument("--quick", action="store_true", help="two sizes each")
    quick = parser.parse_args().quick
    found: dict[str, Any] = {"walk_ms": walks(), "ram_mib": {}, "ram_mib_touched": {}, "writes": {}}
    with two_hosts() as (lab, product):
        sizes = Sizes(lab, product)
        for memory_mib in QUICK_RAM_MIB if quick else RAM_MIB:
            found["ram_mib"][memory_mib] = sizes.measure(memory_mib, _IDLE_PAGES)
            found["ram_mib_touched"][memory_mib] = sizes.measure(memory_mib, _IDLE_PAGES, touched=True)
        for writes in QUICK_WRITES if quick else WRITES:
            found["writes"][writes] = sizes.measure(_WRITES_MIB, writes)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
