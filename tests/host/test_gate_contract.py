# SPDX-License-Identifier: Apache-2.0
"""What every gate must do, whichever backend it is.

`REMUSDB_TEST_GATES` names the backends (comma separated); without it the ones this project's own kernel can run.
`tests/vm/test_plug_gate.py` runs this same file inside a guest with Debian's kernel, for the plug gate.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, cast

import pytest

from remusdb.errors import GateError
from remusdb.net.factory import GateGroup, make_gate
from remusdb.net.gate import Gate
from remusdb.net.tc import Tc
from tests.host.netlab import (
    Lab,
    arp_frame,
    frame,
    inbound_frame,
    index_of,
    ip_frame,
    lab,
    number_of,
    sh,
)

BACKENDS = os.environ.get("REMUSDB_TEST_GATES", "tap").split(",")
HELD_MAX_BYTES = 1 << 20
BROADCAST = "ff:ff:ff:ff:ff:ff"
EVERY_KIND = {
    "ipv4": ip_frame(4),
    "ipv6": ip_frame(6),
    "arp": arp_frame("10.0.0.2", "10.0.0.1"),
    "odd ethertype": frame(1, 0x88B5),
    "vlan": frame(1, 0x0800, vlan=7),
    "priority tag": frame(1, 0x0800, vlan=0),
    "broadcast": frame(1, to=BROADCAST),
    "multicast": ip_frame(6, to="33:33:00:00:00:01"),
    "lldp": frame(1, 0x88CC, to="01:80:c2:00:00:03"),
    "full size": frame(1, size=1514),
}

Maker = Callable[[], Gate]


@pytest.fixture(params=BACKENDS)
def kind(request: pytest.FixtureRequest) -> Literal["tap", "plug"]:
    return cast(Literal["tap", "plug"], request.param)


@pytest.fixture
def net() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture
def new_gate(net: Lab, kind: Literal["tap", "plug"]) -> Iterator[Maker]:
    made: list[Gate] = []

    def make() -> Gate:
        made.append(make_gate(kind, net.vm.name, HELD_MAX_BYTES))
        return made[-1]

    yield make
    for each in made:
        each.remove()


@pytest.fixture
def gate(new_gate: Maker) -> Gate:
    """Installed and holding."""
    made = new_gate()
    made.install()
    made.hold()
    return made


def numbers(net: Lab, count: int, timeout_s: float = 2.0) -> list[int]:
    return [number_of(got) for got in net.wire.receive(count, timeout_s)]


def send(net: Lab, wanted: range) -> None:
    for number in wanted:
        net.vm.send(frame(number))


@pytest.mark.parametrize("shape", EVERY_KIND)
def test_nothing_leaves_before_release(net: Lab, gate: Gate, shape: str) -> None:
    net.vm.send(EVERY_KIND[shape])
    assert net.wire.silent()
    gate.mark(1)
    assert net.wire.silent()
    gate.release(1)
    if shape == "lldp":  # a bridge never forwards it; it must only never get past the gate early
        return
    assert net.wire.receive(1) == [EVERY_KIND[shape]]


def test_install_lets_everything_pass(net: Lab, new_gate: Maker) -> None:
    new_gate().install()
    send(net, range(50))
    assert numbers(net, 50) == list(range(50))


def test_order_within_and_across_epochs(net: Lab, gate: Gate) -> None:
    for epoch in range(1, 21):
        send(net, range(epoch * 100, epoch * 100 + 50))
        gate.mark(epoch)
        gate.release(epoch)
    assert numbers(net, 1000) == [epoch * 100 + at for epoch in range(1, 21) for at in range(50)]


def test_release_stops_at_its_epoch(net: Lab, gate: Gate) -> None:
    for epoch in (1, 2, 3):
        send(net, range(epoch * 10, epoch * 10 + 5))
        gate.mark(epoch)
    send(net, range(90, 95))
    gate.release(1)
    assert numbers(net, 5) == list(range(10, 15))
    assert net.wire.silent()
    gate.release(3)
    assert numbers(net, 10) == [20, 21, 22, 23, 24, 30, 31, 32, 33, 34]
    assert net.wire.silent()
    gate.mark(4)
    gate.release(4)
    assert numbers(net, 5) == list(range(90, 95))


def test_releasing_again_or_early_lets_nothing_out(net: Lab, gate: Gate) -> None:
    gate.release(7)
    send(net, range(5))
    gate.release(7)
    gate.mark(8)
    gate.release(7)
    assert net.wire.silent()
    gate.release(8)
    gate.release(8)
    assert numbers(net, 5) == list(range(5))
    send(net, range(5, 10))
    gate.release(8)
    assert net.wire.silent()


def test_empty_epochs_pass(net: Lab, gate: Gate) -> None:
    for epoch in range(1, 60):
        gate.mark(epoch)
        gate.release(epoch)
    assert net.wire.silent()
    send(net, range(3))
    gate.mark(60)
    gate.release(60)
    assert numbers(net, 3) == [0, 1, 2]


def test_more_marks_than_usual_in_flight_leak_nothing(net: Lab, gate: Gate) -> None:
    """Late is allowed with many epochs in flight, early or lost is not."""
    for epoch in range(1, 13):
        send(net, range(epoch * 10, epoch * 10 + 5))
        gate.mark(epoch)
    sent_by = {epoch: epoch * 10 + 4 for epoch in range(1, 13)}
    got: list[int] = []
    for epoch in range(1, 13):
        gate.release(epoch)
        new = numbers(net, 60, 0.1)
        assert all(number <= sent_by[epoch] for number in new)
        got += new
    gate.mark(13)
    gate.release(13)
    got += numbers(net, 60, 0.2)
    assert got == [epoch * 10 + at for epoch in range(1, 13) for at in range(5)]


def test_inbound_flows_while_holding(net: Lab, gate: Gate) -> None:
    send(net, range(5))
    for number in range(100):
        net.wire.send(inbound_frame(number))
    assert [number_of(got) for got in net.vm.receive(100)] == list(range(100))
    gate.mark(1)
    net.wire.send(arp_frame("10.0.0.1", "10.0.0.2", source="52:54:00:aa:bb:cc"))
    assert len(net.vm.receive(1)) == 1
    assert net.wire.silent()


def test_held_bytes_are_bounded_and_drops_counted(net: Lab, gate: Gate) -> None:
    count = 2 * HELD_MAX_BYTES // 1500
    for number in range(count):
        net.vm.send(frame(number, size=1500))
    gate.mark(1)
    metrics = gate.metrics()
    assert 0 < metrics.held_bytes <= HELD_MAX_BYTES
    assert metrics.held_frames > 0
    assert metrics.held_frames + metrics.dropped_frames == count
    gate.release(1)
    got = numbers(net, metrics.held_frames)
    assert got == list(range(metrics.held_frames))  # the newest were dropped
    assert net.wire.silent()
    assert gate.metrics().released_frames == metrics.held_frames


def test_open_all_lets_go_and_passes_on(net: Lab, gate: Gate) -> None:
    send(net, range(5))
    gate.mark(1)
    send(net, range(5, 10))
    gate.open_all()
    send(net, range(10, 15))
    assert numbers(net, 15) == list(range(15))


def test_hold_again_after_open_all(net: Lab, gate: Gate) -> None:
    gate.mark(5)
    gate.open_all()
    gate.hold()
    send(net, range(5))
    gate.mark(1)
    assert net.wire.silent()
    gate.release(1)
    assert numbers(net, 5) == list(range(5))


def test_drop_held_forgets_and_stays_closed(net: Lab, gate: Gate) -> None:
    send(net, range(5))
    gate.mark(1)
    send(net, range(5, 10))
    gate.drop_held()
    gate.release(1)
    send(net, range(10, 15))
    assert net.wire.silent()
    assert gate.metrics().dropped_frames == 10
    gate.mark(2)
    gate.release(2)
    assert numbers(net, 15, 0.3) == list(range(10, 15))


@pytest.mark.parametrize("state", ["passing", "holding", "held", "opened"])
def test_remove_restores_exactly(net: Lab, new_gate: Maker, state: str) -> None:
    before = net.snapshot()
    gate = new_gate()
    gate.install()
    if state != "passing":
        gate.hold()
    if state == "held":
        send(net, range(5))
        gate.mark(1)
    if state == "opened":
        gate.open_all()
    gate.remove()
    assert net.snapshot() == before
    gate.remove()
    assert net.snapshot() == before
    assert net.wire.silent()
    send(net, range(5))
    assert numbers(net, 5) == list(range(5))


def test_a_clsact_of_someone_else_stays(net: Lab, new_gate: Maker) -> None:
    sh(f"tc qdisc add dev {net.vm.name} clsact")
    before = net.snapshot()
    gate = new_gate()
    gate.install()
    gate.hold()
    gate.remove()
    assert net.snapshot() == before


def test_an_ingress_shaper_is_refused_and_left_alone(net: Lab, new_gate: Maker) -> None:
    sh(f"tc qdisc add dev {net.vm.name} ingress")
    before = net.snapshot()
    with pytest.raises(GateError) as caught:
        new_gate().install()
    assert caught.value.hint
    assert net.snapshot() == before


def test_no_such_interface_is_an_error(net: Lab, kind: Literal["tap", "plug"]) -> None:
    before = net.snapshot()
    with pytest.raises(GateError):
        make_gate(kind, "nothere", HELD_MAX_BYTES).install()
    assert net.snapshot() == before


def test_install_does_not_take_over_a_closed_wiring(net: Lab, gate: Gate, new_gate: Maker) -> None:
    with pytest.raises(GateError):
        new_gate().install()
    send(net, range(5))
    assert net.wire.silent()
    gate.mark(1)
    gate.release(1)
    assert numbers(net, 5) == list(range(5))


def test_half_made_wiring_is_replaced_or_removed(net: Lab, new_gate: Maker) -> None:
    before = net.snapshot()
    gate = new_gate()
    gate.install()
    for name in sorted(net.devices() - {"lo", "br0", "lan0", net.vm.name})[:1]:
        sh(f"ip link del {name}")
    new_gate().install()
    gate.remove()
    assert net.devices() == {"lo", "br0", "lan0", net.vm.name}
    assert net.snapshot()["ip -d link show"] == before["ip -d link show"]


def test_the_bridge_keeps_its_address_and_port(net: Lab, new_gate: Maker) -> None:
    before = net.snapshot(), sh("ip -o link show br0 | grep -o link/ether.*")
    gate = new_gate()
    gate.install()
    gate.hold()
    assert sh("ip -o link show br0 | grep -o link/ether.*") == before[1]
    assert net.snapshot()["bridge -d link show"] == before[0]["bridge -d link show"]


def test_the_vm_is_learned_behind_its_own_port(net: Lab, gate: Gate) -> None:
    send(net, range(1))
    gate.mark(1)
    gate.release(1)
    assert len(net.wire.receive(1)) == 1
    assert f"52:54:00:12:34:56 dev {net.vm.name}" in sh("bridge fdb show br br0")


def test_addresses_are_learned(net: Lab, gate: Gate) -> None:
    net.vm.send(arp_frame("10.0.0.2", "10.0.0.1"))
    net.vm.send(arp_frame("0.0.0.0", "10.0.0.3"))  # a probe is nobody's address yet
    net.vm.send(arp_frame("10.0.0.9", "10.0.0.1", source="52:54:00:99:99:99"))  # someone nested in the guest
    assert gate.metrics().addresses == ("10.0.0.2",)


WORKER = """
import sys
from remusdb.net.factory import make_gate
gate = make_gate(sys.argv[1], sys.argv[2], 1 << 20)
gate.install()
gate.hold()
print("held", flush=True)
sys.stdin.readline()
gate.mark(1)
print("marked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def dead_worker(net: Lab, kind: str) -> None:
    """A worker installed, held frames 0-4, marked, and was killed."""
    command = [sys.executable, "-c", WORKER, kind, net.vm.name]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as worker:
        assert worker.stdin and worker.stdout
        assert worker.stdout.readline() == "held\n"
        send(net, range(5))
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "marked\n"
        worker.send_signal(signal.SIGKILL)


@pytest.mark.usefixtures("dead_worker")
def test_dead_worker_means_closed(net: Lab) -> None:
    send(net, range(5, 10))
    assert net.wire.silent(0.5)
    net.wire.send(inbound_frame(1))
    assert len(net.vm.receive(1)) == 1
    time.sleep(0.2)
    send(net, range(10, 15))
    assert net.wire.silent()


@pytest.mark.usefixtures("dead_worker")
def test_adopt_after_a_crash_is_closed_and_works(net: Lab, new_gate: Maker) -> None:
    gate = new_gate()
    gate.adopt()
    send(net, range(10, 15))
    assert net.wire.silent()
    gate.mark(2)
    gate.release(2)
    assert numbers(net, 10, 0.3) == list(range(10, 15))
    gate.open_all()
    send(net, range(20, 25))
    assert numbers(net, 5) == list(range(20, 25))


@pytest.mark.usefixtures("dead_worker")
def test_remove_after_a_crash(net: Lab, new_gate: Maker) -> None:
    new_gate().remove()
    assert net.devices() == {"lo", "br0", "lan0", net.vm.name}
    assert "clsact" not in sh("tc qdisc show")
    assert net.wire.silent()
    send(net, range(5))
    assert numbers(net, 5) == list(range(5))


@pytest.mark.usefixtures("dead_worker")
def test_adopt_when_the_vm_was_started_anew(net: Lab, new_gate: Maker) -> None:
    """The tap is another one of the same name: its wiring is made again, closed from the start."""
    net.vm.close()
    net.vm = type(net.vm)("vnet0", "fe:54:00:12:34:56")
    gate = new_gate()
    gate.adopt()
    send(net, range(5))
    assert net.wire.silent()
    gate.mark(1)
    gate.release(1)
    assert numbers(net, 5) == list(range(5))


def test_remove_when_the_tap_is_gone(net: Lab, gate: Gate) -> None:
    net.vm.close()
    gate.remove()
    assert net.devices() == {"lo", "br0", "lan0"}


def test_group_holds_every_interface(net: Lab, kind: Literal["tap", "plug"]) -> None:
    second = type(net.vm)("vnet1", "fe:54:00:12:34:57")
    group = GateGroup([make_gate(kind, name, HELD_MAX_BYTES) for name in ("vnet0", "vnet1")])
    try:
        group.install()
        group.hold()
        for number in range(4):
            (net.vm, second)[number % 2].send(frame(number))
        assert net.wire.silent()
        group.mark(1)
        group.release(1)
        assert sorted(numbers(net, 4)) == [0, 1, 2, 3]
        assert group.metrics().released_frames == 4
    finally:
        group.remove()
        second.close()
    assert net.devices() == {"lo", "br0", "lan0", "vnet0"}


def test_a_burst_larger_than_a_batch_survives(net: Lab, gate: Gate) -> None:
    send(net, range(3000))
    gate.mark(1)
    send(net, range(3000, 3010))
    gate.release(1)
    assert numbers(net, 3000, 5.0) == list(range(3000))
    assert net.wire.silent()


def test_a_live_vm_loses_nothing_from_install_to_remove(net: Lab, new_gate: Maker) -> None:
    stop, sent = threading.Event(), itertools.count()

    def speak() -> None:
        while not stop.is_set():
            net.vm.send(frame(next(sent)))
            time.sleep(0.0002)

    vm = threading.Thread(target=speak)
    vm.start()
    try:
        gate = new_gate()
        gate.install()
        gate.hold()
        for epoch in range(1, 31):
            gate.mark(epoch)
            gate.release(epoch)
            time.sleep(0.002)
        assert gate.metrics().dropped_frames == 0
        gate.open_all()
        gate.remove()
    finally:
        stop.set()
        vm.join()
    count = next(sent)
    assert sorted(numbers(net, count)) == list(range(count))


def test_only_our_redirect_is_added(net: Lab, gate: Gate) -> None:
    del gate
    with Tc() as tc:
        assert len(tc.ingress_filters(index_of(net.vm.name))) == 1
