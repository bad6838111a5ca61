# SPDX-License-Identifier: Apache-2.0
"""The fault matrix's representative cells, on real hosts: each ends as `tools/matrix/expect.py` has it.

The whole matrix is `make matrix`. What this run found is in build/matrix, its table in build/test.
"""

from __future__ import annotations

import json

import pytest

from tools.lab.paths import BUILD
from tools.matrix.__main__ import main
from tools.matrix.expect import CI, cells, expected
from tools.matrix.phases import Phase


def test_every_cell_has_an_expectation() -> None:
    """Also what does not apply says why; the subset names cells that exist and covers every phase."""
    assert all(expected(fault, phase).why for fault, phase in cells())
    names = {f"{fault.key}/{phase.value}" for fault, phase in cells()}
    assert set(CI) <= names
    assert {name.partition("/")[2] for name in CI} == {phase.value for phase in Phase}


@pytest.mark.timeout(1800)
def test_representative_cells(capsys: pytest.CaptureFixture[str]) -> None:
    document = BUILD / "test" / "fault-matrix.md"
    document.parent.mkdir(parents=True, exist_ok=True)
    status = main(["--cells", "ci", "--document", str(document)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["failed"] == {}
    assert (status, report["run"]) == (0, len(CI))
