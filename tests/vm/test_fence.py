# SPDX-License-Identifier: Apache-2.0
"""A fenced VM is quarantined, and cannot be started by accident: real libvirt, real QEMU, no daemon of ours."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remusdb.host import libvirt_hook
from remusdb.state import StateStore
from tests.waiting import eventually
from tools.lab import Host, Lab, domains
from tools.lab.guest import Mode

STATE, IMAGES = "/var/lib/remusdb", "/var/lib/remusdb/images"
KEPT = f"{STATE}/quarantine"

# What the host daemon does, in the host's namespaces. A thread that hangs in libvirt must not keep it from ending.
QUARANTINE = f"""
import json, os, sys, traceback
from pathlib import Path
from remusdb.errors import RemusError
from remusdb.host.quarantine.retire import quarantine
from remusdb.state import StateStore
vm, policy = sys.argv[1:]
try:
    done = quarantine("qemu:///system", StateStore(Path("{STATE}")).load(vm), policy, Path("{IMAGES}"), Path("{STATE}"))
    print(json.dumps([done.disks, str(done.definition), done.note]))
    code = 0
except RemusError as exc:
    print(exc, file=sys.stderr)
    code = 1
except BaseException:
    traceback.print_exc()
    code = 2
sys.stdout.flush()
os._exit(code)
"""


class Fenced:
    """Host `a` of a lab, and the VMs that were fenced there."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._count = 0

    def vm(self, *, running: bool = True, ours: bool = False, role: str = "fenced", **state: Any) -> domains.Vm:
        """A VM in this role; with `ours`, its disk is in remusdb's own folder."""
        self._count += 1
        vm = domains.define_bare(self.host, Mode.DIRTIER, name=f"bare{self._count}")
        if ours:
            folder = self.host.path(f"{IMAGES}/{vm.name}")
            folder.mkdir(parents=True)
            self.host.path(vm.disk).rename(folder / "vda.raw")
            moved = self.virsh("dumpxml", vm.name).stdout.replace(vm.disk, f"{IMAGES}/{vm.name}/vda.raw")
            self.host.run(["virsh", "define", "/dev/stdin"], stdin=moved)
        if running:
            self.virsh("start", vm.name)
        StateStore(self.host.path(STATE)).update(
            vm.name, **{"role": role, "term": 7, "owner": "b", "peer": "b", **state}
        )
        return vm

    def virsh(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.run(["virsh", *words], check=check)

    def quarantine(self, vm: domains.Vm, policy: str = "keep") -> tuple[dict[str, str], Path, str]:
        """Disks, definition (seen from outside) and note. RuntimeError with the error's own words."""
        done = self.host.run([sys.executable, "-c", QUARANTINE, vm.name, policy], timeout_s=90)
        disks, definition, note = json.loads(done.stdout)
        return disks, self.host.path(definition), note

    def domains(self, *options: str) -> list[str]:
        return self.virsh("list", "--all", "--name", *options).stdout.split()

    def alive(self, pid: int) -> bool:
        """Whether the process runs on; a zombie does not."""
        with contextlib.suppress(OSError):
            return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        return False

    def libvirtd(self) -> int:
        return int(self.host.path("/run/libvirtd.pid").read_text())

    def restart_libvirtd(self) -> None:
        """As `systemctl restart` does: its VMs run on."""
        pid = self.libvirtd()
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not self.alive(pid), otherwise="libvirtd does not end")
        self.host.start_libvirtd()


@pytest.fixture(scope="module")
def fenced() -> Iterator[Fenced]:
    with Lab() as lab:
        lab.host("a").start_libvirt()
        yield Fenced(lab.host("a"))


