# SPDX-License-Identifier: Apache-2.0
"""The fault matrix knows how `remusdb status` must begin, and complains of every other word."""

from __future__ import annotations

import pytest

from tools.matrix.expect import first_word, wrong_words


@pytest.mark.parametrize(
    ("outcome", "primary", "backup"),
    [
        ("protected", "PROTECTED", "NOTHING TO PROTECT"),
        ("rejoined", "NOTHING TO PROTECT", "NOT PROTECTED"),
        ("taken over", "NOT PROTECTED", "NOT PROTECTED"),
        ("solo", "NOT PROTECTED", "NOTHING TO PROTECT"),
        ("down", "NOTHING TO PROTECT", "NOT PROTECTED"),
    ],
)
def test_only_the_right_words_pass(outcome: str, primary: str, backup: str) -> None:
    assert wrong_words(outcome, {True: primary, False: backup}) == []
    if outcome != "protected":
        assert wrong_words(outcome, {True: "PROTECTED", False: backup})
    assert wrong_words(outcome, {True: primary, False: "PROTECTED"})
    assert wrong_words(outcome, {True: "remusdb: E-PEER"})


def test_a_vm_that_is_down_is_a_worry_on_one_host_at_least() -> None:
    nothing = "NOTHING TO PROTECT"
    assert wrong_words("down", {True: nothing, False: nothing})
    assert not wrong_words("down", {True: nothing}), "the other host could not be asked"


def test_protected_the_other_way_round_is_protected() -> None:
    assert not wrong_words("rejoined", {True: "NOTHING TO PROTECT", False: "PROTECTED"}, reprotected=True)
    assert wrong_words("rejoined", {False: "NOT PROTECTED"}, reprotected=True)


def test_the_first_word_of_a_line() -> None:
    assert first_word("NOT PROTECTED  db1: it is suspended") == "NOT PROTECTED"
    assert first_word("PROTECTED  db1 to b") == "PROTECTED"
    assert first_word("Traceback (most recent call last)") == "Traceback (most recent call last)"
