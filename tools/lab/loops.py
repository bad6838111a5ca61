# SPDX-License-Identifier: Apache-2.0
"""Block devices for the lab's VMs: loop devices over files in a lab's folder, by which they are found again.

They belong to the machine, not to a namespace: `release` takes a lab's away, also after the lab was killed.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def attach(file: Path, size_mib: int) -> Path:
    """A block device of this size over a new, sparse `file`; RuntimeError when the machine has none left."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as made:
        made.truncate(size_mib << 20)
    done = subprocess.run(
        ["losetup", "--find", "--show", "--", str(file)], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        raise RuntimeError(f"no loop device for {file}: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def release(folder: Path) -> None:
    """Detach every loop device over a file in this folder. One that is still open goes when it is closed."""
    shown = subprocess.run(
        ["losetup", "--list", "--json", "--output", "NAME,BACK-FILE"], capture_output=True, text=True, timeout=30
    )
    for loop in json.loads(shown.stdout or "{}").get("loopdevices", []):
        if str(loop["back-file"]).startswith(f"{folder}/"):
            subprocess.run(["losetup", "--detach", loop["name"]], check=False, timeout=30)
