# SPDX-License-Identifier: Apache-2.0
"""What vagrant/Vagrantfile uses: a box of the machines' image, its kernel and key, and what is brought to the hosts.

python -m tools.machines.box       makes it in build/vagrant, and prints where the box is
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from tools.lab.paths import BUILD
from tools.machines import image, payload

FOLDER = BUILD / "vagrant"
ADDRESSES = {"alpha": "192.168.77.11", "beta": "192.168.77.12"}  # as in the Vagrantfile
_VIRTUAL_GB = 6  # the disk's size: image.py


def make() -> Path:
    """The box for the libvirt provider, and all else. Raises subprocess.CalledProcessError when a step fails."""
    built = image.ensure()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for file in (built.kernel, built.initrd, image.key(built)):
        shutil.copy2(file, FOLDER)
    payload.collect(FOLDER / "payload", ADDRESSES, slow=False)
    disk = FOLDER / "box.img"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(built.disk), str(disk)], check=True, timeout=600)
    about = FOLDER / "metadata.json"
    about.write_text(json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": _VIRTUAL_GB}))
    box = FOLDER / "remusdb-host.box"
    with tarfile.open(box, "w:gz", compresslevel=1) as tar:
        for part in (about, disk):
            tar.add(part, part.name)
            part.unlink()
    return box


if __name__ == "__main__":
    print(make())
