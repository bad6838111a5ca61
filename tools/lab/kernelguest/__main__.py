# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.lab.kernelguest 'COMMAND'`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tools.lab.kernelguest import run

TIMEOUT_S = 900

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        said = run(" ".join(sys.argv[1:]) or "uname -a", TIMEOUT_S, Path(work))
    print(said.text)
    sys.exit(1 if said.code is None else said.code)
