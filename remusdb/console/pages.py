# SPDX-License-Identifier: Apache-2.0
"""The pages as HTML: templates beside this file, and what they are told. The words are those of `remusdb status`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from remusdb import __version__
from remusdb.cli import status_view, words
from remusdb.console.actions import offered
from remusdb.console.watching import Look
from remusdb.console.works import Work
from remusdb.control.status import VmStatus
from remusdb.control.verdict import Status, Vms, is_kept
from remusdb.history import Event
from remusdb.reasons import Code

HERE = Path(__file__).parent
SOON = (
    "takeover",
    "promoted",
    "fenced",
    "lost",
    "held",
    "failed",
    "solo",
    "unproven",
    "trouble",
)  # marked in a history

_made = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
_made.globals["version"] = __version__


def page(template: str, /, **told: Any) -> str:
    """A template with what it is told."""
    return _made.get_template(template).render(**told)


def overview(look: Look, machine: str) -> dict[str, Any]:
    """What the overview is told of a look."""
    return {
        **_verdict(look.found),
        "look": look,
        "machine": machine,
        "rows": [_row(one, look.found) for one in look.found.vms],
        "daemons": {name: str(look.told.errors.get(name, "")) for name in look.told.asked},
        "at": time.strftime("%H:%M:%S", time.localtime(look.at)),
    }


def vm(look: Look, one: Status | None, name: str, work: Work | None, machine: str) -> dict[str, Any]:
    """What a VM's page is told."""
    own = None if one is None else _row(one, look.found)
    return {
        **_verdict(look.found),
        "look": look,
        "machine": machine,
        "name": name,
        "vm": own,
        "figures": [] if one is None else figures(one),
        "full": [] if one is None else [line.split(None, 1) for line in status_view.in_full(one)],
        "actions": [] if one is None else offered(one),
        "work": work,
        "began": time.strftime("%H:%M:%S", time.localtime(work.began)) if work is not None else "",
        "at": time.strftime("%H:%M:%S", time.localtime(look.at)),
    }


def events(found: Sequence[Event]) -> list[dict[str, Any]]:
    """A history, the newest first."""
    return [
        {
            "at": words.moment(one.at_ns),
            "event": one.event,
            "marked": one.event in SOON,
            "change": f"{one.was} → {one.now}" if one.was != one.now else one.now,
            "reason": one.reason,
            "hint": one.hint,
            "evidence": _evidence(one),
        }
        for one in sorted(found, key=lambda event: -event.at_ns)
    ]


def figures(one: Status) -> list[tuple[str, str, str]]:
    """What matters of a VM now: name, value, what it is."""
    if not isinstance(one, VmStatus):
        told = [("Holds epoch", str(one.committed), f"of {one.peer}")]
        if is_kept(one):
            told.append(("Last heard", words.age(one.primary_silence_ms), f"limit {words.age(one.silence_limit_ms)}"))
        return [*told, ("Proven", _proven(one), "QEMU here took its state"), ("Term", str(one.term), "")]
    goes = one.state == "protected"
    waits, pause = _median(one.commit_ms_p50, one.commit_ms_p99), _median(one.pause_ms_p50, one.pause_ms_p99)
    share = f"{100 * one.pause_share:.1f} % of the time" if one.pause_share is not None else ""
    rate = f"{one.epochs_per_s:.1f}/s" if goes and one.epochs_per_s is not None else words.NOTHING
    sent = f"{words.size(one.bytes_per_s)}/s" if goes and one.bytes_per_s is not None else words.NOTHING
    return [
        ("Exposed", words.age(one.committed_age_ms), "age of the newest state that the backup holds"),
        ("Replies wait", waits[0] if goes else words.NOTHING, waits[1] if goes else ""),
        ("Pause", pause[0] if goes else words.NOTHING, share if goes else ""),
        ("Epochs", rate, "cut and sent"),
        ("Sent", sent, "to the backup"),
        ("Held now", words.size(one.held_bytes), "output that waits"),
        ("Clock lag", words.age(one.clock_lag_ms) if goes else words.NOTHING, "of the guest"),
        ("Standby proven", _proven(one), f"epoch {one.proven_epoch}" if one.proven_epoch else ""),
        ("Term", str(one.term), f"epoch {one.epoch}"),
    ]


def _verdict(found: Vms) -> dict[str, Any]:
    lines = list(status_view.answer(found))
    word = status_view.FIRST_WORD[found.verdict]
    return {
        "verdict": found.verdict,
        "word": word,
        "answer": lines[0].removeprefix(word).strip(),
        "todo": [line.removeprefix("to do: ") for line in lines if line.startswith("to do: ")],
        "notes": [line for line in lines[1:] if not line.startswith("to do: ")],
    }


def _row(one: Status, found: Vms) -> dict[str, Any]:
    """One VM, in short: is it safe, and why not."""
    doubt = next((doubt for doubt in found.not_protected if doubt.vm == one.vm), None)
    weakness = one.weakness if isinstance(one, VmStatus) else ""
    if doubt is not None:
        badge, tone = "NOT PROTECTED", "bad"
    elif isinstance(one, VmStatus) and one.state == "protected":
        badge, tone = "PROTECTED", "warn" if weakness else "good"
    else:
        badge, tone = ("backup here" if is_kept(one) else one.state), "calm"
    reason = doubt.reason if doubt is not None else weakness or one.reason
    return {
        "name": one.vm,
        "badge": badge,
        "tone": tone,
        "state": one.state,
        "role": one.role,
        "peer": one.peer or words.NOTHING,
        "reason": reason,
        "code": str(one.why.code) if one.why is not None and doubt is not None else "",
        "hint": (doubt.hint if doubt is not None else "") or one.hint,
        "figures": figures(one)[:4],
        "unheard": one.why is not None and one.why.code == Code.WORKER_UNHEARD,
    }


def _median(median: float | None, slow: float | None) -> tuple[str, str]:
    if median is None or slow is None:
        return words.NOTHING, ""
    return f"{median:.1f} ms", f"1 % more than {slow:.1f} ms"


def _proven(one: Status) -> str:
    if one.unproven:
        return "no"
    return words.moment(one.proven_at_ns)[11:19] if one.proven_at_ns else "not yet"


def _evidence(one: Event) -> str:
    told = [f"by {one.by} on {one.host}", f"term {one.term}"]
    if one.epoch is not None:
        told.append(f"epoch {one.epoch} committed")
    if one.heard_ms_ago is not None:
        told.append(f"other side heard {words.age(one.heard_ms_ago)} before")
    if one.why is not None:
        told.append(str(one.why.code))
    return ", ".join([*told, *(f"{key} {value}" for key, value in one.details.items())])
