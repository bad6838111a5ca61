# SPDX-License-Identifier: Apache-2.0
"""Mutations that keep JSON and msgpack readable: the parsers behind them are in C, where the fuzzer sees nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 255, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 53, (1 << 62) - 1, 1 << 62, (1 << 63) - 1,
    (1 << 64) - 1, -(1 << 63), 0.0, -1.5, 1e308, "", "x", "a/b", "../x", "\0", "\n", "\x1b]0;x\x07", "\u202e",
    "\N{GRINNING FACE}", "x" * 300, "-1", "0x1", "0-99999", "192.0.2.1", "::", "2001:db8::1", "fe80::1%eth0", "01",
    "1e5", "<domain/>", [], {}, [None], {"": None},
]  # fmt: skip
DEEPEST = 3000


def mutated(value: Any, chance: random.Random) -> Any:
    """`value` with something changed in one place, or a few."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        value = _changed(value, chance)
    return value


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        match chance.randrange(12):
            case 0:
                return {name: of for name, of in value.items() if name != key}
            case 1:
                return {**value, _odd_key(chance): chance.choice(ODD)}
            case 2:
                return {**value, key: value[chance.choice(list(value))]}
            case _:
                return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value[:at], *[value[at]] * chance.choice((2, 3, 40)), *value[at + 1 :]]
            case 2:
                return [*value, chance.choice(ODD)]
            case _:
                return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    return _other(value, chance)


def _other(value: Any, chance: random.Random) -> Any:
    """Something in the place of a plain value: near to it as often as not."""
    if chance.random() < 0.02:
        return _deep(chance)
    if isinstance(value, bool) or value is None or chance.random() < 0.4:
        return chance.choice(ODD)
    if isinstance(value, int):
        return max(-(1 << 63), min((1 << 64) - 1, value + chance.choice((-1, 1, 7, 1 << 24, 1 << 40, -value * 2))))
    if isinstance(value, float):
        return value * chance.choice((-1.0, 0.0, 1e-9, 1e9))
    if isinstance(value, str):
        at = chance.randrange(len(value) + 1)
        return value[:at] + str(chance.choice(ODD)) + value[at + chance.choice((0, 0, 1, 3)) :]
    if isinstance(value, bytes):
        return chance.choice((b"", value[:-1], value + b"\0", value * 2, b"\xff" * len(value)))
    return chance.choice(ODD)


def _deep(chance: random.Random) -> Any:
    value: Any = chance.choice(ODD)
    for _ in range(chance.choice((10, 400))):
        value = [value] if chance.random() < 0.5 else {"x": value}
    return value


def _odd_key(chance: random.Random) -> str:
    return chance.choice(("", "x", "vm", "term", "error", "\0", "type"))


def flat(data: bytes, longest: int, chance: random.Random) -> bytes:
    """Bytes changed as bytes. libFuzzer's own way of it cannot be called from a mutator (atheris 3.0)."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at, size = chance.randrange(len(made) + 1), chance.choice((1, 1, 2, 4, 8, 64))
        match chance.randrange(5):
            case 0:
                del made[at : at + size]
            case 1:
                made[at:at] = made[at : at + size]
            case 2:
                made[at:at] = chance.randbytes(size)
            case 3:
                made[at : at + size] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"0", b'"', b"[", b"\\")) * size
            case _:
                made[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(made[:longest])


def structured(shape: str, head: int) -> Callable[[bytes, int, int], bytes]:
    """A mutator for libFuzzer of inputs that are `head` bytes and then such a value."""
    codec: Any = msgspec.json if shape == "json" else msgspec.msgpack

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.3:
            return flat(data, longest, chance)
        try:
            value = codec.decode(data[head:])
            made: bytes = data[:head] + codec.encode(mutated(value, chance))
        except (ValueError, RecursionError, OverflowError, TypeError):
            return flat(data, longest, chance)
        if shape == "json" and chance.random() < 0.05:  # deeper than any encoder goes
            made = made.replace(b"null", b"[" * DEEPEST + b"]" * DEEPEST, 1)
        return made if len(made) <= longest else flat(data, longest, chance)

    return mutate
