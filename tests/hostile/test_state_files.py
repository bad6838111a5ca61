# SPDX-License-Identifier: Apache-2.0
"""One state file that cannot be read costs that one VM: it is told, refused, and left as it is."""

from __future__ import annotations

import json
import os
from typing import Any

from remusdb.core.messages import Refuse
from remusdb.core.wire import FrameType
from tests.hostile.rig import Rig, store_raw
from tests.hostile.sayings import hello, honest

GOOD: dict[str, Any] = {"format": 2, "vm": "x", "role": "promoted", "term": 7, "owner": "beta", "peer": "gamma"}


def changed(**changes: Any) -> bytes:
    """A good file of VM `x`, changed."""
    return json.dumps({**GOOD, **changes}).encode()


FILES: dict[str, bytes] = {
    "truncated": changed()[:-20],
    "empty": b"",
    "zeros": bytes(4096),
    "zeros-after": changed() + bytes(100),
    "another-format": changed(format=99),
    "no-format": json.dumps({"vm": "x"}).encode(),
    "deep": b'{"format": 2, "vm": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "no-object": b"[1, 2]",
    "null": b"null",
    "not-utf8": b'{"format": 2, "vm": "\xff\xfe"}',
    "term-negative": changed(vm="term-negative", term=-1),
    "term-too-large": changed(vm="term-too-large", term=1 << 64),
    "term-at-the-end": changed(vm="term-at-the-end", term=(1 << 63) - 1),
    "term-float": changed(vm="term-float", term=1e300),
    "term-text": changed(vm="term-text", term="7"),
    "long-number": b'{"format": 2, "vm": "long-number", "term": ' + b"9" * 5000 + b"}",
    "another-vm": changed(vm="pg"),
    "a-path": changed(vm="../pg"),
    "role-unknown": changed(vm="role-unknown", role="king"),
    "disks-wrong": changed(vm="disks-wrong", quarantined_disks=7),
}


def failed(rig: Rig) -> set[str]:
    """The VMs that `status` tells to be in trouble with their file, each with the file's name."""
    return {one["vm"] for one in rig.status() if ".json" in one["reason"]}


def test_state_files_that_cannot_be_read(rig: Rig) -> None:
    for name, data in FILES.items():
        store_raw(rig, name, data)
    (rig.state_dir / "vms" / "a-folder.json").mkdir()
    os.mkfifo(rig.state_dir / "vms" / "a-fifo.json")
    (rig.state_dir / "vms" / "a-loop.json").symlink_to("a-loop.json")
    (rig.state_dir / "vms" / "to-null.json").symlink_to("/dev/null")
    with (rig.state_dir / "vms" / "huge.json").open("wb") as file:
        file.truncate(512 << 20)
    names = {*FILES, "a-folder", "a-fifo", "a-loop", "to-null", "huge"}
    rig.remember("good", role="none", term=3, owner="gamma", peer="gamma", reason="was here")
    before = looks(rig)
    rig.start(made_up=True)
    assert rig.size().resident < 256 << 20
    assert failed(rig) == names
    caller, welcome = rig.welcomed({**hello("good", "gamma"), "term": 3}, "gamma")
    caller.commit(welcome.term, 1)
    assert caller.hear(FrameType.ACK) is not None
    caller.close()
    for name in sorted(names):
        for fields in (hello(name, "gamma", term=9), hello(name, "gamma", term=7, resume=True)):
            refuse = rig.refused(fields, "gamma")
            assert isinstance(refuse, Refuse) and not refuse.fenced and not refuse.renounced, (name, refuse)
            assert ".json" in refuse.reason or "state" in refuse.reason, refuse
    assert looks(rig) == before
    assert "this is a bug" not in rig.told() and "Traceback" not in rig.told()


def looks(rig: Rig) -> dict[str, int]:
    """When each state file was changed last, but the one that may be."""
    paths = (rig.state_dir / "vms").glob("*.json")
    return {path.name: path.lstat().st_mtime_ns for path in paths if path.name != "good.json"}


def test_a_file_that_goes_bad_while_the_agent_runs(rig: Rig) -> None:
    rig.start(made_up=True)
    caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
    caller.commit(welcome.term, 1)
    assert caller.hear(FrameType.ACK) is not None
    caller.say(FrameType.BYE, b"\x82\xa6reason\xa1x\xa6forget\xc2", welcome.term)
    assert caller.hear(FrameType.RENOUNCE) is not None
    store_raw(rig, "pg", b"\0" * 100)
    refuse = rig.refused(hello("pg", "gamma", term=1), "gamma")
    assert not refuse.fenced and not refuse.renounced
    told = rig.ask("pg", "gamma")
    assert told is None or told.owner == "", "what cannot be read is not told"
    assert rig.status()[0]["vm"] == "pg"
    assert rig.serves()
