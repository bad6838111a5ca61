# SPDX-License-Identifier: Apache-2.0
"""What a peer or a guest says is shown as one bounded line that no terminal obeys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.printable import REPLACEMENT, TEXT_MAX_BYTES, printable

ANY_TEXT = st.text(st.characters(), max_size=3000)  # lone surrogates, too


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("agent beta: disk vda is full", "agent beta: disk vda is full"),
        ("Gerät 'größer' 日本", "Gerät 'größer' 日本"),
        ("\x1b]0;owned\x07", f"{REPLACEMENT}]0;owned{REPLACEMENT}"),
        ("a\nb\tc\r\nd", "a b c  d"),
        ("\x00\x7f\x9b31m", f"{REPLACEMENT}{REPLACEMENT}{REPLACEMENT}31m"),
        ("safe\u202egnp.exe", f"safe{REPLACEMENT}gnp.exe"),
        ("\ud800", REPLACEMENT),
    ],
)
def test_what_a_terminal_would_obey_is_replaced_and_the_rest_is_as_it_came(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_text_is_cut_at_a_character_and_says_so() -> None:
    assert printable("x" * 5000, 10) == "xxxxxxx…"
    assert printable("ääääää", 8) == "ää…"
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 3, 2) == "xx"
    assert len(printable("x" * (64 << 20))) <= TEXT_MAX_BYTES


@given(ANY_TEXT, st.integers(0, 2000))
def test_any_text_comes_out_bounded_printable_and_the_same_a_second_time(text: str, most: int) -> None:
    shown = printable(text, most)
    assert len(shown.encode()) <= most
    assert all(char.isprintable() for char in shown)
    assert printable(shown, most) == shown
