# SPDX-License-Identifier: Apache-2.0
"""One target, for as long as its process lives: `python -m tests.fuzz.one TARGET [libFuzzer's options and inputs]`.

With the path of an input it runs that one alone, which is how a finding is looked at.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
import time
from pathlib import Path

import atheris

with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # each module is named
    with atheris.instrument_imports(include=["remusdb", "remusdb_agents"], enable_loader_override=False):
        from tests.fuzz import targets_local, targets_release, targets_wire

from remusdb.errors import RemusError
from tests.fuzz.mutate import structured
from tests.fuzz.target import MEMORY_MIB, TIME_S, Target


def _planted(data: bytes) -> None:
    if data[:1] == b"\xff":
        data.decode()


PLANTED = "planted"  # a parser with a mistake: that it is found is a test of all this
TARGETS: dict[str, Target] = {**targets_wire.TARGETS, **targets_local.TARGETS, **targets_release.TARGETS}
MISTAKEN = {PLANTED: Target(_planted, lambda: [b"plain"])}


def fuzz(name: str, options: list[str]) -> None:
    """Does not return: libFuzzer ends the process, with its own exit code."""
    target = (TARGETS | MISTAKEN)[name]
    logging.disable()
    _bound_memory()

    def one(data: bytes) -> None:
        began = time.thread_time()
        with contextlib.suppress(RemusError):
            target.run(data)
        if (took := time.thread_time() - began) > TIME_S:
            raise AssertionError(f"this input took {took:.1f} s")

    mutator = {} if target.shape == "bytes" else {"custom_mutator": structured(target.shape, target.head)}
    bounds = [f"-max_len={target.longest}", f"-rss_limit_mb={MEMORY_MIB}", "-timeout=120"]
    atheris.Setup([name, *bounds, *options], one, **mutator)
    atheris.Fuzz()


def put_samples(name: str, folder: Path) -> None:
    """The corpus to begin with."""
    for number, sample in enumerate((TARGETS | MISTAKEN)[name].samples()):
        (folder / f"sample{number}").write_bytes(sample)


def _bound_memory() -> None:
    """What an input makes the process claim beyond its share is a MemoryError, and so a finding."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (MEMORY_MIB << 20), resource.RLIM_INFINITY))


if __name__ == "__main__":
    fuzz(sys.argv[1], sys.argv[2:])
