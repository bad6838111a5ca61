# SPDX-License-Identifier: Apache-2.0
"""What is shipped: every folder is in the wheel, what it needs is declared, and its licence was looked at."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {"remusdb", "remusdb_agents"}
# Distribution to the licence that it is used under. An Apache-2.0 program cannot be shipped with what is GPL-2.0-only.
LICENCES = {
    "anyio": "MIT",
    "bcrypt": "Apache-2.0",
    "cffi": "MIT",
    "click": "BSD-3-Clause",
    "cryptography": "Apache-2.0",
    "h11": "MIT",
    "idna": "BSD-3-Clause",
    "invoke": "BSD-2-Clause",
    "jinja2": "BSD-3-Clause",
    "libvirt-python": "LGPL-2.1-or-later",
    "markdown-it-py": "MIT",
    "markupsafe": "BSD-3-Clause",
    "mdurl": "MIT",
    "msgspec": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "paramiko": "LGPL-2.1-or-later",
    "prometheus-client": "Apache-2.0",
    "psutil": "BSD-3-Clause",
    "pycparser": "BSD-3-Clause",
    "pygments": "BSD-2-Clause",
    "pynacl": "Apache-2.0",
    "pyroute2": "Apache-2.0",  # or GPL-2.0-or-later, as one likes
    "rich": "MIT",
    "starlette": "BSD-3-Clause",
    "typing-extensions": "PSF-2.0",
    "uvicorn": "BSD-3-Clause",
    "xxhash": "BSD-2-Clause",
    "zstandard": "BSD-3-Clause",
}
PARTS_OF_OTHERS = {"libvirt": "libvirt-python", "libvirt_qemu": "libvirt-python"}  # import name to distribution
IN_NBDKIT = {"nbdkit"}  # the module that nbdkit gives its plugins


def folders() -> set[str]:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "remusdb").rglob("__init__.py")}
    agents = {path.parent.relative_to(ROOT).parts for path in (ROOT / "agents").rglob("__init__.py")}
    return found | {".".join(parts[1:]) for parts in agents}


def imported() -> dict[str, str]:
    """Each top-level module that the product imports, with a file that does."""
    found = {}
    for path in [*(ROOT / "remusdb").rglob("*.py"), *(ROOT / "agents").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update({alias.name.partition(".")[0]: str(path) for alias in node.names})
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.partition(".")[0]] = str(path)
    return found


def requirements(names: set[str]) -> set[str]:
    """These distributions and what they require here, all the way down."""
    found, left = set(), set(names)
    while left:
        name = left.pop()
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another Python or system
        found.add(name)
        left |= {plain(need) for need in needs if "extra ==" not in need} - found
    return found


def plain(requirement: str) -> str:
    """The name in a requirement, as an index has it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def declared() -> set[str]:
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [*extras["setup"], *extras["console"]]  # what the .deb has, too
    return {plain(line) for line in [*PROJECT["project"]["dependencies"], *optional]}


def test_every_folder_is_in_the_wheel() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders()


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    others = imported().keys() - sys.stdlib_module_names - OURS - IN_NBDKIT
    assert {plain(PARTS_OF_OTHERS.get(name, name)) for name in others} == declared()


def test_the_licence_of_all_that_is_shipped_was_looked_at() -> None:
    assert requirements(declared()) <= LICENCES.keys(), "look at the licence first, then add it to the table"


def test_the_lock_has_all_that_is_declared_each_with_a_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([\w.-]+)==\S+((?: ;[^\\\n]+)?) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.M)
    locked = {plain(name) for name, _, _ in pins}
    assert len(pins) == len(re.findall(r"^[^ #\n]", lock, re.M)), "a line without version or hash"
    wanted = {
        plain(line) for line in PROJECT["dependency-groups"]["dev"] + PROJECT["project"]["optional-dependencies"]["lab"]
    }
    assert declared() | wanted <= locked, "run: make lock"
    assert "://" not in lock, "a mirror must do as well"


def test_the_whole_licence_and_the_types_are_shipped() -> None:
    assert "END OF TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license-files"] == ["LICENSE"]
    assert (ROOT / "remusdb/py.typed").exists() and (ROOT / "agents/remusdb_agents/py.typed").exists()
