# SPDX-License-Identifier: Apache-2.0
"""What a fuzz target is: a parser, samples that it accepts, and how they may be mutated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Shape = Literal["bytes", "json", "msgpack"]


@dataclass(frozen=True)
class Target:
    """`run` raises nothing but RemusError, whatever it is given, within TIME_S; it accepts each of the `samples`.

    `shape`: what samples are made of, for mutations that keep them readable; behind `head` bytes of our own.
    """

    run: Callable[[bytes], object]
    samples: Callable[[], list[bytes]]
    shape: Shape = "bytes"
    head: int = 0
    longest: int = 1 << 13  # bytes of an input


TIME_S = 4.0  # of a CPU for one input; the slowest sample takes 0.05
MEMORY_MIB = 1024  # of the process, which takes 250 before its first input
