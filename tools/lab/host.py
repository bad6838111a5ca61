# SPDX-License-Identifier: Apache-2.0
"""A host that runs VMs: a node with a bridge, its own system folders and its own libvirtd."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from tools.lab import capabilities, procs
from tools.lab.links import ip
from tools.lab.node import Node
from tools.lab.paths import REPO

# What a host has for itself. Inside the host's mount namespace these are its own folders; all else is shared.
PRIVATE = (
    "/run",
    "/var/lib/libvirt",
    "/etc/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/var/lib/remusdb",
    "/etc/remusdb",
)

_CAPABILITIES = "/var/cache/libvirt/qemu/capabilities"

_QEMU_CONF = """\
# QEMU runs as root without confinement: the lab has no AppArmor profile, no cgroups of its own and no udev.
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
remember_owner = 0
"""

_LIBVIRTD_CONF = """\
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
host_uuid = "{uuid}"
"""


@dataclass(frozen=True)
class Killed:
    """When a host died: the clocks just before its link went down, and how long the stroke took."""

    monotonic_ns: int
    time_ns: int
    took_ms: float
    pids: tuple[int, ...]


class Host(Node):
    """Owns a folder, a mount namespace (held open by one sleeping process) and what runs in both.

    `folder` holds the host's PRIVATE folders: the host's `/run` is `path("/run")` seen from outside.
    """

    device = "br0"

    def __init__(self, lab_id: str, name: str, number: int, folder: Path, state: Path) -> None:
        super().__init__(lab_id, name, number)
        self.folder = folder
        # A short alias of the host's /run: a unix socket's path may have 107 bytes, whatever the repository's depth.
        self.run_alias = state / name
        self.reaps_after_s = 0.0  # this host's init, a process that ended: at once, as systemd does
        self._holder: subprocess.Popen[str] | None = None

    def _wire(self) -> str:
        # The bridge's address is fixed: by default it follows its ports, and changes when a VM's tap joins.
        return (
            f"link add br0 address {self.mac} type bridge stp_state 0 forward_delay 0\n"
            "link set eth0 master br0 up\n"
            "link set br0 up\n"
        )

    def boot(self) -> None:
        """The next boot after `kill()`: what a power failure forgets is gone, the cable is in, libvirt answers.

        Links and /run are made again. libvirt knows the VMs that are defined, all shut off.
        """
        links = json.loads(self.run(["ip", "-j", "link"]).stdout)
        own = {link["ifname"] for link in links} - {"lo", "eth0"}
        for name in own:  # of a veth pair the second end went with the first
            self.run(["ip", "link", "del", name], check=False)
        for entry in self.path("/run").iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        ip(self._wire() + self._addresses(), netns=self.netns)
        self.restore_link()
        self.start_libvirt()

    def create(self) -> None:
        """Makes network, folders and mount namespace. Raises RuntimeError if the mounts fail."""
        super().create()
        for inside in PRIVATE:
            self.path(inside).mkdir(parents=True, exist_ok=True)
            # A bind mount needs its mount point; these two stay behind, empty, on a machine without remusdb.
            Path(inside).mkdir(parents=True, exist_ok=True)
        self.run_alias.symlink_to(self.path("/run"))
        self._configure_libvirt()
        binds = "".join(f"mount --bind '{self.path(inside)}' {inside}\n" for inside in PRIVATE)
        # sysfs shows the links of the namespace that mounted it; libvirt looks there.
        mounts = f"mount -t sysfs sysfs /sys\nmount -t tmpfs tmpfs /dev/shm\n{binds}"
        script = f"set -e\n{mounts}echo ready\nexec sleep infinity\n"
        unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        self._holder = subprocess.Popen(
            [*super().enter(Path("/")), *unshare],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.name}: cannot build the mount namespace (the reason is above)")

    def path(self, inside: str) -> Path:
        """The outside path of a path in one of the host's PRIVATE folders, such as /run/libvirt/x.sock."""
        for prefix in PRIVATE:
            if inside == prefix or inside.startswith(prefix + "/"):
                return self.folder / prefix.strip("/").replace("/", "-") / inside[len(prefix) :].lstrip("/")
        raise ValueError(f"{inside} is not private to a host")

    def _configure_libvirt(self) -> None:
        """Debian's own *.conf, without the machine's VMs and networks, which would autostart here."""
        etc = self.path("/etc/libvirt")
        for conf in Path("/etc/libvirt").glob("*.conf"):
            shutil.copy(conf, etc)
        (etc / "qemu.conf").write_text(_QEMU_CONF)
        (etc / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(uuid=uuid.uuid4()))

    def enter(self, cwd: Path = REPO) -> list[str]:
        """The command prefix that runs a program on this host."""
        assert self._holder is not None, "create() first"
        pid = self._holder.pid
        return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--net=/proc/{pid}/ns/net", "--", "env", f"--chdir={cwd}"]

    def start_libvirt(self, timeout_s: float = 90.0) -> None:
        """Starts virtlogd and libvirtd as daemons, and returns when libvirtd answers."""
        capabilities.lend(self.path(_CAPABILITIES))
        self.run(["virtlogd", "-d"], timeout_s=timeout_s)
        self.start_libvirtd(timeout_s)
        self.run(["virsh", "-c", "qemu:///system", "version"], timeout_s=timeout_s)
        capabilities.keep(self.path(_CAPABILITIES))

    def start_libvirtd(self, timeout_s: float = 90.0) -> None:
        """Starts libvirtd alone. This host's init reaps what it leaves behind, such as a QEMU that ended."""
        reaper = [sys.executable, "-m", "tools.lab.reaper", "--after", str(self.reaps_after_s)]
        self.run(reaper, timeout_s=timeout_s, stdin="libvirtd -d")

    @property
    def libvirt_uri(self) -> str:
        """URI of this host's libvirtd for a process outside of the host's namespaces."""
        return f"qemu+unix:///system?socket={self.run_alias}/libvirt/libvirt-sock"

    def qemu_pid(self, vm: str) -> int:
        """The QEMU process of a running domain. Raises FileNotFoundError when it does not run."""
        status = self.path(f"/run/libvirt/qemu/{vm}.xml")  # the pid file's name is escaped as XML is
        found = re.search(r"<domstatus [^>]*\bpid='([1-9]\d*)'", status.read_text())
        if found is None:  # libvirt is about to start it
            raise FileNotFoundError(f"{status} tells no pid")
        return int(found[1])

    def pids(self) -> list[int]:
        """All processes of this host, but for the one that only holds its namespaces open."""
        holder = self._holder.pid if self._holder else None
        return [pid for pid in super().pids() if pid != holder]

    def kill(self) -> Killed:
        """Power failure: the link goes down, then every process gets SIGKILL, all within a few ms.

        The host stays usable afterwards: `boot()` is its next boot.
        """
        pids = self.pids()  # the slow part, so before the stroke
        at, wall = time.monotonic_ns(), time.time_ns()
        self.cut_link()
        procs.kill_all(pids)
        took_ms = (time.monotonic_ns() - at) / 1e6
        assert self._holder is not None, "create() first"
        procs.kill_members(self.netns_id, spare=[self._holder.pid])
        return Killed(at, wall, took_ms, tuple(pids))

    def kill_qemu(self, vm: str) -> Killed:
        """SIGKILL for one domain's QEMU alone."""
        pid = self.qemu_pid(vm)
        at, wall = time.monotonic_ns(), time.time_ns()
        os.kill(pid, signal.SIGKILL)
        return Killed(at, wall, (time.monotonic_ns() - at) / 1e6, (pid,))

    def close(self) -> None:
        """Its processes die, and the namespaces with them."""
        super().close()
        if self._holder:
            self._holder.kill()
            self._holder.wait()
            if self._holder.stdout:
                self._holder.stdout.close()
            self._holder = None
