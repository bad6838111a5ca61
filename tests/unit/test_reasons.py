# SPDX-License-Identifier: Apache-2.0
"""Every reason has words, those who make one give what the words name, and what others said in it is only shown."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from remusdb.errors import CannotProtect
from remusdb.reasons import Code, Reason
from remusdb.state import StateStore
from remusdb.wording import WORDS, hint, parameters, words

ROOT = Path(__file__).parents[2]


def made() -> Iterator[tuple[str, str, set[str] | None]]:
    """Each `Reason.of(Code.X, ...)` of the product: where, code, its parameters (None: the text does not tell)."""
    for path in [*(ROOT / "remusdb").rglob("*.py"), *(ROOT / "agents").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if ast.unparse(call.func) != "Reason.of" or path.name == "reasons.py":
                continue
            given = {keyword.arg for keyword in call.keywords}
            for part in ast.walk(call.args[0]):
                if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "Code":
                    where = f"{path.relative_to(ROOT)}:{call.lineno}"
                    yield where, part.attr, None if None in given else {str(name) for name in given}


def test_every_code_has_words() -> None:
    assert set(WORDS) == set(Code)
    assert all(said for said, _ in WORDS.values())


def test_who_makes_a_reason_gives_what_its_words_name() -> None:
    found = list(made())
    assert len(found) > 15
    for where, name, given in found:
        needed, more = parameters(Code[name])
        if given is not None:
            assert needed <= given <= needed | more, (where, name)


def test_every_code_is_made_somewhere() -> None:
    text = "".join(path.read_text() for path in [*(ROOT / "remusdb").rglob("*.py"), *(ROOT / "agents").rglob("*.py")]
                   if path.name not in ("reasons.py", "wording.py"))  # fmt: skip
    named = set(re.findall(r"\bCode\.([A-Z_]+)\b", text)) | {"OTHER"}
    assert {code.name for code in Code} == named


def test_an_error_is_a_reason_with_its_own_hint() -> None:
    why = Reason.by(CannotProtect("a TPM", hint="remove it"))
    assert (why.code, why.params["error"]) == (Code.ERROR, "E-PREFLIGHT")
    assert (words(why), hint(why, "db1")) == ("a TPM", "remove it")
    for code in (Code.ERROR, Code.ERROR_HELD):
        assert parameters(code)[0] <= {"error", "why", "hint"}


def test_a_part_is_left_out_where_there_is_nothing_to_say() -> None:
    assert words(Reason.of(Code.WORKER_LOST, how="ended", last="")) == "the worker ended; output stays held"
    assert words(Reason.of(Code.WORKER_LOST, how="ended", last="x")) == "the worker ended (last: x); output stays held"
    assert words(Reason.of(Code.SUSPENDED)) == "it is suspended"
    assert words(Reason.of(Code.SUSPENDED, stays=True)) == "it is suspended; it stays so after a takeover"
    assert (words(None), hint(None, "db1")) == ("", "")


def test_a_reason_may_have_another_one_as_its_cause() -> None:
    why = Reason.of(Code.ALONE, why=Reason.of(Code.GIVEN_BACK, peer="beta"))
    assert words(why) == "the arbiter allows it to go on alone: beta could not run it"
    assert msgspec.json.decode(msgspec.json.encode(why), type=Reason) == why


def test_what_others_said_is_shown_and_nothing_else() -> None:
    foul = "\x1b[2J{peer}[still?]{vm}"
    assert words(Reason.of(Code.ALONE, why=Reason.of(Code.OTHER, why=foul))).endswith("{peer}[still?]{vm}")
    why = Reason.of(Code.PEER_RENOUNCED, peer="beta", why=foul)
    assert words(why) == "agent beta gave its replica up: \N{REPLACEMENT CHARACTER}[2J{peer}[still?]{vm}"
    assert len(words(Reason.of(Code.OTHER, why="x" * (15 << 20)))) < 2000
    assert "'a b'" in hint(Reason.of(Code.OFF, peer="beta"), "a b")  # a command to be pasted


def test_a_code_of_another_version_spoils_nothing(tmp_path: Path) -> None:
    why = msgspec.json.decode(b'{"code": "never-heard-of", "params": {"a": "b"}}', type=Reason)
    assert why.code is Code.OTHER and words(why) == ""
    store = StateStore(tmp_path)
    store.update("db1", role="solo", why=Reason.of(Code.OFF, peer="beta"))
    file = tmp_path / "vms" / "db1.json"
    file.write_text(file.read_text().replace('"off"', '"never-heard-of"'))
    state = store.load("db1")
    assert state.why is not None and state.why.code is Code.OTHER
    assert state.reason == "the VM is off; beta does not run it"


@pytest.mark.parametrize("codes", [True, False])
def test_the_state_file_has_the_words_and_never_another_reasons_code(tmp_path: Path, codes: bool) -> None:
    store = StateStore(tmp_path)
    store.update("db1", why=Reason.of(Code.OFF, peer="beta"))
    state = store.update("db1", why=Reason.of(Code.FORGOTTEN)) if codes else store.update("db1", reason="in words")
    assert state == store.load("db1")
    assert (state.reason, state.why and state.why.code) == (
        ("an operator ran `remusdb forget`", Code.FORGOTTEN) if codes else ("in words", None)
    )
