# SPDX-License-Identifier: Apache-2.0
"""What this Debian is, and where its apt gets packages from."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path


def codename() -> str:
    """`bookworm`, `trixie`, ... Raises RuntimeError on a system that is no Debian release."""
    name = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if not name:
        raise RuntimeError("/etc/os-release names no VERSION_CODENAME: this is not a Debian release")
    return name


def mirror() -> str:
    """The mirror that apt uses for this release, so that no mirror has to be named anywhere else.

    Raises RuntimeError when apt has no source for it.
    """
    suite = codename()
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {suite}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()
    if not listed:
        raise RuntimeError(f"apt has no source for {suite}")
    return listed[0]


def proxy_options() -> list[str]:
    """apt's own settings for how to reach a mirror, as lines for another apt."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True, timeout=60).stdout
    return [line for line in dump.splitlines() if line.startswith(("Acquire::http", "Acquire::https"))]


def bootstrap(
    root: Path,
    suites: Sequence[str],
    *,
    packages: Sequence[str] = (),
    left_out: Sequence[str] = (),
    essential_hooks: Sequence[str] = (),
    hooks: Sequence[str] = (),
) -> list[str]:
    """The command that makes a small Debian in the folder `root`, from the mirror that apt uses here.

    `suites`: the release, and others of it whose packages may be taken; `packages`: besides the smallest ones, with
    nothing that they only recommend; `left_out`: paths that are not unpacked; hooks: mmdebstrap's.
    """
    options = ['Apt::Install-Recommends "false"', *proxy_options()]
    return [
        # A mount namespace of its own: a build that is killed leaves no mounts behind.
        *("unshare", "--mount", "--propagation", "private"),
        *("mmdebstrap", "--variant=minbase", "--format=directory", "--dpkgopt=force-unsafe-io"),
        *([f"--include={','.join(packages)}"] if packages else []),
        *(f"--aptopt={option}" for option in options),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in left_out),
        *(f"--essential-hook={hook}" for hook in essential_hooks),
        *(f"--customize-hook={hook}" for hook in hooks),
        *(suites[0], str(root), *(f"deb {mirror()} {suite} main" for suite in suites)),
    ]
