# SPDX-License-Identifier: Apache-2.0
"""A peer's words are cut, made printable, and break nobody's status or history."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from remusdb.core.wire import FrameType
from remusdb.history import FILE_MAX_BYTES
from tests.hostile.rig import REPO, Rig, eventually
from tests.hostile.sayings import hello, honest, packed

NASTY = "\x1b]0;owned\x07\x1b[2J\r\n\u202eevil\x00\x9b31m\u2066"
REASONS = [
    "r" * 11_000_000,
    "\n" * 1_000_000,
    '"' * 1_000_000,
    "\x00" * 500_000,
    "\U0001f4a3" * 500_000,
    "\u202e" * 500_000,
    NASTY * 100_000,
    NASTY,
]
STATE_MAX_BYTES = 64 << 10  # one VM's state, with every text of it as long as may be


def said(rig: Rig, vm: str, reason: str, kind: FrameType = FrameType.BYE) -> None:
    """A whole session that ends with these words."""
    caller, welcome = rig.welcomed(honest(vm, "gamma"), "gamma")
    caller.commit(welcome.term, 1)
    assert caller.hear(FrameType.ACK) is not None
    caller.say(kind, packed({"reason": reason, "forget": False}), welcome.term)
    caller.hear(FrameType.RENOUNCE, FrameType.DECLINE, within_s=5)
    caller.close()


def shown(rig: Rig, *args: str) -> str:
    """What the command line prints."""
    command = [sys.executable, "-m", "remusdb.cli.main", "--run-dir", str(rig.run_dir), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, cwd=REPO, errors="replace")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def printable(text: str) -> bool:
    """Whether a terminal shows this as what it is."""
    return all(char.isprintable() or char == "\n" for char in text)


def test_the_words_of_a_peer(rig: Rig) -> None:
    rig.start(made_up=True)
    said(rig, "quiet", "the first")
    for reason in REASONS:
        said(rig, "pg", reason)
    for vm in ("quiet", "pg"):
        (found,) = [one for one in rig.status() if one["vm"] == vm]
        assert len(found["reason"]) < 2048 and printable(found["reason"]), found["reason"][:100]
    eventually(
        lambda: [one.event for one in rig.history("pg")].count("renounced") == len(REASONS), "the history is not whole"
    )
    events = rig.history("pg")
    assert all(len(one.reason) < 2048 for one in events)
    sizes = {path.name: path.stat().st_size for path in rig.state_dir.rglob("*") if path.is_file()}
    assert max(sizes.values()) < STATE_MAX_BYTES, sizes
    assert printable(shown(rig, "status", "--agent"))
    assert printable(rig.told())
    rig.stop()
    rig.start(made_up=True)
    assert {one["vm"] for one in rig.status()} >= {"pg", "quiet"}
    assert all(one.reason for one in rig.history("pg"))


def test_a_flood_of_words_keeps_the_newest_events(rig: Rig) -> None:
    rig.start(made_up=True)
    for number in range(25):
        said(rig, "pg", f"number {number} " + "x" * 100_000)
    eventually(
        lambda: any("number 24 " in one.reason for one in rig.history("pg")), "the last one is not in the history"
    )
    assert len(rig.history("pg")) > 25
    folder = rig.state_dir / "history"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 << 20


def test_other_texts(rig: Rig) -> None:
    """Names, versions and addresses of a HELLO and a COMMIT are no better."""
    rig.start(made_up=True)
    for field in ("version", "machine", "qemu_version", "arbiter", "primary"):
        rig.hello({**hello("pg", "gamma"), field: NASTY}, "gamma")[0].close()
        rig.hello({**hello("pg", "gamma"), field: "v" * 500_000}, "gamma")[0].close()
    caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
    caller.say(FrameType.TAKEOVER, packed({"reason": NASTY * 1000}), welcome.term)
    frame = caller.hear(FrameType.DECLINE)
    assert frame is not None
    assert printable(rig.told())
    assert len(rig.told()) < 100_000
    assert printable(shown(rig, "status", "--agent"))


def test_an_endless_line_costs_one_line(rig: Rig) -> None:
    """A history file that was torn in a long line: what is before it stays."""
    rig.start(made_up=True)
    said(rig, "pg", "before")
    eventually(lambda: "before" in reasons(rig), "it is not in the history")
    (path,) = [one for one in Path(rig.state_dir / "history").iterdir() if one.suffix == ".jsonl"]
    with path.open("ab") as file:
        file.write(b"x" * (FILE_MAX_BYTES - path.stat().st_size - 100))
    said(rig, "pg", "after")
    said(rig, "pg", "and again")
    words = ("before", "after", "and again")
    eventually(lambda: all(word in reasons(rig) for word in words), "an event is gone")


def reasons(rig: Rig) -> str:
    """All that the history of `pg` tells."""
    return " ".join(one.reason for one in rig.history("pg"))
