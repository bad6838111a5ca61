# SPDX-License-Identifier: Apache-2.0
"""CPUs, NUMA nodes and huge pages of this host, as the kernel lists them."""

from __future__ import annotations

import re
from pathlib import Path

from remusdb.core.probe import HugePages

SYSTEM = Path("/sys/devices/system")
HUGE = Path("/sys/kernel/mm/hugepages")
_SIZES = {"K": 1, "M": 1 << 10, "G": 1 << 20}


def online_cpus() -> str:
    """Such as 0-3,8. OSError."""
    return (SYSTEM / "cpu/online").read_text().strip()


def memory_nodes() -> str:
    """NUMA nodes that have memory; 0 where the kernel knows of none. OSError."""
    path = SYSTEM / "node/has_memory"
    return path.read_text().strip() if path.exists() else "0"


def default_huge_page_kib(meminfo: Path = Path("/proc/meminfo")) -> int:
    """The size of those that are asked for without a size; 0 if there are none."""
    found = re.search(r"^Hugepagesize:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def huge_pages(folder: Path = HUGE, mounts: Path = Path("/proc/mounts")) -> dict[int, HugePages]:
    """By size in KiB."""
    mounted = _mounted(mounts.read_text(), default_huge_page_kib())
    found = {}
    for path in folder.glob("hugepages-*kB"):
        size = int(path.name.removeprefix("hugepages-").removesuffix("kB"))
        found[size] = HugePages(int((path / "free_hugepages").read_text()), size in mounted)
    return found


def _mounted(mounts: str, default_kib: int) -> set[int]:
    sizes = set()
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[2] == "hugetlbfs":
            named = re.search(r"pagesize=(\d+)([KMG])", fields[3])
            sizes.add(int(named[1]) * _SIZES[named[2]] if named else default_kib)
    return sizes
