# SPDX-License-Identifier: Apache-2.0
"""Each runbook in docs/runbooks/ is gone through as it is written: its situations are brought about, its commands typed
on the hosts that it names, and what they print is what it says."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runbooks import Command, Happens, Situation, parse, runbooks, says
from tests.vm.pair import Pair, running_pair
from tests.vm.test_moments import order
from tools.faults import LinkFault
from tools.lab import domains, guest
from tools.lab.guest import Mode
from tools.lab.host import Host

REPO = Path(__file__).resolve().parents[2]
HOLDS = ("holds1", "holds2", "holds3")  # VMs whose `on_backup_loss` is that, for a situation each
SHOWS = ("remusdb status", "remusdb history", "virsh domstate", "df")  # asked again until it shows what it should
PATIENCE_S = 60.0
SILENCE_MS = 2000
PORTS = 4
FOLDERS = {"a": "/var/lib/libvirt/images/small", "b": "/var/lib/remusdb/images"}
BLOCKS = [
    pytest.param(one, id=f"{path.stem}-{number}")
    for path in runbooks()
    for number, one in enumerate(parse(path.stem, path.read_text()).situations, 1)
]


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two hosts with an arbiter, a VM's settings, and a /var/backups that is the lab's own.

    What is shown is what follows what, not how fast: nobody takes over because this machine is busy.
    """

    def settle(pair: Pair) -> None:
        for host in (pair.a, pair.b):
            for config, table, slower in (
                ("agent.toml", "[failover]\n", f"silence_ms = {SILENCE_MS}\n"),
                ("host.toml", "[protection]\n", f"solo_after_ms = {2 * SILENCE_MS}\n"),
            ):
                path = host.path("/etc/remusdb") / config
                path.write_text(path.read_text().replace(table, table + slower))
        with pair.a.path("/etc/remusdb/host.toml").open("a") as file:
            file.writelines(f'\n[vms.{name}]\non_backup_loss = "hold"\n' for name in HOLDS)
        pair.b.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "tmpfs", "/var/backups"])

    with running_pair(REPO / "build" / "test" / request.module.__name__, arbiter=True, before_start=settle) as made:
        yield made


