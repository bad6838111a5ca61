# SPDX-License-Identifier: Apache-2.0
"""The demo's picture: what its viewers are told is what is so, and it stays in its frame whatever is in it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace as changed
from rich.console import Console
from rich.text import Text

from remusdb.control.status import StandbyStatus, VmStatus
from tools.lab.product import Product
from tools.lab.view import View
from tools.load import Load, Tail
from tools.picture import EVENTS, MARK_S, Client, Happened, Host, Picture, beats, draw, look, marks
from tools.stage import LEAST_ROWS, Living, Painter, can_live

PRIMARY = VmStatus(vm="pg", state="protected", peer="b", term=1, committed=311)
STANDBY = StandbyStatus(vm="pg", state="ready", peer="a", term=1, committed=310)
BEFORE = Picture(
    "a demo", 61.0, (look("a", View(PRIMARY, None), True), look("b", View(None, STANDBY), True)),
    clients=[Client(f"{number} IPv4", [1] * 20 + [0] * 6 + [3] * 10, 47, 0.1) for number in range(1, 9)],
)  # fmt: skip


def lines(picture: Picture, columns: int = 100) -> list[str]:
    return [Text.from_markup(line).plain for line in draw(picture, columns)]


def test_each_host_is_shown_as_its_daemons_tell_it() -> None:
    a, b = BEFORE.hosts
    assert (a.runs, a.follows, b.runs, b.follows) == (True, False, False, True)
    text = "\n".join(lines(BEFORE))
    for said in ("host a", "the VM runs here", "epoch 311 ─▶", "a paused copy", "holds epoch 310", "1:01"):
        assert said in text
    deciding = look("b", View(None, changed(STANDBY, state="promoted")), True)
    assert not deciding.runs, "decided is not resumed"
    assert look("b", View(None, changed(STANDBY, state="promoted", resumed_at_ns=1)), True).runs
    assert not look("a", View(changed(PRIMARY, state="fenced"), None), True).runs


def test_a_primary_that_was_cut_off_is_not_shown_to_speak() -> None:
    """Its VM runs on, and so does the one on the backup: the viewer sees that only one of them is heard."""
    held = look("a", View(changed(PRIMARY, state="held"), None), True)
    taken = look("b", View(None, changed(STANDBY, state="promoted", resumed_at_ns=1)), True)
    text = "\n".join(lines(replace(BEFORE, hosts=(held, taken))))
    assert "nobody hears it" in text and text.count("the VM runs here") == 1


def test_a_dead_host_says_nothing_and_nothing_goes_to_it_or_from_it() -> None:
    dead = look("a", View(PRIMARY, None), up=False)
    text = "\n".join(lines(replace(BEFORE, hosts=(dead, BEFORE.hosts[1]))))
    assert "no power" in text and "─▶" not in text and text.count("the VM runs here") == 0


def test_a_beat_is_in_the_mark_of_its_time_and_a_gap_stays_a_gap() -> None:
    now = 40 * MARK_S
    assert beats([0.0, now - 1.6 * MARK_S, now - 1.5 * MARK_S, now - 0.01], now, 4) == [0, 2, 1, 0]
    assert beats([], now, 3) == [0, 0, 0] and beats([now], now, 3) == [0, 0, 1]
    later = beats([now - 1.5 * MARK_S], now + MARK_S, 4)
    assert later == [1, 0, 0, 0], "it moves by one mark"
    client = next(line for line in lines(BEFORE) if line.startswith("1 IPv4"))
    assert "·" * 6 in client and client.count("·") == 6


def test_a_client_that_waits_is_told_to_wait() -> None:
    assert "waits" not in "\n".join(lines(BEFORE))
    silent = replace(BEFORE, clients=[Client("1 IPv4", [0] * 9, 47, 1.23)])
    assert "waits 1.2 s" in "\n".join(lines(silent))


@pytest.mark.parametrize("ago", [0, 3, 30, 60])
@pytest.mark.parametrize("columns", [80, 100])
def test_the_kill_is_marked_where_it_was(columns: int, ago: int) -> None:
    at = 9 + marks(columns) - ago  # behind the name
    marked = next((line for line in lines(replace(BEFORE, killed="host killed", killed_marks_ago=ago), columns)
                   if "▲" in line), None)  # fmt: skip
    if ago >= marks(columns):
        assert marked is None, "it has left the frame"
    else:
        assert marked is not None and marked.index("▲") == at and "host killed" in marked


@pytest.mark.parametrize("columns", [80, 110])
def test_it_is_always_as_large_and_fits_a_usual_terminal(columns: int) -> None:
    long = replace(
        BEFORE, title="t" * 300, events=[Happened(1.0, "something")] * 50, killed="host killed", killed_marks_ago=2
    )
    for picture in (BEFORE, long):
        found = lines(picture, columns)
        assert len(found) == 1 + 5 + 1 + 8 + 1 + EVENTS < LEAST_ROWS
        assert all(len(line) <= columns for line in found)


def terminal(columns: int = 100, rows: int = 30) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=columns, height=rows, _environ={"TERM": "xterm"}), out


def test_only_what_changed_is_painted_again() -> None:
    console, out = terminal()
    painter = Painter(console)
    painter.paint(["one", "two", "three"])
    out.truncate(out.seek(0))
    painter.paint(["one", "2", "three"])
    assert out.getvalue() == "\x1b[3F\n2\x1b[K\n\n"
    out.truncate(out.seek(0))
    painter.paint(["one", "2", "three"])
    assert out.getvalue() == ""


def test_nothing_in_a_line_commands_the_terminal() -> None:
    console, out = terminal()
    Painter(console).paint(["a\x1b]0;title\x07\nb", "x" * 500])
    assert "\x1b]0" not in out.getvalue() and out.getvalue().count("\n") == 2


@pytest.mark.parametrize(("columns", "rows", "fits"), [(101, 30, True), (79, 30, False), (101, 20, False)])
def test_the_picture_needs_a_terminal_that_is_large_enough(columns: int, rows: int, fits: bool) -> None:
    console, out = terminal(columns, rows)
    console._force_terminal = True
    assert can_live(console) is (fits and console.encoding == "utf-8")
    assert not can_live(Console(file=out, width=200, height=50))


def test_what_a_trial_tells_is_in_the_picture_that_is_kept(tmp_path: Path) -> None:
    console, _ = terminal()
    record = tmp_path / "acked"
    product = SimpleNamespace(view=lambda name, *_: View(PRIMARY, None) if name == "a" else View(None, STANDBY))
    load = SimpleNamespace(clients=2, tail=lambda: Tail(record))
    with Living("a demo", console, tmp_path / "kept") as living:
        living.hosts(cast(Product, product), "pg")
        living.clients(cast(Load, load))
        record.write_text(f"1 1 {living._began_ns}\n2 1 {living._began_ns}\n2 2 {living._began_ns}\n1 2")
        with living.step("the VM starts"):
            pass
        with pytest.raises(RuntimeError), living.step("it is protected"):
            raise RuntimeError
        living.killed("a", "host killed", living._began_ns, up=False)
        living.rest()
        living.say("  lost 0")
    kept = (tmp_path / "kept").read_text()
    for said in ("✓ the VM starts", "✗ it is protected", "no power", "host killed", "lost 0"):
        assert said in kept, kept
    rows = [line.split() for line in kept.splitlines() if "IPv" in line]
    assert [row[-1] for row in rows] == ["1", "2"], "a line that is written by half is not counted yet"


def test_a_host_that_does_not_answer_in_time_is_shown_as_it_was(tmp_path: Path) -> None:
    console, _ = terminal()
    views = [View(PRIMARY, None)] * 2 + [View(None, None)] * 10_000
    product = SimpleNamespace(view=lambda *_: views.pop(0))
    with Living("a demo", console, tmp_path / "kept") as living:
        living.hosts(cast(Product, product), "pg")
        while len(views) > 9_990:
            pass
    assert living._picture.hosts[0] == replace(Host("a"), state="protected", runs=True, term=1, epoch=311)