def test_a_running_vm_ends_and_can_be_got_back(fenced: Fenced) -> None:
    vm = fenced.vm()
    fenced.virsh("autostart", vm.name)
    pid = fenced.host.qemu_pid(vm.name)
    disks, definition, note = fenced.quarantine(vm)
    assert not fenced.alive(pid)
    assert vm.name not in fenced.domains()
    assert disks == {"vda": vm.disk}
    assert fenced.host.path(vm.disk).exists(), "a disk that is not ours stays where it is"
    assert definition.stat().st_mode & 0o777 == 0o600
    assert vm.disk in note and "quarantined here" in note and "virsh define" in note
    assert fenced.quarantine(vm) == (disks, definition, note), "again: nothing changes"
    fenced.host.run(["virsh", "define", "/dev/stdin"], stdin=definition.read_text())
    assert vm.name in fenced.domains("--no-autostart")


def test_a_vm_that_is_off_with_snapshots_and_a_saved_image(fenced: Fenced) -> None:
    """A managed save image is the VM, ready to go on: `virsh start` after `virsh define` must not find it."""
    vm = fenced.vm(running=False)
    disk = fenced.host.path(vm.disk)
    fenced.host.run(["qemu-img", "create", "-q", "-f", "qcow2", vm.disk, "8M"])
    xml = fenced.virsh("dumpxml", vm.name).stdout.replace("type='raw' cache", "type='qcow2' cache")
    fenced.host.run(["virsh", "define", "/dev/stdin"], stdin=xml)
    fenced.virsh("snapshot-create-as", vm.name, "before")
    fenced.virsh("start", vm.name)
    fenced.virsh("managedsave", vm.name)
    saved = fenced.host.path(f"/var/lib/libvirt/qemu/save/{vm.name}.save")
    assert saved.exists()
    _, definition, _ = fenced.quarantine(vm)
    assert vm.name not in fenced.domains()
    assert not saved.exists()
    assert disk.exists()
    snapshot = definition.with_name(definition.name.replace(".xml", ".snapshot-before.xml"))
    assert "<name>before</name>" in snapshot.read_text()


def test_a_paused_vm_without_a_definition(fenced: Fenced) -> None:
    """As the takeover leaves one that could not be defined."""
    vm = fenced.vm()
    fenced.virsh("suspend", vm.name)
    fenced.virsh("undefine", vm.name)
    pid = fenced.host.qemu_pid(vm.name)
    _, definition, _ = fenced.quarantine(vm)
    assert not fenced.alive(pid)
    assert vm.name not in fenced.domains()
    fenced.host.run(["virsh", "define", "/dev/stdin"], stdin=definition.read_text())


def test_our_disks_are_kept_aside_the_newest_alone(fenced: Fenced) -> None:
    vm = fenced.vm(ours=True)
    folder = f"{IMAGES}/{vm.name}"
    fenced.host.path(f"{folder}/quarantine-term4").mkdir()
    fenced.host.path(f"{folder}/quarantine-term4/vda.raw").touch()
    disks, definition, note = fenced.quarantine(vm)
    assert disks == {"vda": f"{folder}/quarantine-term7/vda.raw"}
    assert sorted(path.name for path in fenced.host.path(folder).iterdir()) == ["quarantine-term7"]
    assert fenced.host.path(disks["vda"]).stat().st_size == 8 << 20
    assert f"{folder}/quarantine-term4" in note
    assert disks["vda"] in definition.read_text(), "what is got back has the disk that was kept"
    assert fenced.quarantine(vm)[0] == disks


def test_discard_leaves_ours_for_the_resync_and_deletes_nothing(fenced: Fenced) -> None:
    ours, theirs = fenced.vm(ours=True), fenced.vm()
    disks, _, note = fenced.quarantine(ours, "discard")
    assert (disks, "vda" in note) == ({}, False)
    assert fenced.host.path(f"{IMAGES}/{ours.name}/vda.raw").exists()
    disks, _, note = fenced.quarantine(theirs, "discard")
    assert disks == {}
    assert f"no longer used, yours to delete: vda in {theirs.disk}" in note
    assert fenced.host.path(theirs.disk).exists()


