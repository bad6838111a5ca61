# SPDX-License-Identifier: Apache-2.0
"""One cell: into the phase, the blow, the end state, and whether the promise was kept."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

from remusdb.errors import NotProtected
from remusdb.reasons import Code
from tools.lab.product import HOSTS, other_host
from tools.load import accepts, sql, wait_for
from tools.matrix.expect import DoesNotApply, Expect, expected, first_word, wrong_words
from tools.matrix.faults import RESTART_S, STOP_S, Armed, Ends, Fault, Scene
from tools.matrix.phases import Phase, strike
from tools.matrix.watch import Speakers
from tools.rig import VM, Rig
from tools.show import TROUBLE

_SETTLE_S = 1.5  # before anything is looked at: what is told then is told knowing of the fault
_STEADY_S = 1.0  # so long an outcome must last to count
_WORK_S = 20.0  # for every client to get something done, once the VM speaks again
_UNREMARKABLE = ("protected",)  # states that need no reason
# (outcome, on the old primary) -> what status may say there.
_FITTING = {
    ("protected", True): ("protected",),
    ("protected", False): ("ready",),
    ("rejoined", True): ("fenced", "empty", "seeding", "ready"),
    ("rejoined", False): ("promoted", "unprotected", "seeding", "protected"),
}


@dataclass
class Result:
    """What became of a cell. `seconds`: from the blow until the end state, `under_s` until that under the fault."""

    fault: str
    phase: str
    end: str = ""
    under: str = ""
    seconds: float | None = None
    under_s: float | None = None
    applies: bool = True
    note: str = ""
    commit: str = ""
    complaints: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all went as expected."""
        return not self.complaints


def run_cell(rig: Rig, speakers: Speakers, fault: Fault, phase: Phase, chance: random.Random) -> Result:
    """Runs it on a VM that is protected. Whatever goes wrong is a complaint of the result."""
    result = Result(fault.key, phase.value)
    wanted = expected(fault, phase)
    if isinstance(wanted, DoesNotApply):
        result.applies, result.note = False, wanted.why
        return result
    primary = rig.product.owner(VM)
    if primary is None:
        result.complaints.append("the VM runs nowhere before the fault")
        return result
    scene = Scene(rig, primary, other_host(primary))
    armed: Armed | None = None
    speakers.begin()
    with scene.cleanup:
        try:
            at_ns, armed = strike(phase, scene, fault, chance)
            _await_end(scene, fault, wanted, armed, at_ns, result)
        except TROUBLE as error:
            result.complaints.append(f"{type(error).__name__}: {error}")
        finally:
            if armed and fault.ends in (Ends.ITSELF, Ends.ONCE):
                armed.heal()
            if phase is Phase.IDLE:
                _let_go_on(rig)
        if armed and result.end:
            _judge(scene, wanted, speakers, result)
    return result


def outcome(scene: Scene) -> str:
    """Which outcome of `expect.py` it is at the moment, or the state that the primary tells."""
    rig = scene.rig
    owner = rig.product.owner(VM)
    if owner == scene.backup:
        learned = rig.product.durable(scene.primary, VM).role in ("fenced", "standby")
        return "rejoined" if learned and not rig.product.vm_runs(scene.primary, VM) else "taken over"
    if owner == scene.primary:
        return "protected" if rig.protected(owner) else rig.state(owner)
    return "down"


def _await_end(scene: Scene, fault: Fault, wanted: Expect, armed: Armed, at_ns: int, result: Result) -> None:
    """Through the fault, its end, and what follows. TimeoutError names what was found instead."""
    time.sleep({Ends.ITSELF: STOP_S if fault.key.endswith("-stop") else 0.3}.get(fault.ends, 0.0))
    if fault.ends is Ends.RESTARTS:
        time.sleep(RESTART_S)
        armed.heal()
    time.sleep(_SETTLE_S)
    if fault.ends is Ends.STAYS:
        try:
            result.under, result.under_s = _steady(scene, wanted.under, wanted.under_s, at_ns)
            result.complaints += _first_words(scene, result.under)
        finally:
            armed.heal()
    if scene.killed:
        scene.rig.product.reboot(scene.primary)
    healed_ns = time.monotonic_ns() if fault.ends is Ends.STAYS or scene.killed else at_ns
    result.end, _ = _steady(scene, wanted.end, wanted.within_s, healed_ns)
    result.seconds = round((time.monotonic_ns() - at_ns) / 1e9 - _STEADY_S, 1)


