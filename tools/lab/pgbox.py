# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server with remusdb_mark, in a clean Debian of its own: made once by mmdebstrap, seen by an overlay.

For the extension that runs in a guest (agents/guest/postgresql): Debian 12 has PostgreSQL 15, Debian 13 has 17.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.lab import box
from tools.lab.paths import REPO

VERSIONS = {"bookworm": 15, "trixie": 17}
SOURCE = REPO / "agents/guest/postgresql"
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/lib/llvm*")
# The overlay is in memory. The shell stays, as the first process of a PID namespace: its end is that of all it started.
# A program that changes its user, as the server does, would no longer be told that its parent died.
_RUN = """\
set -eu
mount -t tmpfs remusdb "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay remusdb -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
cp -r "$3" "$2/root/source"
chroot "$2/root" sh -euxc '
    bin=/usr/lib/postgresql/$1/bin
    make -s -C /source with_llvm=no PG_CONFIG=$bin/pg_config install
    as="setpriv --reuid postgres --regid postgres --clear-groups"
    $as $bin/initdb -A trust -U postgres -D /tmp/data
    echo "$2" >> /tmp/data/postgresql.conf
    $as $bin/postgres -D /tmp/data -c listen_addresses=127.0.0.1,::1 -c unix_socket_directories=/tmp \\
        -c max_prepared_transactions=2 -c shared_preload_libraries=remusdb_mark
' sh "$4" "$5"
:
"""


def ensure(codename: str, log: Path) -> Path:
    """The folder of that Debian, made first if there is none (a minute or two)."""
    server = VERSIONS[codename]
    packages = (f"postgresql-{server}", f"postgresql-server-dev-{server}", *"libkrb5-dev make gcc libc6-dev".split())
    return box.ensure("pgbox", codename, packages, _LEFT_OUT, log)


@contextlib.contextmanager
def server(root: Path, codename: str, setting: str, log: Path) -> Iterator[None]:
    """Runs on port 5432 of loopback in this thread's network namespace, with `setting` in its configuration.

    The extension is built from the source there. `root`: of `ensure`. Words of make and of the server go to `log`.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("w") as out:
        places = [str(root), folder, str(SOURCE), str(VERSIONS[codename]), setting]
        process = subprocess.Popen(
            [*box.OWN, "sh", "-c", _RUN, "sh", *places],
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
