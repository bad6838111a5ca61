# SPDX-License-Identifier: Apache-2.0
"""The history's file under torn lines, several writers and too many events; and the verb that shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from remusdb import durable
from remusdb.cli.main import cli
from remusdb.errors import RemusError
from remusdb.history import FILE_MAX_BYTES, Event, EventName, History, append, read

ROOT = Path(__file__).parents[2]
START_NS = 1_790_000_000_123_456_789
WITHIN_S = 30.0


def event(term: int = 1, vm: str = "db1", name: EventName = "held", at_ns: int = START_NS, reason: str = "") -> Event:
    return Event(
        vm=vm, at_ns=at_ns, host="alpha", by="worker", event=name, was="protected", now="held", reason=reason,
        term=term, epoch=1_234_567, heard_ms_ago=510.5, peer="beta", details={"cause": "link", "tries": 3},
    )  # fmt: skip


def record(state_dir: Path, *events: Event, write: Callable[[Path, Event], None] = append) -> None:
    history = History(state_dir, None, write)
    for one in events:
        history.record(one)
    assert history.flush(WITHIN_S)


def terms(state_dir: Path, vm: str = "db1") -> list[int]:
    return [one.term for one in read(state_dir, vm)]


def run(state_dir: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["history", *arguments, "--state-dir", str(state_dir)])
    return result.exit_code, result.output


def test_what_was_recorded_is_read_whole_and_in_order(tmp_path: Path) -> None:
    events = [event(term, reason="line, line", at_ns=START_NS - term) for term in range(50)]
    record(tmp_path, *events)
    assert read(tmp_path, "db1") == events
    assert (tmp_path / "history" / "db1.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("vm", ["../../etc/db", "db 1", "dé%", "."])
def test_a_vm_of_any_name_has_its_own_file(tmp_path: Path, vm: str) -> None:
    record(tmp_path, event(vm=vm), event(2, vm="db1"))
    assert terms(tmp_path, vm) == [1]
    assert terms(tmp_path) == [2]
    assert {path.parent for path in tmp_path.rglob("*.jsonl")} == {tmp_path / "history"}


def test_a_torn_line_is_not_read_and_the_next_begins_anew(tmp_path: Path) -> None:
    record(tmp_path, event(1), event(2))
    path = tmp_path / "history" / "db1.jsonl"
    os.truncate(path, path.stat().st_size - 20)
    assert terms(tmp_path) == [1]
    record(tmp_path, event(3), event(4))
    assert terms(tmp_path) == [1, 3, 4]


def test_lines_that_are_no_events_are_left_out(tmp_path: Path) -> None:
    record(tmp_path, event(1))
    with open(tmp_path / "history" / "db1.jsonl", "ab") as file:
        file.write(b'\x00\x00\x00\n\xff\xfe\n[]\n{"vm": "db1"}\n\n')
    record(tmp_path, event(2))
    assert terms(tmp_path) == [1, 2]


def test_a_newer_field_does_not_hide_an_event(tmp_path: Path) -> None:
    record(tmp_path, event(1))
    path = tmp_path / "history" / "db1.jsonl"
    path.write_bytes(msgspec.json.encode({**json.loads(path.read_bytes()), "later": 1}) + b"\n")
    assert terms(tmp_path) == [1]


@pytest.mark.slow
def test_two_processes_write_and_no_line_is_mixed_or_missing(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from tests.unit.test_history import append, event\n"
        "for n in range(2000): append(pathlib.Path(sys.argv[2]) / 'history', event(int(sys.argv[3]) + n, reason='r'*n))"
    )
    # Without the disk: 4000 times fsync would be most of it.
    command = [sys.executable, "-c", "import os; os.fsync = lambda fd: None\n" + script]
    writers = [subprocess.Popen([*command, str(ROOT), str(tmp_path), str(base)]) for base in (0, 10_000)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = terms(tmp_path)
    for base in (0, 10_000):
        mine = [term for term in found if base <= term < base + 10_000]
        assert mine == list(range(mine[0], base + 2000)), "only what rotation took may be missing, the oldest first"
    text = (tmp_path / "history" / "db1.jsonl").read_bytes()
    assert len(text.splitlines()) == len(found), "each line is an event"


def test_a_file_that_grew_too_large_keeps_its_newest_half(tmp_path: Path) -> None:
    path = tmp_path / "history" / "db1.jsonl"
    for term in range(200):
        append(tmp_path / "history", event(term), file_max_bytes=20_000)
        assert path.stat().st_size < 21_000
    found = terms(tmp_path)
    assert found == list(range(200 - len(found), 200))
    assert path.stat().st_size > 9_000
    assert not list(tmp_path.rglob("*.partial"))


def test_an_endless_line_that_was_torn_takes_no_other_event_with_it(tmp_path: Path) -> None:
    for term in range(200):
        append(tmp_path / "history", event(term))
    with open(tmp_path / "history" / "db1.jsonl", "ab") as file:
        file.write(b'{"vm": "' + b"x" * (15 << 20))
    append(tmp_path / "history", event(200))
    assert terms(tmp_path) == [*range(201)]
    assert (tmp_path / "history" / "db1.jsonl").stat().st_size < FILE_MAX_BYTES


def test_a_reason_without_end_is_one_event_of_many(tmp_path: Path) -> None:
    record(tmp_path, *(event(term) for term in range(9)), event(9, reason="r" * (15 << 20)))
    assert terms(tmp_path) == [*range(10)]
    assert (tmp_path / "history" / "db1.jsonl").stat().st_size < 20_000


def test_another_writer_that_hangs_silences_nobody_and_keeps_its_file(tmp_path: Path) -> None:
    write = partial(append, file_max_bytes=1000, lock_s=0.1)
    append(tmp_path / "history", event(0))
    path = tmp_path / "history" / "db1.jsonl"
    with durable.alone(path.with_suffix(".lock"), 0) as alone:
        assert alone
        inode = path.stat().st_ino
        record(tmp_path, *(event(term) for term in range(1, 8)), write=write)
        assert terms(tmp_path) == [*range(8)]
        assert path.stat().st_ino == inode, "it is not replaced under whoever may be writing"
    write(tmp_path / "history", event(8))
    assert path.stat().st_ino != inode
    assert terms(tmp_path)[-1] == 8


def test_more_events_than_the_disk_takes_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = threading.Event()

    def slow(folder: Path, one: Event) -> None:
        disk.wait(WITHIN_S)
        append(folder, one)

    history = History(tmp_path, None, slow, queue_max=5)
    for term in range(20):
        begun = time.monotonic()
        history.record(event(term))
        assert time.monotonic() - begun < 0.5
    assert not history.flush(0.05)
    disk.set()
    assert history.flush(WITHIN_S)
    assert 14 <= history.dropped <= 15
    assert len(terms(tmp_path)) == 20 - history.dropped
    assert f"{history.dropped} events are missing in the history" in caplog.text


def test_a_folder_that_cannot_be_written_is_logged_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "history").write_text("in the way")
    record(tmp_path, event(1))
    [said] = [one for one in caplog.records if "missing" in one.message]
    assert vars(said)["vm"] == "db1" and "held is missing in the history" in said.message
    with pytest.raises(RemusError):
        read(tmp_path, "db1")
    (tmp_path / "history").unlink()
    record(tmp_path, event(2))
    assert terms(tmp_path) == [2]


@pytest.mark.parametrize(
    ("name", "level"), [("held", "ERROR"), ("failed", "ERROR"), ("solo", "WARNING"), ("protected", "INFO")]
)
def test_each_event_is_a_line_of_the_log_at_the_level_of_who_must_act(
    name: EventName, level: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    record(tmp_path, msgspec.structs.replace(event(7, reason="beta is silent"), event=name))
    [said] = caplog.records
    assert (said.levelname, said.message) == (level, f"{name}: beta is silent")
    assert {key: vars(said)[key] for key in ("vm", "term", "epoch")} == {"vm": "db1", "term": 7, "epoch": 1234567}


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    lone = msgspec.structs.replace(event(2, at_ns=START_NS + 10**9), epoch=None, heard_ms_ago=None)
    record(tmp_path, event(reason="beta is\nsilent"), lone)
    code, output = run(tmp_path, "db1")
    assert code == 0
    head, first, second = output.splitlines()
    assert head.split("  ")[0] == "TIME" and head.endswith("REASON")
    assert " ".join(first.split()) == (
        "2026-09-21 14:13:20.123 alpha worker held protected -> held 1 1234567 510 ms beta is silent"
    )
    assert " ".join(second.split()) == "2026-09-21 14:13:21.123 alpha worker held protected -> held 2 - -"


def test_json_and_the_newest_few(tmp_path: Path) -> None:
    record(tmp_path, *(event(term) for term in range(5)))
    code, output = run(tmp_path, "db1", "--json", "--last", "2")
    found = json.loads(output)
    assert code == 0 and found["vm"] == "db1"
    assert [msgspec.convert(one, Event) for one in found["events"]] == [event(3), event(4)]


def test_both_daemons_of_the_machine_in_one_list(tmp_path: Path) -> None:
    record(tmp_path / "host", event(1, at_ns=START_NS), event(3, at_ns=START_NS + 2))
    record(tmp_path / "agent", event(2, at_ns=START_NS + 1), event(4, at_ns=START_NS + 3))
    _, output = run(tmp_path, "db1", "--json")
    assert [one["term"] for one in json.loads(output)["events"]] == [1, 2, 3, 4]


def test_a_vm_without_a_history_is_not_protected(tmp_path: Path) -> None:
    code, output = run(tmp_path, "db9")
    assert code == 3
    assert "E-NOT-PROTECTED" in output and "db9" in output and str(tmp_path) in output
