# SPDX-License-Identifier: Apache-2.0
"""What the .deb depends on, and what it has to bring: decided from pyproject.toml and packaging/deb/debian.toml.

One .deb is for both Debians. A Python package that a Debian has in a version new enough for pyproject.toml comes from
there; any other is in the .deb, as requirements.lock pins it, in a folder that only the Python of that Debian reads.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

from tools.lab.paths import REPO

DEBIANS = ("bookworm", "trixie")


@dataclass(frozen=True)
class Debian:
    """One release of Debian."""

    codename: str
    python: str  # 3.11
    has: dict[str, str]  # a distribution of PyPI -> the version of Debian's package of it
    needs: dict[str, list[str]]

    def fits(self, requirement: Requirement) -> bool:
        """Whether Debian's own package is new enough."""
        found = self.has.get(requirement.name)
        return found is not None and Version(upstream(found)) in requirement.specifier

    def brought(self) -> list[str]:
        """The distributions that the .deb has to bring for this Debian."""
        found = [requirement.name for requirement in [*required(), *extra()] if not self.fits(requirement)]
        more = [need for name in found for need in self.needs.get(name, ())]
        return sorted({*found, *more})


def debians() -> list[Debian]:
    """Those that the .deb is for, the older one first."""
    read = tomllib.loads((REPO / "packaging/deb/debian.toml").read_text())
    tables = {name: dict(read[name]) for name in DEBIANS}
    return [Debian(name, table.pop("python"), table, read["needs"]) for name, table in tables.items()]


def required() -> list[Requirement]:
    """What pyproject.toml says that the installed product needs."""
    return [Requirement(line) for line in _project()["dependencies"]]


def extra() -> list[Requirement]:
    """What `remusdb setup` and `remusdb console` need besides, which a host can do without."""
    extras = _project()["optional-dependencies"]
    return [Requirement(line) for name in ("setup", "console") for line in extras[name]]


def depends() -> str:
    """The Python part of `Depends`. `python3 (<< 3.12)` is Debian 12, for which the .deb brings what that one lacks."""
    old, new = debians()
    parts = [f"python3 (>= {new.python}) | python3 (<< 3.12)", f"python3 (>= {old.python})", "python3 (<< 3.14)"]
    return ", ".join([*parts, *_packages(required())])


def recommends() -> str:
    """The Python part of `Recommends`."""
    return ", ".join(_packages(extra()))


def _packages(requirements: list[Requirement]) -> Iterator[str]:
    old, new = debians()
    for requirement in requirements:
        if not new.fits(requirement):
            continue
        least = min(specifier.version for specifier in requirement.specifier)
        package = f"{debian_name(requirement.name)} (>= {_epoch(new.has[requirement.name])}{least})"
        yield package if old.fits(requirement) else f"{package} | python3 (<< 3.12)"


def locked(debian: Debian) -> str:
    """The part of requirements.lock that the .deb brings for this Debian: versions and hashes, without markers."""
    environment = {
        "python_version": debian.python,
        "python_full_version": f"{debian.python}.0",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "sys_platform": "linux",
    }
    lines, wanted = [], set(debian.brought())
    pin = re.compile(r"^([\w.-]+)(==[^\s;]+)(?: ; ([^\\\n]+))? \\\n((?: +--hash=\S+(?: \\)?\n)+)", re.MULTILINE)
    for name, version, marker, hashes in pin.findall((REPO / "requirements.lock").read_text()):
        if name in wanted and (not marker or Marker(marker).evaluate(environment)):
            wanted.remove(name)
            lines.append(f"{name}{version} \\\n{hashes}")
    if wanted:
        raise ValueError(f"requirements.lock does not have {', '.join(sorted(wanted))}: run `make lock`")
    return "".join(lines)


def version() -> str:
    """The product's version, from the one place that has it."""
    found = re.search(r'^__version__ = "(.+)"$', (REPO / "remusdb/__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError("remusdb/__init__.py has no __version__")
    return found[1]


def debian_name(distribution: str) -> str:
    """Debian's package of a distribution."""
    return f"python3-{distribution.removesuffix('-python')}"


def upstream(debian_version: str) -> str:
    """`1.24.2` of `1:1.24.2-1+deb12u1`; of one that was taken back (`8.2.0+0.really.8.1.8`), what it really is."""
    number = debian_version.rpartition(":")[2].rpartition("-")[0]
    return number.rpartition("really.")[2].partition("+")[0]


def _epoch(debian_version: str) -> str:
    epoch, colon, _ = debian_version.rpartition(":")
    return epoch + colon


def _project() -> dict[str, Any]:
    read: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    return read
