# SPDX-License-Identifier: Apache-2.0
"""`remusdb check VM --to b` on real hosts: what b lacks is named, its hints help if followed, and `protect` agrees."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.pair import Pair, running_pair, space_alarm
from tools.lab import domains
from tools.lab.guest import Mode
from tools.lab.host import Host
from tools.lab.links import ip

REPO = Path(__file__).resolve().parents[2]
NAME = "picky"
PLACE = "/var/lib/libvirt/only-here"  # a folder that each host has for itself


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two hosts with an arbiter."""

    def settle(pair: Pair) -> None:
        config = pair.b.path("/etc/remusdb/agent.toml")
        config.write_text(config.read_text().replace("readable_dirs = [", f'readable_dirs = ["{PLACE}", ', 1))

    folder = REPO / "build" / "test" / request.module.__name__
    with running_pair(folder, arbiter=True, before_start=settle) as made:
        yield made


def jumbo_switch(pair: Pair) -> None:
    """The switch between the hosts carries what they are set to, as one does whose hosts have an MTU of 9000."""
    for link in (pair.a.port, pair.b.port, "lan0"):
        ip(f"link set {link} mtu 9000", netns=pair.lab.lan)


def checks_of(pair: Pair, vm: str) -> dict[str, dict[str, Any]]:
    told = json.loads(pair.product.cli("a", "check", vm, "--to", "b", "--json", check=False).stdout)
    return {check["name"]: check for check in told["checks"]}


def failed(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if not check["ok"] and check["level"] == "required"}


def script(host: Host, text: str) -> None:
    host.run(["sh", "-ec", text])


def picky_vm(host: Host) -> domains.Vm:
    """A VM that only this host can run as it is."""
    vm = domains.define_bare(host, Mode.DIRTIER, name=NAME)
    script(
        host,
        f"mkdir {PLACE}; echo '{{}}' > {PLACE}/ign.json; ln -s /usr/bin/qemu-system-x86_64 {PLACE}/qemu\n"
        "ip link set eth0 mtu 9000; ip link set br0 mtu 9000; ip link add br-db type bridge; ip link set br-db up",
    )
    xml = host.run(["virsh", "dumpxml", "--inactive", NAME]).stdout
    second = "<interface type='bridge'><source bridge='br-db'/><model type='virtio'/></interface>"
    display = "<graphics type='vnc' port='-1' autoport='yes' listen='10.77.0.1'/>"
    for old, new in (
        ("/usr/bin/qemu-system-x86_64", f"{PLACE}/qemu"),
        ("<os>", "<cputune><emulatorpin cpuset='0,5000'/></cputune><os>"),
        ("<os>", f"<sysinfo type='fwcfg'><entry name='opt/example/ign' file='{PLACE}/ign.json'/></sysinfo><os>"),
        ("<serial ", f"{second}{display}<serial "),
    ):
        assert old in xml
        xml = xml.replace(old, new, 1)
    host.run(["virsh", "define", "/dev/stdin"], stdin=xml)
    host.run(["virsh", "start", NAME])
    return vm


def spoil(host: Host, uuid: str) -> None:
    """What stands in the way on the backup: the VM as it was once, which starts with it, and a filter that drops."""
    domains.define_bare(host, Mode.DIRTIER, name=NAME)
    xml = host.run(["virsh", "dumpxml", NAME]).stdout
    host.run(["virsh", "undefine", NAME])
    host.run(["virsh", "define", "/dev/stdin"], stdin=re.sub("<uuid>.*</uuid>", f"<uuid>{uuid}</uuid>", xml))
    script(
        host,
        f"virsh autostart {NAME}; nft add table inet f\n"
        "nft 'add chain inet f fw { type filter hook forward priority 0; policy drop; }'",
    )


def test_all_that_the_backup_lacks_is_named_and_the_hints_help(pair: Pair) -> None:
    jumbo_switch(pair)
    picky_vm(pair.a)
    spoil(pair.b, pair.a.run(["virsh", "domuuid", NAME]).stdout.strip())
    checks = checks_of(pair, NAME)
    wanted = {
        "peer domains": f"b has {NAME} defined with autostart",
        "peer files": f"fwcfg file {PLACE}/ign.json is not there on b",
        "peer bridges": "bridge br-db is not on b",
        "peer MTU": "br0 on b carries 1500 bytes",
        "peer displays": "nothing can listen on 10.77.0.1:0 on b: Cannot assign requested address",
        "peer CPUs": "emulatorpin names CPU 5000, b has",
        "peer packet filter": "inet f fw on b drops what bridges forward",
    }
    assert failed(checks) == set(wanted)
    for name, words in wanted.items():
        assert words in checks[name]["detail"], checks[name]
    refused = pair.protect(NAME, check=False)
    assert refused.returncode == 8, refused.stderr
    assert all(words in refused.stderr for words in wanted.values()), refused.stderr

    hints = {name: str(checks[name]["hint"]) for name in failed(checks)}
    for name in ("peer MTU", "peer packet filter", "peer domains"):
        for step in hints[name].split("; "):
            script(pair.b, re.sub(r" \(and into .*\)", "", step.removeprefix("on b: ")))
    script(pair.b, hints["peer displays"].rpartition("on b: ")[2])
    script(pair.a, hints["peer CPUs"])
    assert f"rsync -aR {PLACE}/ign.json b:/" in hints["peer files"]
    pair.b.path(PLACE).mkdir(exist_ok=True)  # ssh from host to host is not part of the lab
    script(pair.b, f"cp -a {shlex.quote(str(pair.a.path(f'{PLACE}/ign.json')))} {PLACE}/")
    assert "[network.bridges] br-db = " in hints["peer bridges"]
    script(pair.b, "ip link add br-db type bridge; ip link set br-db up")
    checks = checks_of(pair, NAME)
    assert failed(checks) == set(), checks
    pair.protect(NAME)
    # With the standby there. A check that falls into a cut finds the VM paused.
    assert failed(checks_of(pair, NAME)) <= {"running"}


def test_a_full_etcd_is_told_from_both_hosts(pair: Pair) -> None:
    """It answers every read, and accepts no change: no session could begin, no takeover be decided."""
    vm = pair.bare()
    assert failed(checks_of(pair, vm.name)) == set()
    assert pair.etcd is not None
    space_alarm(pair, pair.etcd, "ACTIVATE")
    try:
        checks = checks_of(pair, vm.name)
        assert failed(checks) == {"arbiter", "peer arbiter"}
        for name in ("arbiter", "peer arbiter"):
            assert "used up its space" in checks[name]["detail"] and "alarm disarm" in checks[name]["hint"]
        assert pair.protect(vm.name, check=False).returncode == 8
    finally:
        space_alarm(pair, pair.etcd, "DEACTIVATE")
