# SPDX-License-Identifier: Apache-2.0
"""One machine: a QEMU process in the site's namespace, its disk, its console's log, and commands in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from remusdb.deadline import Deadline
from tools.lab.image import Image
from tools.lab.paths import NETNS
from tools.machines.guest_agent import AgentError, Done, GuestAgent

MEMORY_MIB = 1536
BOOT_S = 1200.0  # Debian with systemd and libvirt, emulated, on a machine with a load of 20
COMMAND_S = 300.0
# net.ifnames: names as in docs and recipes. show_status: the console tells how far a boot came. modules_load (below):
# under TCG udev comes to it minutes after libvirt has asked whether there is a KVM.
_APPEND = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off random.trust_cpu=on 8250.nr_uarts=1 "
    "systemd.show_status=true"
)


class Machine:
    """A host of VMs. `logs` outlives the run: `NAME-console.log` there holds all its boots."""

    def __init__(self, name: str, number: int, image: Image, netns: str, folder: Path, logs: Path, accel: str) -> None:
        """`folder` is for what goes with the run; `accel` is QEMU's word: `kvm` or `tcg`."""
        self.name = name
        self.address = f"10.77.1.{number}"
        self.tap = f"t-{name}"
        self._image = image
        self._netns = netns
        self._folder = folder
        self._logs = logs
        self.accel = accel
        self._mac = f"52:54:00:77:01:{number:02x}"
        self._disk = folder / f"{name}.qcow2"
        self._agent = GuestAgent(folder / f"{name}.ga")
        self._uuid = str(uuid.uuid4())  # libvirt takes this for the host's; two hosts must not have the same
        self._qemu: subprocess.Popen[bytes] | None = None

    def start(self, payload: Path | None = None) -> None:
        """Power on. `payload` is a file that the machine has as its second disk, read-only. Returns at once."""
        if not self._disk.exists():
            make = [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "raw",
                "-b",
                str(self._image.disk),
                str(self._disk),
            ]
            subprocess.run(make, check=True, timeout=60)
        emulated = self.accel == "tcg"
        accel = "tcg,thread=multi,tb-size=256" if emulated else self.accel
        cpu = "max,la57=off" if emulated else "host"  # TCG's `max` has SVM: the machine has a KVM of its own
        append = _APPEND + (" modules_load=kvm_amd" if emulated else "")
        command = [
            *("nsenter", f"--net={NETNS / self._netns}", "--"),
            *("qemu-system-x86_64", "-name", self.name, "-uuid", self._uuid, "-M", "q35", "-accel", accel, "-cpu", cpu),
            *("-smp", "2", "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd), "-append", append),
            *("-chardev", f"file,id=console,path={self._logs / f'{self.name}-console.log'},append=on"),
            *("-serial", "chardev:console", "-device", "virtio-rng-pci"),
            # `unsafe`: as in a power failure, what is lost is what the machine's own kernel held; this one goes on.
            *("-drive", f"file={self._disk},format=qcow2,if=none,id=root,cache=unsafe,discard=unmap"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-netdev", f"tap,id=lan,ifname={self.tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=lan,mac={self._mac}"),
            *("-chardev", f"socket,id=ga,path={self._folder / f'{self.name}.ga'},server=on,wait=off"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"),
        ]
        if payload:
            command += ["-drive", f"file={payload},format=raw,if=virtio,readonly=on"]
        with (self._logs / f"{self.name}-qemu.log").open("ab") as log:
            self._qemu = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def await_boot(self, timeout_s: float = BOOT_S) -> None:
        """Returns when systemd has started all that it starts. Raises AgentError, and names what failed."""
        self.eventually(self._agent.answers, timeout_s, "does not boot (its console's log tells how far it came)")
        # `--wait` ends when the boot does, in failure too; what failed is the story's to judge.
        self.run("systemctl is-system-running --wait || true", timeout_s)

    def run(self, script: str, timeout_s: float = COMMAND_S, stdin: bytes = b"") -> str:
        """Runs a shell script as root, and gives what it printed. Raises AgentError with its words if it failed."""
        done = self.attempt(script, timeout_s, stdin)
        if done.code:
            raise AgentError(f"{self.name}: exit {done.code}: {script}\n{done.out}{done.err}")
        return done.out

    def attempt(self, script: str, timeout_s: float = COMMAND_S, stdin: bytes = b"") -> Done:
        """As `run`, whatever the exit status."""
        return self._agent.run(script, timeout_s, stdin)

    def order(self, script: str) -> None:
        """Runs what ends the machine's boot: it may be gone before it answers."""
        with contextlib.suppress(AgentError):
            self._agent.run(script, COMMAND_S, b"")

    def write(self, path: str, content: str | bytes, mode: str = "644") -> None:
        """Writes a file there, with its folders."""
        data = content.encode() if isinstance(content, str) else content
        self.run(f"install -D -m {mode} /dev/stdin '{path}'", stdin=data)

    def eventually(self, holds: Callable[[], bool], timeout_s: float, complaint: str) -> None:
        """Waits until something holds; a machine that does not answer meanwhile is one that boots.

        Raises AgentError after `timeout_s`, or when this machine's QEMU ended.
        """
        deadline = Deadline.after(timeout_s)
        while True:
            with contextlib.suppress(AgentError):
                if holds():
                    return
            if self._qemu is not None and self._qemu.poll() is not None:
                raise AgentError(f"{self.name}: its QEMU ended with {self._qemu.returncode}")
            if deadline.over:
                raise AgentError(f"{self.name}: after {timeout_s:.0f} s: {complaint}")
            time.sleep(1.0)

    def boot_id(self) -> str:
        """Which boot this is."""
        return self.run("cat /proc/sys/kernel/random/boot_id").strip()

    def power_off(self, timeout_s: float = COMMAND_S) -> None:
        """Shuts it down in good order, and returns when it is off. Raises subprocess.TimeoutExpired."""
        assert self._qemu is not None, "start() first"
        self.order("systemctl --no-block poweroff")
        self._qemu.wait(timeout_s)
        self._qemu = None

    def commit(self) -> None:
        """Writes what this machine's disk has into the image that it came from. It is off."""
        assert self._qemu is None, "power_off() first"
        subprocess.run(["qemu-img", "commit", "-q", str(self._disk)], check=True, timeout=600)

    def kill(self) -> None:
        """Power failure: SIGKILL for its QEMU, and for all that runs in it."""
        assert self._qemu is not None, "start() first"
        os.kill(self._qemu.pid, signal.SIGKILL)
        self._qemu.wait()
        self._qemu = None
