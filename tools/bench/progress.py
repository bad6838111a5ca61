# SPDX-License-Identifier: Apache-2.0
"""What protection leaves a guest of its own time: rounds a second of the bare-metal guest, protected over unprotected.

    python -m tools.bench.progress      with hot pages and without, in turns; one JSON object on stdout

A round writes some pages and prints a line; it runs under KVM, where there is one. So this is what stops and faults
take, and nothing of what clients wait for.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from tools.bench.pair import two_hosts
from tools.lab import Host, Lab, domains, guest
from tools.lab.domains import Vm
from tools.lab.product import Product
from tools.load import wait_for

GUESTS = {"100": (100, 0), "1000": (1000, 0), "10000": (10_000, 0), "reader": (16, 8192)}  # pages written, and read
USUAL = "1000"  # what the report's key is of
_START_S, _MEMORY_MIB = 30.0, 128
_TURNS, _SECONDS, _PROTECT_S = 3, 2.0, 120.0


def measure(
    lab: Lab, product: Product, seconds: float, configure: Callable[[str], None] = lambda _vm: None
) -> dict[str, float]:
    """The ratio for each of GUESTS. `configure` is called before each is protected."""
    found: dict[str, float] = {}
    host = lab.host("a")
    for name, (writes, reads) in GUESTS.items():
        kernel = guest.build_rounds(writes, reads)
        vm = domains.define_bare(host, guest.Mode.DIRTIER, name=f"rounds{name}", memory_mib=_MEMORY_MIB, kernel=kernel)
        host.run(["virsh", "start", vm.name])
        wait_for(lambda vm=vm: _rounds(host, vm) > 1, _START_S, "the guest does not count")  # type: ignore[misc]
        plain = _speed(host, vm, seconds)
        configure(vm.name)
        product.cli("a", "protect", vm.name, "--to", "b", timeout_s=_PROTECT_S)
        protected = _speed(host, vm, seconds)
        product.cli("a", "unprotect", vm.name, timeout_s=_PROTECT_S)
        plain = (plain + _speed(host, vm, seconds)) / 2  # before and after: the machine is never the same for long
        host.run(["virsh", "destroy", vm.name])
        host.run(["virsh", "undefine", vm.name])
        found[name] = round(protected / plain, 3)
    return found


def _speed(host: Host, vm: Vm, seconds: float) -> float:
    began, before = time.monotonic(), _rounds(host, vm)
    time.sleep(seconds)
    return (_rounds(host, vm) - before) / (time.monotonic() - began)


def _rounds(host: Host, vm: Vm) -> int:
    lines = vm.serial_text(host).split("\n")
    return int(lines[-2].split()[0], 16) if len(lines) > 1 and lines[-2].strip() else 0


def main() -> None:
    """Medians of some turns."""
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for hot in [True, False] * _TURNS:
        with two_hosts({"hot_pages": hot}) as (lab, product):
            found[hot].append(measure(lab, product, _SECONDS))
    told = {
        f"hot_pages {hot}": {name: round(statistics.median(turn[name] for turn in turns), 3) for name in GUESTS}
        for hot, turns in found.items()
    }
    print(json.dumps({**told, "turns": list(found.values())}))


if __name__ == "__main__":
    main()
