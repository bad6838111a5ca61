# SPDX-License-Identifier: Apache-2.0
"""The wheel, of a copy of the sources: setuptools keeps what it built, and would ship modules that are gone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.lab.paths import REPO

SOURCES = ("remusdb", "agents", "pyproject.toml", "README.md", "LICENSE")


def build(to: Path) -> Path:
    """Build it in folder `to`; the file. subprocess.CalledProcessError where pip fails."""
    with tempfile.TemporaryDirectory() as folder:
        copy, made = Path(folder) / "sources", Path(folder) / "made"
        copy.mkdir()
        for name in SOURCES:
            if (REPO / name).is_dir():
                shutil.copytree(
                    REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
                )
            else:
                shutil.copy(REPO / name, copy / name)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel"]
        command = [*pip, "--no-deps", "--no-build-isolation", "-w", str(made), str(copy)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=300)
        (wheel,) = made.glob("*.whl")
        return Path(shutil.move(wheel, to / wheel.name))
