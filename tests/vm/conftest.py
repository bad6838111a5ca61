# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the vm tier: one pair of hosts a module, a missing prerequisite fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.pair import Pair, running_pair

REPO = Path(__file__).resolve().parents[2]
# They take minutes each: one that begins last leaves a core idle until its end. With `--no-loadscope-reorder`.
LONGEST = (
    "test_upgrade",
    "test_plug_failover",
    "test_failover",
    "test_plug_gate",
    "test_runbooks",
    "test_direct_reads",
    "test_life",
)


def pytest_configure(config: pytest.Config) -> None:
    """A lab has sockets and processes by the dozen: one that is left to the collector is no reason to fail."""
    config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they come."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two hosts with the product running; its logs stay in build/test/MODULE/."""
    with running_pair(REPO / "build" / "test" / request.module.__name__) as made:
        yield made


@pytest.fixture(autouse=True)
def no_vm_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that used the pair, also a failed one: no VM, no session, both daemons up."""
    yield
    if "pair" in request.fixturenames:
        request.getfixturevalue("pair").clear()
