# SPDX-License-Identifier: Apache-2.0
"""What SECURITY.md says is held is held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tests_that_it_names_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"`((?:tests/)?(?:[a-z]+/)?test_\w+\.py|tests/[a-z]+/?)`", text))
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists() or list((ROOT / "tests").rglob(name)), f"SECURITY.md names {name}"


def test_what_it_points_to_is_there() -> None:
    for page in ("SECURITY.md", "README.md", "docs/guarantees.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page} points to {link}"
