# SPDX-License-Identifier: Apache-2.0
"""The plug gate, which not every kernel has: the gates' contract and one failover, in a guest with Debian's kernel.

The guest runs this very checkout (tools/lab/kernelguest), so these are the files that also run elsewhere: the contract
of tests/host for the plug gate, and tests/plug. It says on its serial line how each test went.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.lab import kernelguest

CONTRACT, FAILOVER = "tests/host/test_gate_contract.py", "tests/plug/test_failover.py"
LEAST_TESTS = 30  # fewer means that the file did not run as a whole
LIMIT_S = 1200
JOB = f"""export REMUSDB_TEST_GATES=plug COLUMNS=200
python -m pytest -o timeout={LIMIT_S} -v --tb=short --color=no --durations=5 --basetemp=/tmp/t {CONTRACT} {FAILOVER}
code=$?
[ $code = 0 ] || tail -n 40 $(find /tmp/t -name '*.log')
exit $code"""


@pytest.mark.timeout(LIMIT_S + 120)  # the kernel may have to be downloaded first
def test_contract_and_failover_with_plug_on_debians_kernel(tmp_path: Path) -> None:
    said = kernelguest.run(JOB, LIMIT_S, tmp_path)
    passed = re.findall(r"^(tests/\S+)::(\S+\[.*?\]|\S+).* PASSED", said.text, re.MULTILINE)
    failed = re.findall(r" (FAILED|ERROR|SKIPPED|XFAIL)\b.*", said.text)
    assert said.code == 0 and not failed, said.text[-8000:]
    contract = [name for file, name in passed if file == CONTRACT]
    assert len(contract) >= LEAST_TESTS and all("plug" in name for name in contract), said.text[-8000:]
    assert [file for file, _ in passed if file != CONTRACT] == [FAILOVER]
