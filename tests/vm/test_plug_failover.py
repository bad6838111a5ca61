# SPDX-License-Identifier: Apache-2.0
"""A failover with the plug gate, in a guest with Debian's kernel: not every kernel has sch_plug.

The guest runs this very checkout (tools/lab/kernelguest), so two hosts with libvirt, QEMU and remusdb are in there, all
emulated, and their VM is emulated twice. The test itself is tests/plug, which runs anywhere with such a kernel.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.lab import kernelguest

LIMIT_S = 1200  # beside other tests; 3 minutes on an idle machine
# Without plugins that nothing there uses: an import takes seconds.
JOB = f"""export COLUMNS=200 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
options="-p no:xdist -p no:_hypothesis_pytestplugin -p no:cacheprovider -W ignore::ResourceWarning"
python -m pytest $options -o timeout={LIMIT_S} -v --tb=short --color=no --basetemp=/tmp/t tests/plug
code=$?
[ $code = 0 ] || tail -n 40 $(find /tmp/t -name '*.log')
exit $code"""


@pytest.mark.timeout(LIMIT_S + 120)  # the kernel may have to be downloaded first
def test_a_failover_with_the_plug_gate_on_debians_kernel(tmp_path: Path) -> None:
    said = kernelguest.run(JOB, LIMIT_S, tmp_path)
    assert said.code == 0 and " PASSED " in said.text, said.text[-8000:]
