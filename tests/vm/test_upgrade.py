# SPDX-License-Identifier: Apache-2.0
"""An upgrade of the package on both hosts of a protected PostgreSQL VM under load: nobody notices.

What dpkg would do is done by the package's own script, told that an older version was there. Its `systemctl` notes what
it is asked for, and that is then done: the lab has no systemd.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.pair import eventually
from tools.faults import find
from tools.lab.host import Host
from tools.lab.paths import BUILD, REPO
from tools.lab.product import HOSTS
from tools.rig import VM, Rig, running_rig

log = logging.getLogger(__name__)

LOGS = BUILD / "test" / "upgrade"
POSTINST = REPO / "packaging/deb/postinst"
BEFORE = "0.0.9"
WORK_S = 4.0
# What the package's script calls, for this host alone: every unit is active, and every group is there already.
STAND_INS = {
    "systemctl": """#!/bin/sh
echo "$*" >> /run/systemctl.asked
""",
    "getent": """#!/bin/sh
exit 0
""",
}


@contextlib.contextmanager
def systemctl(host: Host) -> Iterator[Path]:
    """Stand-ins for what would touch this machine; the file has what `systemctl` was asked for."""
    host.path("/run/systemd/system").mkdir(parents=True)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, host.path("/run/systemd"))
        for name, script in STAND_INS.items():
            fake, real = host.path("/run") / name, shutil.which(name)
            assert real is not None, "tools/setup.sh installs systemd"
            fake.write_text(script)
            fake.chmod(0o755)
            host.run(["mount", "--bind", f"/run/{name}", real])
            undo.callback(host.run, ["umount", real])
        yield host.path("/run") / "systemctl.asked"


def upgrade(rig: Rig, name: str) -> list[str]:
    """Run the package's script on that host and restart what it asks for; what it asked systemd for."""
    host = rig.host(name)
    with systemctl(host) as asked:
        done = host.run([str(POSTINST), "configure", BEFORE])
        lines = asked.read_text().splitlines()
    for line in lines:
        verb, _, unit = line.partition(" ")
        daemon = unit.removeprefix("remusdb-").removesuffix(".service")
        if verb == "try-restart" and (daemon, name) in rig.product.daemons:  # nothing happens to one that does not run
            process = rig.product.daemons[daemon, name]
            process.terminate()  # as systemd does, with KillMode=process: to the daemon alone
            process.wait(20)
            (rig.product.start_host if daemon == "host" else rig.product.start_agent)(name)
    return [*lines, *done.stderr.splitlines()]


@pytest.mark.timeout(600)
def test_a_protected_vm_stays_protected_and_no_client_notices() -> None:
    with running_rig(LOGS) as rig:
        assert rig.make_protected() == "a"
        workers, standby = find(rig.host("a"), "remusdb.worker"), rig.host("b").qemu_pid(VM)
        before = {name: len(events(rig, name)) for name in HOSTS}
        time.sleep(WORK_S)
        began = time.monotonic_ns()
        usual_ms = rig.load.outage_ms(began - int(WORK_S * 1e9))
        told = upgrade(rig, "a")
        assert "try-restart remusdb-host.service" in told and "try-restart remusdb-agent.service" in told
        told = upgrade(rig, "b")
        assert "try-restart remusdb-host.service" in told and any("keeps replicas" in line for line in told)
        assert "try-restart remusdb-agent.service" not in told
        committed = rig.product.standby(VM)["committed"]
        eventually(lambda: rig.product.standby(VM)["committed"] > committed + 20, 20, "epochs do not go on")
        after = time.monotonic_ns()
        eventually(lambda: rig.load.all_work(after), 20, "not every client works")
        assert rig.protected("a")
        assert find(rig.host("a"), "remusdb.worker") == workers and rig.host("b").qemu_pid(VM) == standby
        assert {name: events(rig, name)[before[name] :] for name in HOSTS} == {"a": ["adopted"], "b": []}
        log.info("longest wait of a client: %s ms before, %s ms from there on", usual_ms, rig.load.outage_ms(began))
        rig.load.pause()
        judged = rig.load.verify(quick=True)
        assert judged["acked"] > 0
        assert (judged["lost"], judged["duplicated"], judged["reconnects"]) == (0, 0, 0)


def events(rig: Rig, on: str) -> list[str]:
    """The VM's history there, without the reasons."""
    told = rig.product.cli(on, "history", VM, "--json", check=False).stdout
    return [str(one["event"]) for one in json.loads(told)["events"]] if told else []
