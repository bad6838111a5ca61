# SPDX-License-Identifier: Apache-2.0
"""What is written in C because it touches every byte of every page (`kernels.c`) or is done a hundred times in a stop
(`scan.c`), or because it touches each row of an answer (`release.c`). core/pagework.py and capture/pagemap.py have the
same in numpy, core/release/skip.py in Python.

`kernels` is None where it was not built (no C compiler), or where REMUSDB_KERNELS=numpy asks for the other one.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def _load() -> ModuleType | None:
    if os.environ.get("REMUSDB_KERNELS") == "numpy":
        return None
    try:
        return importlib.import_module("remusdb.native.kernels")
    except ImportError:
        return None


kernels = _load()