class Scene:
    """One situation of a runbook, with a VM in the place of db1."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._vm: domains.Vm | None = None
        self._cable = LinkFault(pair.a)
        self._etcd_died = False
        self._mounted: list[tuple[Host, str]] = []

    @property
    def vm(self) -> domains.Vm:
        """That VM; made when it is first asked for."""
        if self._vm is None:
            self._vm = self._pair.bare()
        return self._vm

    def happens(self, what: str) -> None:
        """Bring it about. KeyError for what nobody has taught this test."""
        told: dict[str, Callable[[], object]] = {
            "db1 runs": lambda: self.vm,
            "db1 is protected": lambda: self._pair.protect(self.vm.name),
            "db1 holds when its backup is lost": self._holds,
            "db1 has room for devices": self._room_for_devices,
            "the disk of db1 has no room on a": self._small_disk,
            "db1 writes": lambda: order(self._pair, self.vm.name, guest.WRITE),
            "db1 writes more than fits on b": self._writes_much,
            "b has little room": lambda: self._mount(self._pair.b, "4m"),
            "there is room on a": lambda: self._grow(self._pair.a),
            "there is room on b": lambda: self._grow(self._pair.b),
            "host a dies": self._pair.a.kill,
            "host b dies": self._pair.b.kill,
            "host a boots": lambda: self._pair.product.reboot("a"),
            "host b boots": lambda: self._pair.product.reboot("b"),
            "the agent of b dies": self._kill_agent,
            "the cable of a is cut": self._cable.cut,
            "the cable of a is whole again": self._cable.heal,
            "b takes over": lambda: self._pair.await_event(self.vm.name, "promoted", "b"),
            "etcd hangs": lambda: self._etcd("pause"),
            "etcd answers again": lambda: self._etcd("resume"),
            "etcd dies": lambda: self._etcd("kill"),
        }
        told[what]()

    def types(self, command: Command) -> None:
        """Type it on its host; AssertionError unless it prints what it should."""
        named = re.compile(r"\bdb1\b")
        text = named.sub(self.vm.name, command.text)
        printed = [named.sub(self.vm.name, line) for line in command.printed]
        if text.startswith("systemctl "):
            return self._systemctl(command.host, text)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            host = self._pair.lab.host(command.host)
            done = host.run(["sh", "-c", text], check=False, timeout_s=90)
            unsafe = text.startswith("remusdb status") and "".join(printed).startswith("NOT PROTECTED")
            fits = done.returncode == (3 if unsafe else 0) and says(printed, done.stdout)
            if fits or not text.startswith(SHOWS) or time.monotonic() > deadline:
                break
            time.sleep(0.3)
        said = (
            f"line {command.line}, on {command.host}: {text}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        assert fits, said + "should be:\n" + "\n".join(printed)

    def end(self) -> None:
        """What was done to hosts and links is undone; the VM is the `no_vm_stays` fixture's."""
        self._cable.heal()
        for name in ("a", "b"):
            if not self._pair.lab.host(name).pids() or not self._pair.product.running("agent", name):
                self._revive(name)
        self._etcd("start" if self._etcd_died else "resume")
        for host, folder in self._mounted:
            host.run(["umount", "-l", folder])

    def _revive(self, name: str) -> None:
        host, product = self._pair.lab.host(name), self._pair.product
        if product.running("host", name):
            product.start_agent(name)
        else:
            host.kill()
            product.reboot(name)

    def _holds(self) -> None:
        self._vm = self._defined(next(name for name in HOLDS if not self._pair.events(name)))
        self._pair.start(self.vm)

    def _defined(self, name: str) -> domains.Vm:
        self._pair.a.run(["virsh", "undefine", name], check=False)
        return domains.define_bare(self._pair.a, Mode.DIRTIER, name=name)

    def _room_for_devices(self) -> None:
        self._vm = self._defined("roomy")
        xml = self._pair.a.run(["virsh", "dumpxml", "--inactive", "roomy"]).stdout
        room = "<controller type='pci' model='pcie-root-port'/>" * PORTS
        self._pair.a.run(["virsh", "define", "/dev/stdin"], stdin=xml.replace("<interface", room + "<interface", 1))
        self._pair.start(self.vm)

    def _small_disk(self) -> None:
        folder = FOLDERS["a"]
        self._mount(self._pair.a, "1m")
        self._vm = domains.define_bare(self._pair.a, Mode.DIRTIER, name="small", folder=folder, ide=True)
        self._pair.a.run(["truncate", "-s", "8M", self.vm.disk])  # on the file system that only this host sees
        self._pair.a.run(["dd", "if=/dev/zero", f"of={folder}/filler", "bs=1k", "count=900"])
        self._pair.a.run(["virsh", "start", self.vm.name])

    def _mount(self, host: Host, size: str) -> None:
        folder = FOLDERS[host.name]
        host.run(["mkdir", "-p", folder])
        host.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder])
        self._mounted.append((host, folder))

    def _grow(self, host: Host) -> None:
        host.run(["mount", "-o", "remount,size=64m", FOLDERS[host.name]])

    def _writes_much(self) -> None:
        write = 'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P 7 0 6M"'
        self._pair.a.run(["virsh", "qemu-monitor-command", self.vm.name, "--hmp", write])

    def _kill_agent(self) -> None:
        agent = self._pair.product.daemons["agent", "b"]
        agent.kill()
        agent.wait(10)

    def _etcd(self, what: str) -> None:
        assert self._pair.etcd is not None
        getattr(self._pair.etcd, what)()
        self._etcd_died = what == "kill" or (self._etcd_died and what != "start")

    def _systemctl(self, host: str, text: str) -> None:
        """systemd's part is the lab's: no systemd runs on its hosts."""
        _, verb, *units = shlex.split(text)
        if verb == "reboot":
            self._pair.product.cli(host, "evacuate")  # remusdb-evacuate.service
            self._pair.lab.host(host).kill()
            self._pair.product.reboot(host)
        elif units == ["etcd"]:
            self._etcd("start")
        else:
            for unit in units:
                self._service(host, verb, unit)

    def _service(self, host: str, verb: str, unit: str) -> None:
        daemon, product = unit.removeprefix("remusdb-"), self._pair.product
        if verb == "restart":
            process = product.daemons[daemon, host]
            process.terminate()
            process.wait(30)
        product.start_agent(host) if daemon == "agent" else product.start_host(host)


@pytest.fixture
def scene(pair: Pair) -> Iterator[Scene]:
    made = Scene(pair)
    yield made
    made.end()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("situation", BLOCKS)
def test_runbook(scene: Scene, situation: Situation) -> None:
    for what in situation.begins:
        scene.happens(what)
    for step in situation.steps:
        if isinstance(step, Happens):
            scene.happens(step.what)
        else:
            scene.types(step)
