# SPDX-License-Identifier: Apache-2.0
"""The first word of `remusdb status`: which VMs count, and that what is not known is not called protected."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from remusdb.cli import status_view
from remusdb.control.status import StandbyStatus, State, VmStatus
from remusdb.control.verdict import STALE_MS, Status, judge
from remusdb.reasons import Code, Reason

GOOD = VmStatus(
    vm="db1", state="protected", peer="beta", term=3, committed=812, committed_age_ms=61.2, wanted=True, running=True,
    why=Reason.of(Code.FOLLOWING, peer="beta"), reason="epoch by epoch to beta",
)  # fmt: skip
BARE = VmStatus(vm="db2", running=True)
KEPT = StandbyStatus(vm="db3", state="ready", peer="gamma", term=9, committed=4, primary_silence_ms=90)
SUSPENDED = replace(
    GOOD,
    committed_age_ms=STALE_MS * 9,
    troubles=["suspended"],
    reason="it is suspended; epoch by epoch to beta",
    weakness="it is suspended",
)


def because(code: Code, status: VmStatus = GOOD, **changes: object) -> VmStatus:
    return replace(status, why=Reason.of(code), **changes)


@pytest.mark.parametrize(
    ("vms", "verdict"),
    [
        ([GOOD], "protected"),
        ([GOOD, BARE, KEPT], "protected"),  # one that nobody asked to protect, and another host's
        ([SUSPENDED], "protected"),  # nothing changes that could be lost
        ([replace(GOOD, troubles=["arbiter"])], "protected"),
        ([KEPT], "nothing-to-protect"),
        ([KEPT, BARE], "nothing-to-protect"),
        ([], "nothing-to-protect"),
        ([replace(GOOD, state="fenced")], "nothing-to-protect"),
        ([replace(BARE, running=False)], "nothing-to-protect"),
        ([BARE], "not-protected"),  # "protected" would be a lie, and so would be that there is nothing
        ([replace(GOOD, committed_age_ms=STALE_MS + 1)], "not-protected"),
        ([because(Code.WORKER_UNHEARD, committed_age_ms=None)], "not-protected"),
        ([GOOD, replace(BARE, wanted=True)], "not-protected"),
        ([GOOD, because(Code.TAKEN_OVER_HERE, BARE)], "not-protected"),
        ([GOOD, because(Code.ENDED, BARE)], "not-protected"),  # shut down once, and started again without
        ([GOOD, because(Code.ENDED, BARE, running=False)], "protected"),
        ([GOOD, because(Code.UNPROTECT_ASKED, BARE)], "protected"),
        ([GOOD, replace(KEPT, state="promoted", role="promoted")], "not-protected"),
        ([GOOD, replace(KEPT, state="failed")], "not-protected"),
        ([GOOD, replace(KEPT, state="empty")], "protected"),
        ([replace(KEPT, why=Reason.of(Code.ARBITER_AWAITED))], "not-protected"),  # perhaps it runs nowhere
    ],
)  # fmt: skip
def test_which_vms_count(vms: list[Status], verdict: str) -> None:
    found = judge(vms)
    assert found.verdict == verdict
    assert bool(found.not_protected) == (verdict == "not-protected")
    assert next(status_view.answer(found)).startswith(verdict.upper().replace("-", " ") + "  ")


@pytest.mark.parametrize("state", ["seeding", "held", "solo", "failed"])
def test_a_vm_that_should_have_a_backup_and_has_none_makes_it_unsafe(state: State) -> None:
    found = judge([GOOD, replace(GOOD, vm="db4", state=state, reason="why it is", hint="mend it", why=None)])
    assert found.verdict == "not-protected"
    assert [(one.vm, one.reason, one.hint) for one in found.not_protected] == [("db4", "why it is", "mend it")]
    assert list(status_view.answer(found)) == ["NOT PROTECTED  db4: why it is", "to do: db4: mend it"]


def test_a_vm_that_is_named_counts_whatever_it_is() -> None:
    (doubt,) = judge([BARE], named=True).not_protected
    assert doubt.reason == "it runs without a backup" and doubt.hint == "remusdb protect db2 --to HOST"
    assert doubt.why == Reason.of(Code.NO_BACKUP)
    (doubt,) = judge([replace(BARE, running=False)], named=True).not_protected
    assert doubt.why == Reason.of(Code.NO_BACKUP_OFF)
    assert judge([replace(GOOD, state="fenced")], named=True).verdict == "nothing-to-protect"


def test_without_the_host_daemons_word_nothing_is_protected() -> None:
    found = judge([KEPT], host_answers=False)
    assert found.verdict == "not-protected" and found.not_protected[0].why == Reason.of(Code.HOST_SILENT)
    first, todo, kept = status_view.answer(found)
    assert "host daemon" in first and todo == "to do: systemctl status remusdb-host" and "db3 of gamma" in kept


@pytest.mark.parametrize(
    ("vms", "code"),
    [
        ([replace(GOOD, committed_age_ms=STALE_MS + 1)], Code.EXPOSED),
        ([replace(KEPT, state="promoted", role="promoted")], Code.NOT_PROTECTED),
        ([because(Code.PEER_LOST, state="held", reason="in words of a worker")], Code.PEER_LOST),
    ],
)  # fmt: skip
def test_programs_are_told_why_by_a_code(vms: list[Status], code: Code) -> None:
    (doubt,) = judge(vms).not_protected
    assert doubt.why is not None and doubt.why.code == code and doubt.reason


def test_a_weakness_is_told_next_to_the_answer() -> None:
    lines = list(status_view.answer(judge([SUSPENDED])))
    assert lines == ["PROTECTED  db1 to beta", "but: db1: it is suspended"]
    slow = because(Code.CUT_WAITS, weakness="QEMU has not answered for 7 s; output waits")
    assert "but: db1: QEMU has not answered for 7 s; output waits" in list(status_view.answer(judge([slow])))


def test_a_backup_says_of_which_vms_it_is_the_safety() -> None:
    assert list(status_view.answer(judge([KEPT]))) == [
        "NOTHING TO PROTECT  no VM of this host is to have a backup", "this host is the backup of db3 of gamma (ready)"
    ]  # fmt: skip


def test_no_cell_of_the_table_holds_a_paragraph() -> None:
    long = "word " * 200
    vm = replace(
        GOOD, state="held", reason=long, hint=long, unproven=long, clock_slow=long, why=Reason.of(Code.PEER_LOST)
    )
    lines = list(status_view.whole(judge([vm, replace(KEPT, reason=long, hint=long)])))
    head = lines.index(next(line for line in lines if line.startswith("VM ")))
    assert len(lines[0]) < 140 and all(len(line) < 140 for line in lines[head : head + 3])
    assert sum(long in line for line in lines[head + 3 :]) >= 3, "below, all of it is told"


def test_rates_are_shown_only_while_they_last() -> None:
    going = replace(
        GOOD, epochs_per_s=19.9, bytes_per_s=1048576.0, pause_share=0.0512, epochs_for={"clock": 75, "disk": 25}
    )
    text = "\n".join(status_view.whole(judge([going])))
    for said in ("19.9/s", "1.0 MiB/s", "5.1 %", "cut for the fixed clock (75 %), a full write log of a disk (25 %)"):
        assert said in text
    assert "19.9/s" not in "\n".join(status_view.whole(judge([replace(going, state="held")])))
