# SPDX-License-Identifier: Apache-2.0
"""`remusdb status` as text: the answer first, then figures in a table, then what needs a sentence, a block a VM.

Invariant: a cell of the table is a word or a figure; whatever may be long stands below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from remusdb import wording
from remusdb.cli import words
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.control.verdict import Doubt, Status, Vms, is_kept
from remusdb.reasons import Code, Reason

FIRST_WORD = {"protected": "PROTECTED", "not-protected": "NOT PROTECTED", "nothing-to-protect": "NOTHING TO PROTECT"}
SHORT = 110  # letters of a reason in the first line; all of it is below

HEAD = (
    "VM", "ROLE", "STATE", "PEER", "TERM", "EXPOSED", "REPLIES WAIT", "PAUSE", "PAUSED", "CLOCK", "EPOCHS",
    "SENT", "HELD",
)  # fmt: skip
CUT_FOR = {  # `cadence.Why`
    "clock": "the fixed clock", "output": "replies that waited", "gap": "replies that waited while it worked on",
    "work": "its work", "idle": "nothing happened", "disk": "a full write log of a disk", "last": "a switchover",
}  # fmt: skip


def whole(found: Vms) -> Iterator[str]:
    """The lines for all VMs of a host."""
    yield from answer(found)
    if not found.vms:
        return
    yield ""
    yield from words.table(HEAD, [_row(one) for one in found.vms])
    for one in found.vms:
        yield ""
        yield from _block(one)


def answer(found: Vms) -> Iterator[str]:
    """Whether the VMs are safe, in the first word; what to do; and of which VMs this host is the safety."""
    first = FIRST_WORD[found.verdict]
    protected = [one for one in found.vms if isinstance(one, VmStatus) and one.state == "protected"]
    kept = [one for one in found.vms if is_kept(one)]
    if found.not_protected:
        named, more = found.not_protected[0], len(found.not_protected) - 1
        yield f"{first}  {_named(named)}" + (f" (and {more} more)" if more else "")
    elif found.verdict == "protected":
        yield f"{first}  " + _listed([f"{one.vm} to {one.peer}" for one in protected])
        yield from (f"but: {one.vm}: {_short(weak)}" for one in protected if (weak := one.weakness))
    else:
        away = [one.vm for one in found.vms if one.state == "fenced"]
        none = f"another host owns {_listed(away)}" if away else "no VM of this host is to have a backup"
        yield f"{first}  {none}"
    hints = {one.vm: one.hint for one in found.vms} | {one.vm: one.hint for one in found.not_protected}
    yield from (f"to do: {vm}: {hint}" if vm else f"to do: {hint}" for vm, hint in sorted(hints.items()) if hint)
    if kept:
        yield "this host is the backup of " + _listed([f"{one.vm} of {one.peer} ({one.state})" for one in kept])


def unknown(why: Reason) -> Iterator[str]:
    """The lines for a host that tells nothing: what is not known is not protected."""
    yield f"{FIRST_WORD['not-protected']}  {wording.words(why)}"
    if todo := wording.hint(why, ""):
        yield f"to do: {todo}"


def _named(doubt: Doubt) -> str:
    return f"{doubt.vm}: {_short(doubt.reason)}" if doubt.vm else _short(doubt.reason)


def _short(reason: str) -> str:
    return reason if len(reason) <= SHORT else reason[:SHORT].rsplit(" ", 1)[0] + " ..."


def _listed(named: Sequence[str], most: int = 6) -> str:
    rest = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + rest


def _row(one: Status) -> list[str]:
    row = [one.vm, one.role, one.state]
    if one.state == "unprotected":
        return row + [words.NOTHING] * (len(HEAD) - len(row))
    row += [one.peer or words.NOTHING, str(one.term)]
    if isinstance(one, StandbyStatus):
        return row + [words.NOTHING] * (len(HEAD) - len(row))
    goes = one.state == "protected"  # of a session that does not cut now, rates are those of another time
    share = f"{100 * one.pause_share:.1f} %" if goes and one.pause_share is not None else words.NOTHING
    sent = f"{words.size(one.bytes_per_s)}/s" if goes and one.bytes_per_s is not None else words.NOTHING
    rate = f"{words.number(one.epochs_per_s)}/s" if goes and one.epochs_per_s is not None else words.NOTHING
    waits, pause = _pair(one.commit_ms_p50, one.commit_ms_p99), _pair(one.pause_ms_p50, one.pause_ms_p99)
    clock = words.age(one.clock_lag_ms)
    return [*row, words.age(one.committed_age_ms), waits, pause, share, clock, rate, sent, words.size(one.held_bytes)]


def _pair(median: float | None, slow: float | None) -> str:
    return words.NOTHING if median is None or slow is None else f"{median:.1f}/{slow:.1f} ms"


def _block(one: Status) -> Iterator[str]:
    reason = one.reason or ("no protection was asked for" if one.state == "unprotected" else one.state)
    if one.why is not None and one.hint:  # something to do: by its code it is found in docs/json.md
        reason = f"{one.why.code}: {reason}"
    yield f"{one.vm}: {reason}"
    for name, text in _details(one):
        if text:
            yield f"  {name:<9} {text}"


def _details(one: Status) -> Iterator[tuple[str, str]]:
    if isinstance(one, StandbyStatus):
        if is_kept(one):
            alone = ", over its connection alone" if one.heartbeat == "connection" else ""
            heard = f"{one.peer} was heard {words.age(one.primary_silence_ms)} ago{alone}"
            yield "holds", f"epoch {one.committed}; {heard}"
    elif one.state == "protected":
        yield "epochs", f"cut for {_shares(one.epochs_for)}" if one.epochs_for else ""
        yield "clock", f"not corrected at each cut: {one.clock_slow}" if one.clock_slow else ""
    if one.unproven:
        yield "standby", one.unproven
    if one.proven_at_ns:
        yield "proven", f"{words.moment(one.proven_at_ns)} by the backup's clock, with epoch {one.proven_epoch}"
    elif isinstance(one, VmStatus) and one.state == "protected" and not one.unproven and not _unheard(one):
        yield "proven", "not yet"


def _unheard(one: Status) -> bool:
    return one.why is not None and one.why.code == Code.WORKER_UNHEARD


def _shares(cuts: dict[str, int]) -> str:
    whole_ = sum(cuts.values()) or 1
    often = sorted(cuts.items(), key=lambda item: -item[1])
    return ", ".join(f"{CUT_FOR.get(why, why)} ({100 * count / whole_:.0f} %)" for why, count in often)


def in_full(one: Status) -> list[str]:
    """Every key of a VM's status with its value, a line each."""
    lines = []
    for key in one.__struct_fields__:
        value = getattr(one, key)
        name, shown = key, words.NOTHING if value is None or value == "" else str(value)
        if key.endswith("_age_ms") or key.endswith("_silence_ms"):
            name, shown = key.removesuffix("_ms"), words.age(value)
        elif key.endswith("_at_ns") and value:
            name, shown = key.removesuffix("_ns"), words.moment(value)
        elif key == "why" and value:
            shown = value.code
        elif key == "troubles":
            shown = ", ".join(value) or words.NOTHING
        elif key == "page_kib" and value:
            shown = f"{value}" if value == 4 else f"{value}: each write sends up to {value // 4} pages of 4 KiB"
        elif key.endswith("_bytes") or key.startswith("bytes_"):
            shown = words.size(value)
        lines.append(f"{name:<18} {shown}")
    return lines