def _steady(scene: Scene, outcomes: tuple[str, ...], within_s: float, since_ns: int) -> tuple[str, float]:
    """Waits for one of these outcomes that lasts; seconds since that time until it began."""
    began: int | None = None
    seen: list[str] = []
    deadline_ns = since_ns + int((within_s + _SETTLE_S) * 1e9)
    while True:
        now = time.monotonic_ns()
        found = outcome(scene)
        if not seen or seen[-1] != found:
            seen.append(found)
        if found not in outcomes:
            began = None
        elif began is None:
            began = now
        elif now - began > _STEADY_S * 1e9:
            return found, round((began - since_ns) / 1e9, 1)
        if now > deadline_ns:
            told = {name: (view.state, view.reason) for name in HOSTS if (view := scene.rig.product.view(name, VM))}
            raise TimeoutError(f"not {' or '.join(outcomes)} in {within_s:.0f} s, but {' > '.join(seen)}; {told}")
        time.sleep(0.1)


def _let_go_on(rig: Rig) -> None:
    try:
        rig.load.resume()
    except TimeoutError:
        pass  # they never came to rest; they will not be found working either, and that is told


def _judge(scene: Scene, wanted: Expect, speakers: Speakers, result: Result) -> None:
    """Rows, speakers and status."""
    rig, moved = scene.rig, result.end == "rejoined"
    result.complaints += _first_words(scene, result.end)
    for name in HOSTS:
        result.complaints += _status(scene, name, result.end)
        state = rig.product.durable(name, VM)
        if state.role == "promoted" and state.why is not None and state.why.code is Code.RESUMED_COLD:
            result.note = "the VM was booted from its disk"
    resets = rig.resets
    try:
        if result.end == "down":
            rig.start_parts()
            rig.boot_vm()
            rig.reset_clients()
        _work_again(rig, wanted, result)
        result.complaints += _newest_rows(rig)
        rig.load.pause()
        judged: dict[str, Any] = rig.load.verify(quick=True) if moved or wanted.restarts else {"complaints": []}
        rig.resets = len(rig.load.report["resets"])
        rig.load.resume()
    except TROUBLE as error:
        result.complaints.append(f"after the fault: {type(error).__name__}: {error}")
        return
    result.complaints += [text for text in judged["complaints"] if not text.startswith("connection lost")]
    if rig.resets > resets and not (wanted.restarts and result.note):
        result.complaints.append(f"{rig.resets - resets} connections were reset")
    result.complaints += speakers.complaints(moves=int(moved))


def _work_again(rig: Rig, wanted: Expect, result: Result) -> None:
    """Every client gets something done; one whose server had to boot is told so first."""
    began = time.monotonic_ns()
    if result.end == "down":
        result.note = "the VM was started again"
    try:
        wait_for(lambda: rig.load.all_work(began), _WORK_S, "not every client works again")
    except TimeoutError:
        if not wanted.restarts:
            raise
        result.note = "the VM was booted from its disk"
        wait_for(lambda: accepts(rig.lab), 2 * _WORK_S, "PostgreSQL does not accept connections")
        rig.reset_clients()
        wait_for(lambda: rig.load.all_work(began), 2 * _WORK_S, "not every client works again")


def _newest_rows(rig: Rig) -> list[str]:
    """The newest transaction that each client was told of is there."""
    newest = rig.load.newest()
    rows = sql(rig.lab, "SELECT client, max(seq) FROM ledger GROUP BY client").split()
    found = {int(client): int(seq) for client, seq in (row.split("|") for row in rows)}
    lost = {client: seq for client, seq in newest.items() if found.get(client, 0) < seq}
    return [f"acknowledged and lost: {lost}, there is {found}"] if lost else []


def _first_words(scene: Scene, where: str) -> list[str]:
    """`remusdb status`, for a person, begins on every host that has its daemon as it must, and ends with that code."""
    product, said, complaints = scene.rig.product, {}, []
    for name in HOSTS:
        if not product.running("host", name):
            continue
        done = product.cli(name, "status", check=False)
        word = said[name == scene.primary] = first_word(done.stdout)
        if done.returncode != (NotProtected.exit_code if word == "NOT PROTECTED" else 0):
            complaints.append(f"status on {name} says {word!r} with exit code {done.returncode}: {done.stderr[-200:]}")
    return complaints + wrong_words(where, said, where == "rejoined" and scene.rig.protected(scene.backup))


def _status(scene: Scene, name: str, end: str) -> list[str]:
    """`remusdb status --json` names a state that fits, and a reason."""
    done = scene.rig.product.cli(name, "status", VM, "--json", check=False)
    try:
        told = json.loads(done.stdout)["vms"][0]
    except (ValueError, LookupError):
        return [f"status on {name}: exit {done.returncode}, {(done.stdout + done.stderr)[-200:]}"]
    state, fitting = told.get("state"), _FITTING.get((end, name == scene.primary))
    complaints = []
    if not state or (fitting and state not in fitting):
        complaints.append(f"status on {name} says {state!r} ({told.get('reason')}), where the VM is {end}")
    if not told.get("reason") and state not in _UNREMARKABLE:
        complaints.append(f"status on {name} names no reason for {state!r}")
    return complaints