@pytest.mark.parametrize("sign", [signal.SIGSTOP, signal.SIGKILL], ids=["hung", "dead"])
def test_qemu_dies_without_libvirt(fenced: Fenced, sign: signal.Signals) -> None:
    vm, other = fenced.vm(ours=True), fenced.vm(role="protected")
    if sign is signal.SIGSTOP:
        fenced.virsh("undefine", vm.name)  # libvirt forgets it with its QEMU: what is not saved before is lost
    pid, others = fenced.host.qemu_pid(vm.name), fenced.host.qemu_pid(other.name)
    libvirtd = fenced.libvirtd()
    os.kill(libvirtd, sign)
    try:
        with pytest.raises(RuntimeError, match="its QEMU is dead, its definition is still there"):
            fenced.quarantine(vm)
        assert not fenced.alive(pid)
        assert fenced.alive(others), "another VM's QEMU"
        assert fenced.host.path(f"{IMAGES}/{vm.name}/vda.raw").exists(), "nothing else was done"
    finally:
        if sign is signal.SIGSTOP:
            os.kill(libvirtd, signal.SIGCONT)
        else:
            fenced.host.path("/run/libvirtd.pid").unlink(missing_ok=True)
            fenced.host.start_libvirtd()
    disks, definition, _ = fenced.quarantine(vm)
    assert vm.name not in fenced.domains()
    assert disks == {"vda": f"{IMAGES}/{vm.name}/quarantine-term7/vda.raw"}
    assert disks["vda"] in definition.read_text()
    fenced.host.run(["virsh", "define", "/dev/stdin"], stdin=definition.read_text())


def test_a_qemu_that_is_stopped_dies_too(fenced: Fenced) -> None:
    vm = fenced.vm()
    pid = fenced.host.qemu_pid(vm.name)
    os.kill(pid, signal.SIGSTOP)
    with contextlib.suppress(RuntimeError):  # libvirt may hang with it, until it is dead
        fenced.quarantine(vm)
    assert not fenced.alive(pid)
    fenced.quarantine(vm)
    assert vm.name not in fenced.domains()


