# SPDX-License-Identifier: Apache-2.0
"""The fuzzer itself: what it begins with is accepted, its mutations stay readable, and a mistake is found and told."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.fuzz.mutate import mutated, structured
from tests.fuzz.target import Target
from tests.fuzz.targets_local import TARGETS as LOCAL
from tests.fuzz.targets_release import TARGETS as RELEASE
from tests.fuzz.targets_wire import TARGETS as WIRE

ROOT = Path(__file__).parent.parent.parent
ALL = {**WIRE, **LOCAL, **RELEASE}


@pytest.mark.parametrize("target", ALL.values(), ids=ALL)
def test_a_parser_accepts_the_samples_of_its_target(target: Target) -> None:
    """One that refuses them is fuzzed at its first check alone."""
    samples = target.samples()
    assert samples and all(len(sample) <= target.longest for sample in samples)
    for sample in samples:
        target.run(sample)


@pytest.mark.parametrize("shape", ["json", "msgpack"])
def test_most_mutations_can_be_read(shape: str) -> None:
    codec = getattr(msgspec, shape)
    value = {"vm": "db1", "term": 7, "disks": [{"target": "vda", "size": 1.5}, {}], "resume": False}
    mutate, read, other = structured(shape, 1), 0, 0
    for seed in range(400):
        made = mutate(b"\7" + codec.encode(value), 4096, seed)
        assert len(made) <= 4096
        try:
            other += codec.decode(made[1:]) != value
            read += 1
        except (ValueError, RecursionError):
            continue
    assert read > 200 and other > 200
    assert mutated([], random.Random(1)) is not None


@pytest.mark.slow
@pytest.mark.timeout(600)  # two processes that import everything, instrumented, beside whatever else runs
def test_a_mistake_is_found_and_how_to_see_it_again_is_told() -> None:
    done = run("-m", "tests.fuzz", "--runs", "200000", "planted")
    assert done.returncode == 1 and "UnicodeDecodeError" in done.stdout
    again = next(line for line in done.stdout.splitlines() if line.startswith("again: "))
    assert run(*again.split()[2:]).returncode != 0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
