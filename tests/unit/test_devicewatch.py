# SPDX-License-Identifier: Apache-2.0
"""Which epochs may be shipped, with a QEMU and a libvirt that are made up."""

from __future__ import annotations

import logging
import os
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, cast

import libvirt
import pytest

from remusdb.core.sections import EOF, HEAD
from remusdb.errors import DevicesChanged, GateError, VmError
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import Domain
from remusdb.vm.ramblocks import Block
from remusdb.worker.devicewatch import GROWTH_BYTES, DeviceWatch

RAM = Block("pc.ram", 1 << 28, 1 << 40)
LIVE = "<domain id='1'><vcpu>1</vcpu><devices>{}</devices></domain>"
DISK = "<disk><target dev='vdb'/><alias name='virtio-disk1'/></disk>"


def state(*names: str) -> bytes:
    """A device state with these sections."""
    sections = [
        struct.pack(">BIB", 4, at, len(name))
        + name.encode()
        + struct.pack(">II", 0, 1)
        + b"x~\0"
        + b"~"
        + at.to_bytes(4)
        for at, name in enumerate(names)
    ]
    return HEAD + b"".join(sections) + EOF


class Vm:
    """A domain, as far as the watch asks it."""

    def __init__(self) -> None:
        self.calls = BlockingCalls(2.0)
        self.handle = self
        self.pid = os.getpid()
        self.xml = LIVE.format("")
        self.tree = ET.fromstring(self.xml)
        self.devices = ["net0"]
        self.ram = [RAM]
        self.away = self.ended = False

    def XMLDesc(self, _flags: int) -> str:
        if self.away:
            raise libvirt.libvirtError("no connection")
        return self.xml

    def qmp(self, _command: str, path: str) -> list[dict[str, Any]]:
        if self.away:
            raise VmError("no monitor")
        return [{"name": name} for name in self.devices] if path.endswith("peripheral") else []

    def blocks(self) -> list[Block]:
        return self.ram

    def ends_within(self, _seconds: float) -> bool:
        return self.ended


@pytest.fixture
def vm() -> Vm:
    return Vm()


@pytest.fixture
def watch(vm: Vm) -> DeviceWatch:
    """After the first epoch."""
    made = DeviceWatch(cast(Domain, vm), vm.ram, lambda _change: None, explain_s=0.1)
    made.require_same(state("timer", "cpu"))
    return made


def test_the_same_devices_pass(watch: DeviceWatch) -> None:
    for _ in range(3):
        watch.require_same(state("timer", "cpu"))


def test_another_section_is_told_as_libvirt_calls_it(vm: Vm, watch: DeviceWatch) -> None:
    vm.xml = LIVE.format(DISK)
    with pytest.raises(DevicesChanged, match=r"^devices changed: disk vdb was attached$"):
        watch.require_same(state("timer", "cpu", "0000:00:05.0/virtio-blk"))


@pytest.mark.parametrize("away", [True, False])
def test_another_section_is_told_by_its_name_where_libvirt_says_nothing(vm: Vm, watch: DeviceWatch, away: bool) -> None:
    """libvirtd is away, or somebody spoke to QEMU behind its back."""
    vm.away, vm.devices = away, ["net0", "blk0"]
    with pytest.raises(DevicesChanged, match=r"QEMU's device state has 0000:00:05\.0/virtio-blk as well"):
        watch.require_same(state("timer", "cpu", "0000:00:05.0/virtio-blk"))


def test_a_section_that_goes_is_a_change(vm: Vm, watch: DeviceWatch) -> None:
    vm.devices = []
    with pytest.raises(DevicesChanged, match="lacks cpu"):
        watch.require_same(state("timer"))


def test_a_device_that_begins_to_have_state_is_no_change(
    vm: Vm, watch: DeviceWatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        watch.require_same(state("timer", "cpu", "odd"))
        watch.require_same(state("timer", "cpu", "odd"))
    assert caplog.text.count("odd as well, with the same devices") == 1


def test_a_state_that_cannot_be_read_any_more_is_not_shipped(watch: DeviceWatch) -> None:
    with pytest.raises(DevicesChanged, match="cannot be read"):
        watch.require_same(state("timer", "cpu")[:-1])


def test_memory_that_nobody_tracks_is_a_change(vm: Vm, watch: DeviceWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has grown: with the same RAM blocks that is its own affair, and asked but once."""
    size = GROWTH_BYTES << 10
    monkeypatch.setattr(DeviceWatch, "_address_space", lambda _self: size)
    watch.require_same(state("timer", "cpu"))
    vm.ram = [RAM, Block("mem-dimm0", 1 << 27, 1 << 41)]
    watch.require_same(state("timer", "cpu"))
    size += 2 * GROWTH_BYTES
    with pytest.raises(DevicesChanged, match="QEMU has other memory: mem-dimm0"):
        watch.require_same(state("timer", "cpu"))


def test_a_gate_that_failed_since_its_tap_was_taken_away_is_told_as_that(vm: Vm, watch: DeviceWatch) -> None:
    failure = GateError("no such device")
    assert watch.explained(failure) is failure
    vm.xml = LIVE.format(DISK)
    assert "disk vdb was attached" in str(watch.explained(failure))
    vm.ended = True  # a VM that is off has no devices
    assert watch.explained(failure) is failure


def test_the_definition_of_a_vm_that_is_off_is_no_change(vm: Vm, watch: DeviceWatch) -> None:
    vm.xml = "<domain><vcpu>1</vcpu><devices/></domain>"
    assert watch.explained(failure := GateError("died")) is failure


def test_the_size_of_a_process_is_read() -> None:
    assert Path(f"/proc/{os.getpid()}/statm").exists()
    assert DeviceWatch(cast(Domain, Vm()), [RAM], lambda _change: None)._size > 1 << 20