def test_a_crash_anywhere_is_made_good_by_the_next_call(fenced: Fenced) -> None:
    for delay_ms in (0, 5, 10, 20, 50, 100, 200, 400):
        vm = fenced.vm(ours=True)
        pid = fenced.host.qemu_pid(vm.name)
        folder = fenced.host.path(KEPT)
        crashing = fenced.host.popen([sys.executable, "-c", QUARANTINE, vm.name, "keep"], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while not list(folder.glob(f"{vm.name}-*")) and crashing.poll() is None:  # it begins
            assert time.monotonic() < end
            time.sleep(0.001)
        time.sleep(delay_ms / 1000)
        crashing.kill()
        crashing.wait()
        disks, definition, _ = fenced.quarantine(vm)
        assert not fenced.alive(pid)
        assert vm.name not in fenced.domains()
        assert disks == {"vda": f"{IMAGES}/{vm.name}/quarantine-term7/vda.raw"}
        assert fenced.host.path(disks["vda"]).exists() and disks["vda"] in definition.read_text()


def test_a_gate_goes_but_not_one_whose_tap_is_there(fenced: Fenced) -> None:
    vm, other = fenced.vm(), fenced.vm(role="protected")
    taps = {name: fenced.virsh("domiflist", name).stdout.split()[-5] for name in (vm.name, other.name)}
    for tap in taps.values():
        wire = (
            f"import os; from remusdb.net.tapgate import TapGate; g = TapGate({tap!r}, 1 << 20); g.install(); g.hold()"
        )
        fenced.host.run([sys.executable, "-c", f"{wire}; os._exit(0)"])
    gates = [{"kind": "tap", "tap": tap, "mac": domains.BARE_MAC} for tap in taps.values()]
    gates[1]["mac"] = "52:54:00:00:00:01"  # the name was this VM's once
    StateStore(fenced.host.path(STATE)).update(vm.name, gates=gates)
    fenced.quarantine(vm)
    links = fenced.host.run(["ip", "-o", "link"]).stdout
    assert all(f"{prefix}{taps[other.name]}" in links for prefix in ("rg", "ri", "ro"))
    assert not any(f"{prefix}{taps[vm.name]}" in links for prefix in ("rg", "ri", "ro"))
    assert "mirred" in fenced.host.run(["tc", "filter", "show", "dev", taps[other.name], "ingress"]).stdout


def test_autostart_goes_off_and_comes_back(fenced: Fenced) -> None:
    vm = fenced.vm(running=False)
    code = (
        "import sys, libvirt; from remusdb.vm.autostart import *; "
        "h = libvirt.open('qemu:///system').lookupByName(sys.argv[1]); "
        "print(autostart_off(h), autostart_off(h)); autostart_back(h, sys.argv[2] == 'on')"
    )
    run = [sys.executable, "-c", code, vm.name]
    fenced.virsh("autostart", vm.name)
    assert fenced.host.run([*run, "off"]).stdout.split() == ["True", "False"]
    assert vm.name in fenced.domains("--no-autostart")
    fenced.virsh("autostart", vm.name)
    fenced.host.run([*run, "on"])
    assert vm.name in fenced.domains("--autostart")
    fenced.virsh("start", vm.name)
    fenced.virsh("undefine", vm.name)
    assert fenced.host.run([*run, "on"]).stdout.split() == ["False", "False"], "it has no definition"


def test_libvirt_refuses_to_start_a_vm_that_another_host_may_own(fenced: Fenced) -> None:
    """The hook counts from libvirt's next start, and never ends a VM that runs."""
    ask = [sys.executable, "-c", "from remusdb.host.libvirt_hook import *; print(hook_active('qemu:///system'))"]
    early = fenced.vm(running=False)
    runs = fenced.vm()
    assert libvirt_hook.install(fenced.host.path("/etc/libvirt/hooks/qemu.d")) is True
    assert fenced.host.run(ask).stdout.strip() == "False"
    fenced.virsh("start", early.name)
    fenced.virsh("destroy", early.name)
    time.sleep(1.1)  # hook_active compares whole seconds
    fenced.restart_libvirtd()
    assert fenced.host.run(ask).stdout.strip() == "True"
    assert runs.name in fenced.domains("--state-running"), (
        "a VM that runs is not touched: quarantining it is not the hook's"
    )
    for role, armed, starts in [
        ("fenced", False, False),
        ("protected", True, False),
        ("protected", False, True),
        ("none", False, True),
        ("solo", True, True),
        ("standby", False, True),
        ("promoted", False, True),
    ]:
        vm = fenced.vm(running=False, role=role, armed=armed)
        done = fenced.virsh("start", vm.name, check=False)
        assert (done.returncode == 0) is starts, (role, armed, done.stderr)
        assert starts or "remusdb: host b" in done.stderr
    nobody = fenced.vm(running=False)
    fenced.host.path(f"{STATE}/vms/{nobody.name}.json").unlink()
    fenced.virsh("start", nobody.name)


def test_a_libvirt_that_had_another_hook_asks_ours_at_once(fenced: Fenced) -> None:
    folder = fenced.host.path("/etc/libvirt/hooks/qemu.d")
    (folder / "remusdb").unlink(missing_ok=True)
    (folder.parent / "qemu").write_text("#!/bin/sh\n")
    (folder.parent / "qemu").chmod(0o755)
    fenced.restart_libvirtd()
    vm = fenced.vm(running=False)
    fenced.virsh("start", vm.name)
    fenced.virsh("destroy", vm.name)
    assert libvirt_hook.install(folder) is False
    assert "host b owns" in fenced.virsh("start", vm.name, check=False).stderr
