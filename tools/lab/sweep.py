# SPDX-License-Identifier: Apache-2.0
"""Removes labs: by name at a lab's end, and every lab whose owner is dead.

Run as a module it is a lab's reaper: it waits for its stdin to end, which happens when the owner is gone however it
went, and removes the lab if that is still there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tools.lab import loops, procs
from tools.lab.paths import LABS, NETNS, REPO, STATE

_STATE_FILE = "state.json"


def claim(lab_id: str) -> Path:
    """Writes down who owns a lab before anything of it exists. Gives the state folder.

    Raises FileExistsError if the id is taken.
    """
    folder, made = STATE / lab_id, STATE / f".{lab_id}"
    made.mkdir(parents=True)
    pid = os.getpid()
    state = {"owner": pid, "started": procs.start_time(pid), "folder": str(LABS / lab_id)}
    (made / _STATE_FILE).write_text(json.dumps(state))
    if folder.exists():
        raise FileExistsError(folder)
    made.rename(folder)  # at once: another lab's sweep takes a folder that names no owner for a dead one's
    return folder


def remove(lab_id: str) -> None:
    """Ends all processes of a lab and removes its namespaces and folders. What is gone already is no error."""
    state = _state(lab_id)
    for netns in sorted(NETNS.glob(f"rdb{lab_id}-*")):
        try:
            procs.kill_members(procs.namespace_id(netns))
        finally:
            # The mount namespaces end with their last process; so do their mounts.
            subprocess.run(["ip", "netns", "del", netns.name], check=False, timeout=30)
    if state:
        loops.release(Path(str(state["folder"])))
        shutil.rmtree(str(state["folder"]), ignore_errors=True)
    shutil.rmtree(STATE / lab_id, ignore_errors=True)


def sweep() -> list[str]:
    """Removes the labs whose owner is dead, and gives their ids."""
    removed = []
    for folder in sorted(STATE.glob("[!.]*")) if STATE.exists() else []:
        state = _state(folder.name)
        if state is None or procs.start_time(int(str(state["owner"]))) != state["started"]:
            remove(folder.name)
            removed.append(folder.name)
    return removed


def start_reaper(lab_id: str) -> subprocess.Popen[bytes]:
    """A process that outlives this one and removes the lab when this one dies, even by SIGKILL."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools.lab.sweep", lab_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=REPO,
        start_new_session=True,
    )


def _state(lab_id: str) -> dict[str, object] | None:
    try:
        state: dict[str, object] = json.loads((STATE / lab_id / _STATE_FILE).read_text())
    except (OSError, ValueError):
        return None
    return state


def main() -> None:
    """The reaper. It ignores the signals that a terminal or a service manager sends to a whole group."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdin.buffer.read()
    if (STATE / sys.argv[1]).exists():
        remove(sys.argv[1])


if __name__ == "__main__":
    main()
