# SPDX-License-Identifier: Apache-2.0
"""Whether a VM ends: a QEMU that goes down closes its disks first, and its process may take a while to go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remusdb.core.primary_events import VmEnds, VmLives
from remusdb.errors import LibvirtAway, VmError
from remusdb.reasons import Code
from remusdb.worker import vm_end

SOON_S, LATE_S = 0.1, 2.0


def resources(ends_after_s: float, answer: Exception | None, *, coming: bool = False) -> Any:
    """A VM whose QEMU ends so long after it was first looked at, and says this on its monitor."""

    def qmp(_command: str) -> None:
        if answer is not None:
            raise answer

    domain = SimpleNamespace(ends_within=lambda seconds: seconds >= ends_after_s, qmp=qmp, exited_well=lambda: True)
    return SimpleNamespace(domain=domain, end=SimpleNamespace(coming=coming, by_signal=False))


NEVER_S = 1000.0


@pytest.mark.parametrize(
    ("ends_after_s", "answer", "coming", "ends"),
    [
        (SOON_S, None, False, True),
        (LATE_S, VmError("domain is not running"), False, True),  # `virsh destroy`, on a busy host: nobody was told
        (LATE_S, None, True, True),
        (NEVER_S, None, False, False),
        (NEVER_S, VmError("the monitor is stuck"), False, False),
        (NEVER_S, LibvirtAway("libvirtd is gone"), False, False),
    ],
)
def test_whether_a_vm_ends(ends_after_s: float, answer: Exception | None, coming: bool, ends: bool) -> None:
    found = vm_end.look(resources(ends_after_s, answer, coming=coming))
    assert found == (VmEnds(crashed=False) if ends else VmLives())


@pytest.mark.parametrize(("exited_well", "crashed"), [(True, False), (False, True), (None, False)])
def test_a_qemu_that_init_has_reaped_is_not_called_crashed(exited_well: bool | None, crashed: bool) -> None:
    """systemd reaps at once: the backup does not begin to count before libvirt has said who ended the VM."""
    gone = resources(SOON_S, None)
    gone.domain.exited_well = lambda: exited_well
    assert vm_end.look(gone) == VmEnds(crashed=crashed)


def test_libvirts_word_is_waited_for_where_nothing_else_tells(tmp_path: Path) -> None:
    gone = resources(SOON_S, None)
    gone.end.words, gone.end.why, gone.told = "", Code.ENDED_BY_DESTROY, False

    def await_word(timeout_s: float) -> None:
        gone.told = gone.told or timeout_s >= LATE_S  # which comes so late

    gone.end.await_word, gone.domain.exited_well = await_word, lambda: None
    gone.domain.was_shut_down = lambda: gone.told
    assert vm_end.who_ended_it(gone, tmp_path).wanted
