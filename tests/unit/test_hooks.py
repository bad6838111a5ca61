# SPDX-License-Identifier: Apache-2.0
"""Hooks as real processes: they get the event, in order, and whatever they do stays their own trouble."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path

import msgspec
import pytest

from remusdb.history import Event, EventName, History
from remusdb.hooks import AT_ONCE, OUTPUT_MAX_BYTES, WAITING_MAX_EVENTS, Hooks
from tests.waiting import eventually

WITHIN_S = 20.0


def event(vm: str = "db1", name: EventName = "held", term: int = 1, reason: str = "") -> Event:
    return Event(
        vm=vm, at_ns=time.time_ns(), host="alpha", by="worker", event=name, was="protected", now="held",
        reason=reason, term=term, epoch=812, heard_ms_ago=510.5, peer="beta",
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "hooks.d"
    made.mkdir(mode=0o755)
    made.chmod(0o755)
    return made


def put(folder: Path, name: str, script: str, mode: int = 0o755) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


def gone(pid_file: Path) -> bool:
    """No process has this id any more, not even as a zombie."""
    return not Path(f"/proc/{pid_file.read_text().strip()}").exists()


def dead(pid_file: Path) -> bool:
    """It runs no more; whether it is reaped is the business of whoever took it over."""
    pid = pid_file.read_text().strip()
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def test_the_event_is_on_stdin_and_its_names_in_a_clean_environment(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "1")
    put(folder, "notify", f"cat > {tmp_path}/stdin; env > {tmp_path}/env; pwd > {tmp_path}/pwd")
    hooks, told = Hooks(folder), event(vm="db 1", reason="the peer's\ncable " + "x" * 200_000)
    hooks.run(told)
    assert hooks.wait_idle(WITHIN_S)
    assert msgspec.json.decode((tmp_path / "stdin").read_bytes(), type=Event) == told
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert {"REMUSDB_VM": "db 1", "REMUSDB_EVENT": "held", "REMUSDB_STATE": "held"}.items() <= env.items()
    assert set(env) - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        "PATH", "LANG", "REMUSDB_VM", "REMUSDB_EVENT", "REMUSDB_STATE"
    }  # fmt: skip
    assert (tmp_path / "pwd").read_text() == "/\n"


def test_a_hook_that_reads_nothing_ends_well(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    put(folder, "deaf", "exit 0")
    hooks = Hooks(folder)
    hooks.run(event(reason="x" * 500_000))
    assert hooks.wait_idle(WITHIN_S)
    assert "ended with 0" in caplog.text


def test_events_of_one_vm_reach_a_hook_in_order(folder: Path, tmp_path: Path) -> None:
    """The first takes longest: whoever runs two at once, or in any other order, is seen."""
    put(folder, "note", f'read line; [ $(ls {tmp_path}/*.seen 2>/dev/null | wc -l) -gt 2 ] || sleep 0.2\n'
        f'echo "$line" >> {tmp_path}/$REMUSDB_VM.seen')  # fmt: skip
    hooks = Hooks(folder)
    for term in range(12):
        for vm in ("db1", "db2", "db3"):
            hooks.run(event(vm, term=term))
    assert hooks.wait_idle(WITHIN_S)
    for vm in ("db1", "db2", "db3"):
        assert [json.loads(line)["term"] for line in (tmp_path / f"{vm}.seen").read_text().splitlines()] == [*range(12)]


def test_hooks_start_in_the_order_of_their_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("30-c", "10-a", "20-b"):
        put(folder, name, f"touch {tmp_path}/{name}")
    seen: list[str] = []
    hooks = Hooks(folder)
    monkeypatch.setattr(hooks, "_add", lambda lane, _event: seen.append(lane[1].name))
    hooks.run(event())
    assert seen == ["10-a", "20-b", "30-c"]


@pytest.mark.slow
def test_a_hook_that_hangs_is_killed_with_its_children_and_delays_no_other(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(folder, "10-hangs", f"sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/parent; echo wait; wait")
    put(folder, "20-works", f"echo $REMUSDB_EVENT >> {tmp_path}/seen")
    hooks, begun = Hooks(folder, timeout_s=3.0), time.monotonic()
    for _ in range(3):
        hooks.run(event())
    eventually(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text().count("held") == 3)
    assert time.monotonic() - begun < 3.0
    assert not hooks.wait_idle(0.1)
    assert hooks.wait_idle(WITHIN_S)
    assert 9.0 <= time.monotonic() - begun < 15.0
    assert gone(tmp_path / "parent")
    eventually(lambda: dead(tmp_path / "child"))
    assert caplog.text.count("was killed: it ran for more than 3 s") == 3
    assert ": wait" in caplog.text


def test_a_child_that_keeps_stdout_open_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    put(folder, "forks", f"sleep 1000 & echo $! > {tmp_path}/child; exit 0")
    hooks, begun = Hooks(folder), time.monotonic()
    hooks.run(event())
    assert hooks.wait_idle(WITHIN_S)
    assert time.monotonic() - begun < 5.0
    eventually(lambda: dead(tmp_path / "child"))


def test_a_child_in_a_session_of_its_own_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    put(folder, "daemonizes", f"setsid sh -c 'echo $$ > {tmp_path}/child; exec sleep 1000' & \n"
        f"until [ -s {tmp_path}/child ]; do sleep 0.01; done")  # fmt: skip
    hooks, begun = Hooks(folder), time.monotonic()
    hooks.run(event())
    try:
        assert hooks.wait_idle(WITHIN_S)
        assert time.monotonic() - begun < 5.0
        assert not dead(tmp_path / "child"), "who leaves the session on purpose is left to run"
    finally:
        os.kill(int((tmp_path / "child").read_text()), 9)


def test_a_hook_that_fails_is_named_with_its_words(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(folder, "fails", "echo no route; echo to the mail host >&2; exit 3")
    hooks = Hooks(folder)
    hooks.run(event())
    assert hooks.wait_idle(WITHIN_S)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert vars(record)["vm"] == "db1" and f"hook {folder}/fails on held ended with 3" in record.message
    assert record.message.endswith(": no route | to the mail host")


def test_megabytes_of_output_end_and_are_cut_short_in_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    put(folder, "talks", "head -c 20000000 /dev/zero | tr '\\0' x")
    hooks = Hooks(folder)
    hooks.run(event())
    assert hooks.wait_idle(WITHIN_S)
    [record] = caplog.records
    assert "ended with 0" in record.message
    assert record.message.count("x" * OUTPUT_MAX_BYTES) == 1
    assert record.message.endswith(f"(and {20_000_000 - OUTPUT_MAX_BYTES} bytes)")


@pytest.mark.parametrize(
    ("mode", "why"),
    [(0o644, "not executable"), (0o775, "users other than its owner may"), (0o757, "users other than its owner may")],
)
def test_what_is_no_hook_is_left_alone_and_said_once(
    folder: Path, tmp_path: Path, mode: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(folder, "odd", f"touch {tmp_path}/ran", mode)
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("/bin/true")
    (folder / ".hidden").write_text("")
    hooks = Hooks(folder)
    hooks.run(event())
    hooks.run(event())
    assert hooks.wait_idle(WITHIN_S)
    assert not (tmp_path / "ran").exists()
    assert sorted(record.message.split(" is left alone: ")[0] for record in caplog.records) == [
        str(folder / name) for name in ("folder", "link", "odd")
    ]
    assert f"{path} is left alone: " in caplog.text and why in caplog.text
    path.chmod(0o755)
    hooks.run(event())
    assert hooks.wait_idle(WITHIN_S)
    assert (tmp_path / "ran").exists()


def test_a_folder_that_others_may_write_holds_no_hooks(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(folder, "notify", f"touch {tmp_path}/ran")
    folder.chmod(0o777)
    hooks = Hooks(folder)
    hooks.run(event())
    assert hooks.wait_idle(WITHIN_S)
    assert not (tmp_path / "ran").exists()
    assert f"{folder} is left alone" in caplog.text


def test_a_script_without_an_interpreter_takes_nothing_with_it(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "10-odd").write_text("no interpreter")
    (folder / "10-odd").chmod(0o755)
    put(folder, "20-works", f"touch {tmp_path}/ran")
    hooks = Hooks(folder)
    hooks.run(event())
    assert hooks.wait_idle(WITHIN_S)
    assert (tmp_path / "ran").exists()
    assert "10-odd cannot be run on held: " in caplog.text


def test_no_folder_no_hooks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hooks = Hooks(tmp_path / "none")
    hooks.run(event())
    assert hooks.wait_idle(0)
    assert not caplog.records


def test_never_more_than_the_limit_at_once_and_no_zombies(folder: Path, tmp_path: Path) -> None:
    put(folder, "slow", f"touch {tmp_path}/$$.now; ls {tmp_path}/*.now | wc -l >> {tmp_path}/counts\n"
        f"sleep 0.3; rm {tmp_path}/$$.now")  # fmt: skip
    before = children()
    hooks = Hooks(folder)
    for number in range(3 * AT_ONCE):
        hooks.run(event(f"db{number}"))
    assert hooks.wait_idle(WITHIN_S)
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert len(counts) == 3 * AT_ONCE
    assert 1 < max(counts) <= AT_ONCE
    assert children() <= before


def test_a_hook_too_far_behind_misses_the_oldest(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(folder, "slow", f"cat >> {tmp_path}/seen; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done")
    hooks = Hooks(folder)
    hooks.run(event(term=0))
    eventually((tmp_path / "seen").exists)
    for term in range(1, WAITING_MAX_EVENTS + 4):
        hooks.run(event(term=term))
    (tmp_path / "go").touch()
    assert hooks.wait_idle(WITHIN_S)
    terms = [json.loads(line)["term"] for line in (tmp_path / "seen").read_text().splitlines()]
    assert terms == [0, *range(4, WAITING_MAX_EVENTS + 4)]
    assert caplog.text.count("too far behind") == 3


def test_record_returns_at_once_while_a_hook_hangs(folder: Path, tmp_path: Path) -> None:
    put(folder, "hangs", f"touch {tmp_path}/hangs; sleep 30")
    history = History(tmp_path, Hooks(folder, timeout_s=3.0))
    history.record(event(vm="other"))
    eventually((tmp_path / "hangs").exists)
    took = []
    for term in range(30):
        begun = time.monotonic()
        history.record(event(term=term))
        took.append(time.monotonic() - begun)
    assert sorted(took)[len(took) // 2] < 0.001
    assert max(took) < 0.5
    path = tmp_path / "history" / "db1.jsonl"
    eventually(lambda: path.exists() and path.read_bytes().count(b"\n") == 30, otherwise="the disk waits for a hook")
    assert not history.flush(0.1)
