# SPDX-License-Identifier: Apache-2.0
"""A MariaDB server in a clean Debian of its own: made once by mmdebstrap, seen by an overlay in memory.

For what a server says on the wire (tools/lab/mariasays.py): Debian 12 has MariaDB 10.11, Debian 13 has 11.8.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.lab import box

CODENAMES = ("bookworm", "trixie")
_PACKAGES = ("mariadb-server",)
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
# As in pgbox: the shell is the first process of a PID namespace, so its end is that of all it started.
_RUN = """\
set -eu
mount -t tmpfs remusdb "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay remusdb -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
chroot "$2/root" sh -euxc '
    mariadb-install-db --force --user=mysql --datadir=/tmp/data --auth-root-authentication-method=normal --skip-test-db
    setpriv --reuid mysql --regid mysql --clear-groups mariadbd --no-defaults --datadir=/tmp/data \\
        --socket=/tmp/mariadb.sock --bind-address=127.0.0.1 --local-infile=1 --max-allowed-packet=64M
'
:
"""


def ensure(codename: str, log: Path) -> Path:
    """The folder of that Debian, made first if there is none (a minute or two)."""
    return box.ensure("mariabox", codename, _PACKAGES, _LEFT_OUT, log)


@contextlib.contextmanager
def server(root: Path, log: Path) -> Iterator[None]:
    """Runs on port 3306 of loopback in this thread's network namespace; root has no password. `root`: of `ensure`."""
    with tempfile.TemporaryDirectory() as folder, log.open("w") as out:
        process = subprocess.Popen(
            [*box.OWN, "sh", "-c", _RUN, "sh", str(root), folder],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
        try:
            yield
        finally:
            process.kill()
            process.wait(30)
