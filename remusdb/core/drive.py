# SPDX-License-Identifier: Apache-2.0
"""Perform what a core decides, one effect after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

Effect = TypeVar("Effect")


def drive(
    decisions: Generator[Effect, None, None],
    perform: Callable[[Effect], object],
    lock: AbstractContextManager[object] | None = None,
) -> None:
    """Perform each effect before the decision goes on. What it raises is raised in the decision, where it stands; what
    that does not catch, or raises itself, ends it and is raised here. `lock`: held while it decides, not while it
    performs."""
    failed: Exception | None = None
    while True:
        with lock or nullcontext():
            try:
                effect = next(decisions) if failed is None else decisions.throw(failed)
            except StopIteration:
                return
        try:
            perform(effect)
            failed = None
        except Exception as exc:  # whatever it is: it is the core's to decide what follows
            failed = exc
