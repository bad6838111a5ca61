# SPDX-License-Identifier: Apache-2.0
"""What a bug report about a VM needs of this host, and from where. Nothing is changed, and no guest's data is read.

Invariant: what cannot be had does not keep the rest from being had; the bundle says what it lacks, and why.
"""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from remusdb import __version__
from remusdb.diagnose import places
from remusdb.diagnose.bundle import Bundle
from remusdb.diagnose.places import Unread
from remusdb.diagnose.scrub import scrub, scrub_value, scrub_xml
from remusdb.errors import RemusError
from remusdb.names import file_stem
from remusdb.printable import json_text, printable

FILE_MAX_BYTES: Final = 1 << 20
JOURNAL_LINES: Final = "8000"
UNITS: Final = ("remusdb-host", "remusdb-agent", "remusdb-evacuate", "libvirtd", "virtqemud")
PACKAGES: Final = ("click", "cryptography", "libvirt-python", "msgspec", "numpy", "psutil", "pyroute2", "zstandard")
URI: Final = "qemu:///system"
PROGRAMS: Final = {
    "versions/libvirt": ("virsh", "-c", URI, "version"),
    "versions/qemu": ("qemu-system-x86_64", "--version"),
    "versions/nbdkit": ("nbdkit", "--version"),
    "host/vms": ("virsh", "-c", URI, "list", "--all"),
    "host/memory": ("free", "-m"),
    "host/disks": ("df", "-hT", "-x", "tmpfs", "-x", "overlay"),
    "host/links": ("ip", "-br", "link"),
    "logs/kernel": ("journalctl", "-k", "-n", "400", "--no-pager", "-o", "short-iso-precise"),
}


@dataclass(frozen=True)
class Places:
    """Where things are on this host."""

    state_dir: Path = Path("/var/lib/remusdb")
    etc: Path = Path("/etc/remusdb")
    libvirt_logs: Path = Path("/var/log/libvirt")
    os_release: Path = Path("/usr/lib/os-release")


Question = Callable[[], object]  # of a daemon; raises RemusError


def collect(vm: str, bundle: Bundle, at: Places, questions: Mapping[str, Question]) -> None:
    """Put all there is about this VM on this host into the bundle."""
    _versions(bundle, at)
    for name, ask in questions.items():
        with _noted(bundle, f"told/{name}.json"):
            told = scrub_value(msgspec.to_builtins(ask(), enc_hook=str))
            bundle.add_scrubbed(f"told/{name}.json", json_text(told, indent=1))
    stem = file_stem(vm)
    for below in ("", "host", "agent"):  # one folder of both daemons, or one of each
        folder = at.state_dir / below
        for kind, file in (("vms", f"{stem}.json"), ("history", f"{stem}.jsonl")):
            if file in places.names(folder / kind, stem):
                _json_lines(bundle, folder / kind / file, "/".join(filter(None, (kind, below, file))))
    for config in ("host.toml", "agent.toml"):
        _config(bundle, at.etc / config)
    _listing(bundle, at.etc)
    _definitions(vm, bundle)
    _logs(vm, bundle, at)


@contextlib.contextmanager
def _noted(bundle: Bundle, name: str) -> Iterator[None]:
    """What is not to be had is noted, and the rest goes on."""
    try:
        yield
    except Unread as exc:
        bundle.lacks(name, exc)
    except RemusError as exc:
        bundle.lacks(name, f"{exc.id} {exc}")
    except (OSError, ValueError, RecursionError) as exc:
        bundle.lacks(name, f"{type(exc).__name__}: {exc}")


def _versions(bundle: Bundle, at: Places) -> None:
    lines = [f"remusdb {__version__}", f"python {sys.version.split()[0]}", f"kernel {platform.release()}"]
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            lines.append(f"{name} {metadata.version(name)}")
    bundle.add("versions/remusdb", "\n".join(lines))
    _tail(bundle, at.os_release, "versions/os-release")
    for name, command in PROGRAMS.items():
        with _noted(bundle, name):
            bundle.add(name, places.printed(command, FILE_MAX_BYTES))


def _tail(bundle: Bundle, path: Path, name: str) -> None:
    with _noted(bundle, name):
        text, whole = places.tail(path, FILE_MAX_BYTES)
        bundle.add(name, text if whole else f"[its beginning is left out]\n{text}")


def _json_lines(bundle: Bundle, path: Path, name: str) -> None:
    """A state file or a history: by the names of its keys; a line that is no JSON is taken as a text."""
    with _noted(bundle, name):
        text, _whole = places.tail(path, FILE_MAX_BYTES)
        lines = []
        for line in [text] if path.suffix == ".json" else text.splitlines():
            try:
                lines.append(json_text(scrub_value(msgspec.json.decode(line))))
            except (ValueError, RecursionError):
                lines.append(printable(scrub(line)))
        bundle.add_scrubbed(name, "\n".join(lines))


def _config(bundle: Bundle, path: Path) -> None:
    """What a file sets. Without its comments: they are written for nobody else."""
    name = f"etc/{path.name}"
    with _noted(bundle, name):
        text, _whole = places.tail(path, FILE_MAX_BYTES)
        try:
            bundle.add_scrubbed(name, json_text(scrub_value(tomllib.loads(text)), indent=1))
        except (tomllib.TOMLDecodeError, RecursionError) as exc:
            kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
            bundle.add(name, "\n".join([f"[it is no TOML: {exc}]", *kept]))


def _listing(bundle: Bundle, folder: Path) -> None:
    """Which files are there, whose, how large: of the keys' folder that is all that is told."""
    lines = []
    for below in ("", "tls", "hooks.d"):
        for name in places.names(folder / below):
            with contextlib.suppress(OSError):
                found = (folder / below / name).lstat()
                lines.append(f"{stat.filemode(found.st_mode)} {found.st_uid} {found.st_size} {Path(below, name)}")
    bundle.add("etc/files", "\n".join(lines))


def _definitions(vm: str, bundle: Bundle) -> None:
    for name, options in (("vm/running.xml", ()), ("vm/inactive.xml", ("--inactive",))):
        with _noted(bundle, name):
            xml = places.printed(("virsh", "-c", URI, "dumpxml", *options, "--", vm), FILE_MAX_BYTES)
            bundle.add_scrubbed(name, scrub_xml(xml))


def _logs(vm: str, bundle: Bundle, at: Places) -> None:
    units = [part for unit in UNITS for part in ("-u", unit)]
    with _noted(bundle, "logs/journal"):
        command = ("journalctl", *units, "-n", JOURNAL_LINES, "--no-pager", "-o", "short-iso-precise")
        bundle.add("logs/journal", places.printed(command, 2 * FILE_MAX_BYTES))
    qemu = at.libvirt_logs / "qemu"
    if "/" not in vm:
        for name in places.names(qemu, f"{vm}.log"):  # and those that were rotated
            if name == f"{vm}.log" or name.removeprefix(f"{vm}.log.").isdigit():
                _tail(bundle, qemu / name, f"logs/qemu/{name}")
    for name in places.names(at.libvirt_logs, end=".log"):
        _tail(bundle, at.libvirt_logs / name, f"logs/libvirt/{name}")


def finish(bundle: Bundle, vm: str) -> None:
    """The table of what is in it and what is not, and why: the last entry."""
    bundle.close_with("contents.json", {"vm": vm, "host": os.uname().nodename})
