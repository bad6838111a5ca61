# SPDX-License-Identifier: Apache-2.0
"""`remusdb diagnose VM` on both hosts of a protected VM: all that a bug report needs is in it, and no secret is."""

from __future__ import annotations

import json
import tarfile
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.vm.pair import Pair
from tools.lab import domains
from tools.lab.guest import Mode
from tools.lab.host import Host

NAME = "diagnosed"
SECRET = "HUNTERtwo"  # a password for VNC has eight letters at the most: the first of these
OUT = "/var/lib/libvirt/bundles"  # a folder that each host has for itself


def unpacked(host: Host) -> tuple[dict[str, str], dict[str, Any]]:
    """The bundle that this host makes: its entries, and its own table of them."""
    host.path(OUT).mkdir(parents=True, exist_ok=True)
    told = json.loads(host.run(["remusdb", "diagnose", NAME, "--to", OUT, "--json"], timeout_s=120).stdout)
    with tarfile.open(host.path(told["path"])) as tar:
        found = {}
        for entry in tar:
            file = tar.extractfile(entry)
            assert file is not None
            found[entry.name.partition("/")[2]] = file.read().decode()
    assert set(found) == {*told["entries"], "contents.json"}
    return found, told


def plant(host: Host) -> list[str]:
    """Secrets where an operator or a program may leave them; what may not be in a bundle of this host."""
    for config in ("host.toml", "agent.toml"):
        file = host.path(f"/etc/remusdb/{config}")
        file.write_text(f"# the root password is {SECRET}\n{file.read_text()}")
    for log in (f"qemu/{NAME}.log", "libvirtd.log"):
        with host.path(f"/var/log/libvirt/{log}").open("a") as file_:
            file_.write(f"\nsaid password={SECRET}\nAuthorization: Bearer {SECRET}\nat https://root:{SECRET}@h/x\n")
    key = host.path("/etc/remusdb/tls/key.pem").read_text()
    return [SECRET, SECRET[:8], *(line for line in key.splitlines() if len(line) > 30 and "KEY" not in line)]


@pytest.mark.timeout(400)
def test_a_bundle_of_each_host_has_what_is_needed_and_no_secret(pair: Pair) -> None:
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name=NAME)

    def with_secrets(root: ET.Element) -> None:
        root.insert(1, ET.Element("description"))
        root[1].text = f"the database's root has {SECRET}"
        devices = root.find("devices")
        assert devices is not None
        ET.SubElement(devices, "graphics", type="vnc", port="-1", autoport="yes", passwd=SECRET[:8])

    domains.change(pair.a, NAME, with_secrets)
    pair.start(vm)
    pair.protect(NAME)
    secrets = {host.name: plant(host) for host in (pair.a, pair.b)}
    there = pair.a.run(["virsh", "dumpxml", "--security-info", NAME]).stdout
    assert SECRET[:8] in there and SECRET in there, "what is planted is there to be found"
    needed = {
        "told/host.json", "told/agent.json", "told/check.json", f"logs/qemu/{NAME}.log", "logs/libvirt/libvirtd.log",
        "etc/host.toml", "etc/agent.toml", "etc/files", "vm/inactive.xml", "vm/running.xml", "versions/remusdb",
        "versions/qemu", "versions/libvirt", "versions/nbdkit", "host/vms",
    }  # fmt: skip
    told = {}
    for host in (pair.a, pair.b):
        found, about = unpacked(host)
        leaks = [(name, secret) for name, text in found.items() for secret in secrets[host.name] if secret in text]
        assert leaks == [] and not any(secret in json.dumps(about) for secret in secrets[host.name])
        assert "PRIVATE KEY" not in "".join(found.values())
        assert needed - set(found) == set(), about["left_out"]
        assert any(name.startswith("vms/") for name in found) and any(name.startswith("history/") for name in found)
        told[host.name] = {name: json.loads(found[f"told/{name}.json"]) for name in ("host", "agent", "check")}
    assert [one["state"] for one in told["a"]["host"]["vms"]] == ["protected"]
    assert [one["state"] for one in told["b"]["agent"]["vms"]] == ["ready"]
    assert told["a"]["check"]["checks"], "what preflight says"
