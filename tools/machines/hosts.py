# SPDX-License-Identifier: Apache-2.0
"""From two bare Debian machines to two hosts that run remusdb: network, installation, and what is then looked at."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.lab.paths import NETNS
from tools.machines.machine import Machine
from tools.machines.site import Site

INSTALL_S = 600.0
UNITS = ("remusdb-agent.service", "remusdb-host.service", "remusdb-evacuate.service")
FILES = "/root/remusdb"  # where the payload is unpacked


def connect(machine: Machine, machines: dict[str, Machine]) -> None:
    """Brings the payload there, then: its name, its bridge with its address, the other's name, for all its boots."""
    machine.run(f"mkdir -p {FILES} && tar -x -C {FILES} -f /dev/vdb")
    machine.run(f"hostnamectl hostname {machine.name}")
    names = "".join(f"{other.address} {other.name}\n" for other in machines.values())
    machine.write("/etc/hosts", "127.0.0.1 localhost\n" + names)
    machine.run(f"sh {FILES}/network.sh eth0 {machine.address}/24")


def set_up(site: Site, folder: Path, key: Path) -> str:
    """`remusdb setup` of both over SSH, from a third machine, as README says; what it printed.

    `folder` has the .deb, and is where the certificates are made. Raises RuntimeError when it fails.
    """
    machines = site.machines.values()
    keys = {each.address: each.run("cat /etc/ssh/ssh_host_ed25519_key.pub") for each in machines}
    known = folder / "known_hosts"
    known.write_text("".join(f"{address} {' '.join(text.split()[:2])}\n" for address, text in keys.items()))
    (package,) = folder.glob("remusdb_*.deb")
    options = {"--deb": package, "--certs": folder / "certs", "--identity": key, "--known-hosts": known}
    command = [str(Path(sys.executable).with_name("remusdb")), "setup", "--yes"]
    command += [f"{each.name}={each.address}" for each in machines]
    command += [str(word) for pair in options.items() for word in pair]
    here = ["nsenter", f"--net={NETNS / site.lan}", "--", *command]
    done = subprocess.run(here, capture_output=True, text=True, timeout=2 * INSTALL_S, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"remusdb setup: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def slow_down(machine: Machine) -> None:
    """Settings for an emulated host with an emulated VM, behind what `remusdb setup` wrote."""
    for name in ("host", "agent"):
        machine.run(f"cat {FILES}/settings/{name}.toml >> /etc/remusdb/{name}.toml")
    machine.run("systemctl restart remusdb-agent remusdb-host", INSTALL_S)
    # libvirt, started anew, asks each QEMU what it can do: 44 s here, and `check` waits for 5 (docs/facts.md).
    machine.run("virsh capabilities > /dev/null && virsh domcapabilities > /dev/null", INSTALL_S)


def complaints(machine: Machine) -> list[str]:
    """What is not as it should be on a host: units, AppArmor, the kernel's plug."""
    found = []
    for unit in (*UNITS, "libvirt-guests.service", "apparmor.service"):
        state = machine.attempt(f"systemctl is-active {unit}").out.strip()
        if state != "active":
            found.append(f"{machine.name}: {unit} is {state}")
    failed = machine.run("systemctl list-units --failed --plain --no-legend").strip()
    found += [f"{machine.name}: a unit failed: {line}" for line in failed.splitlines()]
    if machine.run("cat /sys/module/apparmor/parameters/enabled").strip() != "Y":
        found.append(f"{machine.name}: AppArmor is off")
    if machine.attempt("modprobe -n sch_plug").code:
        found.append(f"{machine.name}: its kernel has no sch_plug")
    return found


def denials(machine: Machine) -> list[str]:
    """What AppArmor did not let somebody do, of all boots that the journal knows."""
    text = machine.run("journalctl -q --no-pager -o cat -k --grep 'apparmor=\"DENIED\"' || true")
    return sorted({line for line in text.splitlines() if "DENIED" in line})


def confined(machine: Machine, vm: str) -> str:
    """The AppArmor profile that a VM's QEMU runs under, with its mode."""
    pid = f'"$(cat /run/libvirt/qemu/{shlex.quote(vm)}.pid)"'
    return machine.run(f"cat /proc/{pid}/attr/apparmor/current || cat /proc/{pid}/attr/current").strip()


def status(machine: Machine, vm: str, *, agent: bool = False) -> dict[str, Any]:
    """What `remusdb status` says there of a VM; empty while it says nothing."""
    done = machine.attempt(f"remusdb status {'--agent ' if agent else ''}{vm} --json")
    try:
        vms = json.loads(done.out)["vms"]
    except (ValueError, KeyError):
        return {}
    return dict(vms[0]) if vms else {}


def runs(machine: Machine, vm: str) -> bool:
    """Whether libvirt there says that the VM runs."""
    return machine.attempt(f"virsh domstate {vm}").out.strip() == "running"
