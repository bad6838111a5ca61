# SPDX-License-Identifier: Apache-2.0
"""One trial of the product: a database VM under load loses its host at a random moment. Did any client notice?"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from remusdb.deadline import Deadline, poll_until
from tools import ledger
from tools.lab import Host, Lab, domains
from tools.lab.host import Killed
from tools.lab.image import DbImage
from tools.lab.product import Product
from tools.load import CLIENTS, Load, accepts, wait_for
from tools.stage import Plain, Stage

_BOOT_S = 240.0
_UNPROTECTED_S = 8.0
_KILL_S = (6.0, 12.0)  # after the VM is protected: long enough for figures that mean something
_RECOVER_S = 30.0  # how long the clients are given until the trial counts as failed
_EARLY_S = 90.0  # until connections are made again, and a transaction was open in one
_TRANSACTIONS = 10  # of a connection, with commit protection
_AFTER_S = 3.0  # how long they work on the survivor


class Kill(Enum):
    """What happens to the primary."""

    HOST = "host"  # power failure: link down, every process killed
    QEMU = "qemu"  # the VM's QEMU alone dies
    LINK = "link"  # the cable is pulled, and plugged in again once the backup has taken over

    def strike(self, host: Host, vm: str) -> Killed:
        """Does it, now."""
        if self is Kill.HOST:
            return host.kill()
        if self is Kill.QEMU:
            return host.kill_qemu(vm)
        at, wall = time.monotonic_ns(), time.time_ns()
        host.cut_link()
        return Killed(at, wall, (time.monotonic_ns() - at) / 1e6, ())


@dataclass
class Outcome:
    """`figures` are the keys of the report; the trial passed if there are no `complaints`."""

    figures: dict[str, Any]
    complaints: list[str]


class Trial:
    """Runs in a lab of its own; what it leaves behind is in `folder`: the record of the clients, and all logs."""

    def __init__(
        self, image: DbImage, seed: int, kill: Kill, folder: Path, stage: Stage | None = None, release: str = "all"
    ) -> None:
        """`stage`: where it shows what it does; None: in plain lines. `release`: the VM's setting."""
        self._release = release
        self._image = image
        self._dbms = image.dbms
        self._kill = kill
        self._chance = random.Random(seed)
        self._folder = folder
        self._stage = stage or Plain()

    def run(self) -> Outcome:
        """One trial. Raises RuntimeError or TimeoutError when a step fails before there is anything to judge."""
        with Lab() as lab:
            product = Product(lab, self._folder)
            try:
                return self._run(lab, product)
            finally:
                product.keep_logs()

    def _run(self, lab: Lab, product: Product) -> Outcome:
        a, step = lab.host("a"), self._stage.step
        with step("two hosts and a client; the VM starts"):
            a.start_libvirt()
            vm = domains.define_db(a, self._image)
            a.run(["virsh", "start", vm.name])
        with step(f"libvirt and remusdb on both hosts; {self._dbms.name} boots meanwhile ({_accel(vm.accel)})"):
            lab.host("b").start_libvirt()
            product.install({"release": self._release})
            product.start()
            self._stage.hosts(product, vm.name)
            wait_for(lambda: accepts(lab, self._dbms), _BOOT_S, f"{self._dbms.name} does not accept connections", 0.25)
        # The gate knows a connection from its beginning on: there must be some that begin once the VM is protected.
        each = _TRANSACTIONS if self._release == "commit" else 0
        load = Load(lab, self._folder, dbms=self._dbms, transactions=each)
        self._stage.clients(load)
        with step(f"{CLIENTS} clients work, unprotected"):
            wait_for(lambda: len(load.acks) >= CLIENTS, 30.0, "the clients get nothing done")
            began = time.monotonic_ns()
            time.sleep(_UNPROTECTED_S)
        unprotected = ledger.tps(load.acks, began, time.monotonic_ns())
        with step(f"remusdb protect {vm.name} --to b"):
            product.cli("a", "protect", vm.name, "--to", "b", timeout_s=120.0)
            if self._release == "commit":
                wait_for(lambda: product.status(vm.name)["early_frames"], _EARLY_S, "no frame leaves early", 0.5)
        protected_ns = time.monotonic_ns()
        with step(f"{CLIENTS} clients work, protected"):
            time.sleep(self._chance.uniform(*_KILL_S))
            status = product.status(vm.name)
            time.sleep(self._chance.uniform(0.0, 0.5))  # so that the kill falls anywhere in an epoch
        killed = self._kill.strike(a, vm.name)
        self._stage.killed(a.name, f"{self._kill.value} killed", killed.monotonic_ns, self._kill is not Kill.HOST)
        self._stage.say(
            f"  [bold red]✗ {self._kill.value} killed[/bold red]  [dim]within {killed.took_ms:.1f} ms[/dim]"
        )
        self._recover(lab, load, killed)
        with step("what the survivor holds against what the clients saw"):
            judged = load.verify(release=self._release)
        standby = product.standby(vm.name)
        return self._outcome(load, judged, status, standby, killed, unprotected, protected_ns)

    def _recover(self, lab: Lab, load: Load, killed: Killed) -> None:
        """Waits until every client works again. If one does not, the verdict will say so."""
        with self._stage.step("the backup takes over"):
            # The first moments on the survivor may answer what the primary had already committed to.
            poll_until(lambda: load.all_work(killed.monotonic_ns), Deadline.after(_RECOVER_S), 0.1)
            if self._kill is Kill.LINK:
                lab.host("a").restore_link()  # now a primary that still speaks would break the connections
            time.sleep(_AFTER_S)
            load.stop()
        self._stage.rest()

    def _outcome(
        self,
        load: Load,
        judged: dict[str, Any],
        status: dict[str, Any],
        standby: dict[str, Any],
        killed: Killed,
        unprotected: float,
        protected_ns: int,
    ) -> Outcome:
        acks, stopped_ns = load.acks, load.report["stopped_ns"]
        complaints = list(judged["complaints"])
        decided, resumed = standby.get("decided_at_ns"), standby.get("resumed_at_ns")
        if not decided or not resumed:
            complaints.append(f"the backup did not take over: {standby.get('state')} {standby.get('reason')}")
        told = int(((standby.get("why") or {}).get("params") or {}).get("resets", 0))
        if self._release == "commit" and judged["reconnects"] > told:
            complaints.append(f"{judged['reconnects']} connections were reset, of which the backup says {told}")
        figures = {
            "db": self._dbms.key,
            "acked": judged["acked"],
            "acked_ipv6": load.acked_ipv6,
            "lost": judged["lost"],
            "duplicated": judged["duplicated"],
            "reconnects": judged["reconnects"],
            "reset_inside": judged["reset_inside"],
            "resets_told": told,
            "release": self._release,
            "early_frames": status.get("early_frames"),
            "detect_ms": _ms(killed.time_ns, decided),
            "resume_ms": _ms(decided, resumed),
            "outage_ms": round(ledger.outage_ms(acks, killed.monotonic_ns, stopped_ns), 1),
            "epochs": standby.get("committed"),
            "pause_ms_p50": _rounded(status.get("pause_ms_p50")),
            "pause_ms_p99": _rounded(status.get("pause_ms_p99")),
            "bytes_per_epoch": _rounded(status.get("bytes_per_epoch"), 0),
            "tps_unprotected": round(unprotected, 1),
            "tps_protected": round(ledger.tps(acks, protected_ns, killed.monotonic_ns), 1),
            "accel": _accel(str(status.get("accel") or "")),
        }
        return Outcome(figures, complaints)


def _accel(kind: str) -> str:
    """libvirt and QEMU call emulation `qemu`; people call it TCG."""
    return {"qemu": "tcg"}.get(kind, kind)


def _ms(start_ns: int | None, end_ns: int | None) -> float | None:
    return round((end_ns - start_ns) / 1e6, 1) if start_ns and end_ns else None


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)
