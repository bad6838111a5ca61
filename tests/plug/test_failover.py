# SPDX-License-Identifier: Apache-2.0
"""A failover with the plug gate, which users' kernels get by default: what left, when, and from which host.

Needs a kernel with sch_plug and IFB. Here it is run inside a guest that has one (tests/vm/test_plug_gate.py), where
everything is emulated twice: so every limit is many times what it is elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from tests.vm.pair import Pair, eventually
from tools.lab import Lab, domains
from tools.lab.guest import Mode
from tools.lab.product import Product
from tools.matrix.watch import Speakers

PROTECTION: dict[str, int | str | bool] = {
    "gate": "plug",
    "epoch_mode": "fixed",  # on demand, emulated twice, libvirt would have no time for virsh
    "epoch_ms": 1000,
    "heartbeat_ms": 1000,
    "connect_timeout_ms": 20_000,
    "vm_call_timeout_ms": 60_000,
    "libvirt_patience_ms": 120_000,
}
SILENCE_MS = 30_000
SLOW_S = 240.0
TRIES = 4
HELD_S = 5.0  # several epochs


@pytest.mark.timeout(1200)
def test_output_waits_for_its_epoch_and_the_survivor_speaks_alone(tmp_path: Path) -> None:
    with Lab() as lab:
        lab.start_libvirt(SLOW_S)
        product = Product(lab, tmp_path, start_s=SLOW_S)
        product.install(PROTECTION, {"silence_ms": SILENCE_MS})
        product.start()
        pair = Pair(lab, product)
        vm = domains.define_bare(pair.a, Mode.READER, name="plugged", memory_mib=64)
        pair.a.run(["virsh", "start", vm.name], timeout_s=SLOW_S)
        told = product.cli("a", "protect", vm.name, "--to", "b", "--json", timeout_s=SLOW_S).stdout
        assert json.loads(told)["gate"] == "plug"
        speakers = Speakers(lab, domains.BARE_MAC)
        try:
            _waits_for_its_epoch(pair, vm.name, speakers)
            pair.a.kill()
            eventually(lambda: vm.name in pair.running(pair.b), SLOW_S, "no takeover")
            eventually(lambda: speakers.frames()[-1].host == "b", SLOW_S, "the survivor was not announced")
            grown = len(vm.serial_text(pair.b))
            eventually(lambda: len(vm.serial_text(pair.b)) > grown, SLOW_S, "the survivor stands still")
            assert speakers.complaints(moves=1) == []
        finally:
            speakers.close()


def _waits_for_its_epoch(pair: Pair, vm: str, speakers: Speakers) -> None:
    """What is committed comes out. With nobody there to release it nothing does: the kernel holds it."""
    domain = libvirt.open(pair.a.libvirt_uri).lookupByName(vm)  # a virsh takes seconds to start here
    flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    libvirt_qemu.qemuMonitorCommand(domain, "announce_self", flags)
    eventually(lambda: {frame.host for frame in speakers.frames()} == {"a"}, SLOW_S, "nothing came out")
    (worker,) = pair.pids(pair.a, "remusdb.worker")
    for tries_left in reversed(range(TRIES)):
        os.kill(worker, signal.SIGSTOP)
        time.sleep(HELD_S / 2)  # QEMU's announcements go on for a while; what was released before is out by then
        speakers.begin()
        try:
            libvirt_qemu.qemuMonitorCommand(domain, "announce_self", flags)
            break
        except libvirt.libvirtError:  # it was stopped in the middle of a cut, so QEMU waits for it and answers nobody
            if not tries_left:
                raise
            os.kill(worker, signal.SIGCONT)
            time.sleep(HELD_S)
    time.sleep(HELD_S)
    assert speakers.frames() == []
