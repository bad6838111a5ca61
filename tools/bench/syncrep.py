# SPDX-License-Identifier: Apache-2.0
"""What a DBA has without remusdb: PostgreSQL's own synchronous replication between two such VMs, one on each host.

    python -m tools.bench.syncrep [--clients N,...] [--seconds N] [--rounds N]     one JSON object on stdout

In turns: the primary alone (its standby's VM is suspended, and nothing waits for it), and `synchronous_commit =
remote_apply`, where a reply says that the standby shows the transaction. Then, under load, the primary's host is
killed, and the standby is promoted at once: no time to notice is in `promote_ms` (until the server says that it is
promoted) or in `first_write_ms` (until a client that connects anew has its first write acknowledged), both since the
kill. remusdb is not installed here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench.pgbench import Load, Pgbench, debugfs
from tools.lab import Lab, domains, image
from tools.lab.paths import BUILD
from tools.load import wait_for
from tools.show import run_to_exit, step

FOLDER = BUILD / "bench"
PRIMARY, STANDBY = domains.DB_IP4, "10.77.0.11"
STANDBY_MAC = "52:54:00:77:00:11"
ALONE, SYNC = "alone", "remote_apply"
_CONF = """
wal_keep_size = 1GB
synchronous_commit = remote_apply
"""
_STANDBY_CONF = f"primary_conninfo = 'host={PRIMARY} user=postgres'\n"
_HBA = "host replication all 10.77.0.0/24 trust\n"
_BOOT_S, _CATCH_UP_S, _FAILOVER_S, _SCALE, _LOADED_S = 240.0, 60.0, 60.0, 10, 3.0
_NETWORK = "/etc/systemd/system/lab-network.service"


class Pair:
    """A PostgreSQL on each host, the one on `b` a standby of the one on `a`."""

    def __init__(self, lab: Lab, built: image.DbImage) -> None:
        """Starts both: of the same image, so that the standby needs no copy of the primary to begin with."""
        self._lab = lab
        for name, address, mac in (("a", PRIMARY, domains.DB_MAC), ("b", STANDBY, STANDBY_MAC)):
            host = lab.host(name)
            host.start_libvirt()
            vm = domains.define_db(host, built)
            _prepare(host.path(vm.disk), lab.folder, address, standby=address == STANDBY)
            domains.change(host, vm.name, lambda domain, mac=mac: _set_mac(domain, mac))  # type: ignore[misc]
            host.run(["virsh", "start", vm.name])
        self._vm = vm.name
        for address in (PRIMARY, STANDBY):
            wait_for(lambda address=address: self._answers(address), _BOOT_S, f"{address} does not answer", 0.5)  # type: ignore[misc]
        self._await_standby()

    def turn(self, way: str) -> None:
        """From now on in this way."""
        names = "*" if way == SYNC else ""
        if way == SYNC:
            self._lab.host("b").run(["virsh", "resume", self._vm], check=False)  # the first time it runs
            self._await_standby()
        self.sql(PRIMARY, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.sql(PRIMARY, "SELECT pg_reload_conf()")
        waits = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_for(lambda: (self.sql(PRIMARY, waits) == "1") == (way == SYNC), _CATCH_UP_S, f"it does not become {way}")
        if way == ALONE:
            self._lab.host("b").run(["virsh", "suspend", self._vm])

    def fail_over(self) -> dict[str, float]:
        """Kills the primary's host; ms since then."""
        killed = self._lab.host("a").kill().monotonic_ns
        self.sql(STANDBY, "SELECT pg_promote(true, 60)", _FAILOVER_S)
        promoted = time.monotonic_ns()
        self.sql(STANDBY, "UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = 1", _FAILOVER_S)
        written = time.monotonic_ns()
        return {"promote_ms": round((promoted - killed) / 1e6, 1), "first_write_ms": round((written - killed) / 1e6, 1)}

    def sql(self, server: str, statement: str, timeout_s: float = 30.0) -> str:
        """The answer to one statement, by a client that connects for it. RuntimeError when there is none."""
        command = ["psql", "-h", server, "-U", "postgres", "-Atc", statement, "postgres"]
        return self._lab.client.run(command, timeout_s=timeout_s, env={"PGCONNECT_TIMEOUT": "5"}).stdout.strip()

    def _answers(self, server: str) -> bool:
        try:
            return self.sql(server, "SELECT 1") == "1"
        except RuntimeError:
            return False

    def _await_standby(self) -> None:
        """Until it has shown all that the primary wrote so far."""
        upto = self.sql(PRIMARY, "SELECT pg_current_wal_lsn()")
        done = f"SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn >= '{upto}'"
        wait_for(lambda: self.sql(PRIMARY, done) == "1", _CATCH_UP_S, "the standby does not catch up", 0.5)


