# SPDX-License-Identifier: Apache-2.0
"""`make soak`: round after round, the host that runs the VM is killed, boots again, and becomes the backup; or the VM
is moved there by `remusdb switchover`, and protected back. The load never ends.

    python -m tools.soak [--rounds N] [--by kill|switchover]

Progress is on stderr. The last line on stdout is one JSON object, which build/soak/report.json holds as well. Exit 1
if anything that a client had seen was lost or came twice, if a connection was reset, or if a round failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich.markup import escape

from tools.lab.paths import BUILD
from tools.lab.product import other_host
from tools.load import wait_for
from tools.rig import VM, Rig, running_rig
from tools.show import TROUBLE, run_to_exit, say, step

_FOLDER = BUILD / "soak"
_WORK_S = 6.0  # under load and protected, before each round
_TAKEOVER_S = 30.0
_REJOIN_S = 30.0
_AGAIN_S = 60.0


class By(StrEnum):
    """How the VM comes to the other host."""

    KILL = "kill"
    SWITCHOVER = "switchover"


@dataclass(frozen=True)
class Round:
    """One failover or planned move, and the way back."""

    left: str
    took_ms: float | None  # of a switchover, by the CLI: from the order to stop the VM to its running over there
    usual_ms: float  # the longest wait of any client for an acknowledgement, in the last seconds before
    outage_ms: float  # and from the blow on
    resync_wait_ms: float  # and while it is protected back
    rejoin_s: float
    resync_s: float
    resync_bytes: int  # all that the VM's host sent meanwhile
    disk_bytes: int  # of it for the disks
    disk_same_bytes: int  # of the disks' data, what the other host had already
    kept: bool  # status names the disks that the old primary quarantined
    refused: str  # what `reprotect` said if it failed, after which the daemon came to it by itself


def one_round(rig: Rig, by: By) -> Round:
    """Away from the host and back under protection. Raises TimeoutError or RuntimeError when a step fails."""
    old = rig.product.owner(VM)
    if old is None:
        raise RuntimeError("the VM runs nowhere")
    new = other_host(old)
    time.sleep(_WORK_S)
    began = time.monotonic_ns()
    usual = rig.load.outage_ms(began - int(_WORK_S / 2 * 1e9))
    took_ms: float | None = None
    if by is By.KILL:
        _kill(rig, old, new)
    else:
        took_ms = _switch_over(rig, old, new)
    outage = rig.load.outage_ms(began)
    with step(f"{old} learns that it is not the primary any more"):
        waited = time.monotonic()
        if by is By.KILL:
            rig.product.reboot(old)
        wait_for(lambda: _rejoined(rig, old), _REJOIN_S, f"{old} is not fenced: {rig.product.view(old, VM)}")
        rejoin_s = time.monotonic() - waited
        kept = bool(rig.product.status(VM, old).get("quarantined_disks"))
    with step(f"remusdb reprotect {VM} --to {old}"):
        waited, before, asked = time.monotonic(), rig.wire_bytes(new), time.monotonic_ns()
        done = rig.product.cli(new, "reprotect", VM, "--to", old, check=False, timeout_s=180.0)
        wait_for(lambda: rig.protected(new), _AGAIN_S, f"not protected, though it was asked for: {done.stderr}")
        resync_s, resync_bytes = time.monotonic() - waited, rig.wire_bytes(new) - before
    resync_wait = rig.load.outage_ms(asked)
    refused = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    status = rig.product.status(VM, new)
    return Round(
        left=old,
        took_ms=took_ms,
        usual_ms=usual,
        outage_ms=outage,
        resync_wait_ms=resync_wait,
        rejoin_s=round(rejoin_s, 1),
        resync_s=round(resync_s, 1),
        resync_bytes=resync_bytes,
        disk_bytes=status["seeded_bytes"],
        disk_same_bytes=status["same_bytes"],
        kept=kept,
        refused=refused,
    )


def _kill(rig: Rig, old: str, new: str) -> None:
    with step(f"{old} is killed; {new} takes over"):
        killed = rig.host(old).kill()
        wait_for(lambda: rig.load.all_work(killed.monotonic_ns), _TAKEOVER_S, "not every client works again")


def _switch_over(rig: Rig, old: str, new: str) -> float:
    with step(f"remusdb switchover {VM}, from {old} to {new}"):
        done = rig.product.cli(old, "switchover", VM, "--json", timeout_s=60.0)
        told = time.monotonic_ns()
        wait_for(lambda: rig.load.all_work(told), _TAKEOVER_S, "not every client works again")
    return float(json.loads(done.stdout)["took_ms"])


def _rejoined(rig: Rig, name: str) -> bool:
    fenced = rig.product.durable(name, VM).role == "fenced" and rig.state(name) == "fenced"
    return fenced and not rig.product.vm_runs(name, VM)


def soak(rounds: int, by: By) -> tuple[dict[str, Any], list[str]]:
    """All rounds. Gives the report and the complaints."""
    done: list[Round] = []
    complaints: list[str] = []
    with running_rig(_FOLDER) as rig:
        with step(f"remusdb protect {VM} --to b"):
            rig.product.cli("a", "protect", VM, "--to", "b", timeout_s=120.0)
        for number in range(1, rounds + 1):
            say(f"[bold]round {number} of {rounds}[/bold]")
            try:
                done.append(one_round(rig, by))
            except TROUBLE as error:
                complaints.append(f"round {number}: {error}")
                break
            say(f"  {asdict(done[-1])}")
        with step("what the last survivor holds against what the clients saw"):
            time.sleep(2.0)
            rig.load.stop()
            judged = rig.load.verify()
    complaints += judged["complaints"]
    figures = {key: judged[key] for key in ("acked", "lost", "duplicated", "reconnects")}
    return {"rounds": len(done), "by": by.value, **figures, "each": [asdict(one) for one in done]}, complaints


def main() -> int:
    """As `make soak` calls it; the exit code."""
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--by", type=By, choices=list(By), default=By.KILL, metavar="{kill,switchover}")
    args = parser.parse_args()
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    report, complaints = soak(args.rounds, args.by)
    for complaint in complaints:
        say(f"  [bold red]{escape(complaint)}[/bold red]")
    text = json.dumps({**report, "complaints": complaints})
    (_FOLDER / "report.json").write_text(text + "\n")
    print(text)
    return 1 if complaints or report["rounds"] < args.rounds else 0


if __name__ == "__main__":
    run_to_exit(main, "the soak")
