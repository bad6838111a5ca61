# SPDX-License-Identifier: Apache-2.0
"""The lab's DBMS: damage that their tools report is a complaint, also when they say nothing at all."""

from __future__ import annotations

import dataclasses

import pytest

from tools.dbms import BY_KEY, MARIADB, POSTGRESQL, Dbms
from tools.dbms.mariadb import file_complaints, table_complaints
from tools.lab import image

FINE = [("bank.accounts", "check", "status", "OK"), ("bank.ledger", "check", "status", "OK")]


def test_tables_that_are_fine_are_no_complaint() -> None:
    assert table_complaints(FINE) == []


@pytest.mark.parametrize(
    "row",
    [
        ("bank.ledger", "check", "error", "Corrupt"),
        ("bank.ledger", "check", "Warning", "InnoDB: Index PRIMARY is marked as corrupted"),
        ("mysql.db", "check", "status", "Operation failed"),
    ],
)
def test_whatever_check_table_says_but_ok_is_a_complaint(row: tuple[str, str, str, str]) -> None:
    (complaint,) = table_complaints([*FINE, row])
    assert row[0] in complaint and row[3] in complaint


def test_a_table_of_the_bank_that_was_not_checked_is_a_complaint() -> None:
    assert table_complaints(FINE[:1]) == ["CHECK TABLE was not answered for bank.ledger"]


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ("checked 9\n", None),
        ("", "did not come to its end"),
        ("bank/ledger.ibd: Fail\n", "did not come to its end"),
        ("bank/ledger.ibd: Fail\nchecked 9\n", "bank/ledger.ibd: Fail"),
        ("error log: [ERROR] InnoDB: page\nchecked 9\n", "[ERROR] InnoDB"),
        ("checked 0\n", "no file"),
    ],
)
def test_checksums_count_only_with_their_last_line(told: str, complaint: str | None) -> None:
    complaints = file_complaints(told)
    assert complaint in " ".join(complaints) if complaint else complaints == []


@pytest.mark.parametrize("dbms", BY_KEY.values(), ids=list(BY_KEY))
def test_another_definition_is_another_image(dbms: Dbms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.lab.debian.codename", lambda: "bookworm")
    keys = {image.key(dbms), image.key(dataclasses.replace(dbms, packages=(*dbms.packages, "one-more")))}
    other = POSTGRESQL if dbms is MARIADB else MARIADB
    assert len(keys | {image.key(other)}) == 3
    assert dbms.vm != other.vm