def measure(pair: Pair, pgbench: Pgbench, loads: list[Load], seconds: int, rounds: int) -> dict[str, Any]:
    """Throughput and latency of both ways, medians of all rounds, and the one over the other."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        way: {load.key: [] for load in loads} for way in (ALONE, SYNC)
    }
    for number in range(rounds):
        for way in (ALONE, SYNC) if number % 2 == 0 else (SYNC, ALONE):
            with step(f"round {number + 1} of {rounds}: {way}"):
                pair.turn(way)
                for load in loads:
                    found[way][load.key].append(vars(pgbench.run(load, seconds)))
    medians = {
        way: {key: {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
              for key, turns in of.items()} for way, of in found.items()
    }  # fmt: skip
    ratios = {
        f"{key}_ratio": round(medians[SYNC][key]["tps"] / medians[ALONE][key]["tps"], 3) for key in medians[ALONE]
    }
    return {**ratios, **medians, "turns": found}


def _prepare(disk: Path, folder: Path, address: str, *, standby: bool) -> None:
    """The VM's files, before it boots: its address, and how its PostgreSQL replicates."""
    (major,) = {
        name for line in debugfs(disk, "ls -p /etc/postgresql").splitlines()
        if line and not (name := line.split("/")[5]).startswith(".")
    }  # fmt: skip
    conf, data = f"/etc/postgresql/{major}/main", f"/var/lib/postgresql/{major}/main"
    _edit(
        disk,
        folder,
        _NETWORK,
        lambda text: text.replace(f"{PRIMARY}/", f"{address}/").replace(
            "fd77::10/", f"fd77::{address.rpartition('.')[2]}/"
        ),
    )
    _edit(disk, folder, f"{conf}/pg_hba.conf", lambda text: text + _HBA)
    _edit(disk, folder, f"{conf}/postgresql.conf", lambda text: text + _CONF + (_STANDBY_CONF if standby else ""))
    if standby:
        _write(disk, folder, f"{data}/standby.signal", "")


def _edit(disk: Path, folder: Path, path: str, edit: Callable[[str], str]) -> None:
    _write(disk, folder, path, edit(debugfs(disk, f"cat {path}")))


def _write(disk: Path, folder: Path, path: str, text: str) -> None:
    """A file in the VM's file system, for its PostgreSQL to read and to remove."""
    made = folder / "file"
    made.write_text(text)
    requests = [f"rm {path}", f"write {made} {path}", f"set_inode_field {path} mode 0100644"]
    script = folder / "requests"
    script.write_text("\n".join(requests) + "\n")
    subprocess.run(["debugfs", "-w", "-f", script, disk], check=True, capture_output=True, timeout=60)
    if debugfs(disk, f"cat {path}") != text:
        raise RuntimeError(f"debugfs did not write {path} into {disk}")


def _set_mac(domain: ET.Element, mac: str) -> None:
    (element,) = domain.findall("devices/interface/mac")
    element.set("address", mac)


def report(built: image.DbImage, folder: Path, clients: list[int], seconds: int, rounds: int) -> dict[str, Any]:
    """All of it."""
    with Lab() as lab:
        with step("two hosts, PostgreSQL on both boots, one follows the other"):
            pair = Pair(lab, built)
            pgbench = Pgbench(lab, built, folder)
            pgbench.prepare(_SCALE)
        found = measure(pair, pgbench, [Load("tpcb", count) for count in clients], seconds, rounds)
        with step("the primary's host is killed"):
            pair.turn(SYNC)
            with pgbench.loaded(Load("tpcb", clients[-1])):
                time.sleep(_LOADED_S)
                found["failover"] = pair.fail_over()
    return found


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.syncrep")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=int, default=10, help="of each load in each way and round")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    built = image.ensure(FOLDER / "image.log")
    print(
        json.dumps(report(built, FOLDER, [int(one) for one in asked.clients.split(",")], asked.seconds, asked.rounds))
    )
    return 0


if __name__ == "__main__":
    run_to_exit(main, "the measurement")
