# SPDX-License-Identifier: Apache-2.0
"""Commands in a machine, through QEMU's guest agent: a virtio port, so neither network nor sshd need work for it."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remusdb.deadline import Deadline

_POLL_S = 0.5  # each look is a start of nothing in the machine, but a round trip through an emulated CPU
_ANSWER_S = 60.0  # one answer of the agent itself, on a machine that is busy and emulated
_MAX_ANSWER_BYTES = 64 << 20  # the agent's own bound on a command's output is 16 MiB, in base64


class AgentError(RuntimeError):
    """The guest agent does not answer, or refuses."""


@dataclass(frozen=True)
class Done:
    """A command that ended: `code` is its exit status, or minus the signal that ended it."""

    code: int
    out: str
    err: str


class GuestAgent:
    """Talks to the agent of one machine. Each question has a connection of its own: a machine may die at any time."""

    def __init__(self, path: Path) -> None:
        """`path` is the unix socket of QEMU's end of the virtio port."""
        self._path = path

    def answers(self, timeout_s: float = 5.0) -> bool:
        """Whether the machine has booted so far that its agent runs."""
        with contextlib.suppress(AgentError, OSError):
            self._ask("guest-ping", {}, timeout_s)
            return True
        return False

    def run(self, script: str, timeout_s: float, stdin: bytes = b"") -> Done:
        """Runs a shell script as root to its end. Raises AgentError when the agent is silent or the time is over."""
        deadline = Deadline.after(timeout_s)
        arguments: dict[str, Any] = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        arguments["env"] = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        pid = self._ask("guest-exec", arguments, _ANSWER_S)["pid"]
        while not (told := self._ask("guest-exec-status", {"pid": pid}, _ANSWER_S))["exited"]:
            if deadline.over:
                raise AgentError(f"after {timeout_s:.0f} s it has not ended: {script}")
            time.sleep(_POLL_S)
        out, err = (base64.b64decode(told.get(key, "")).decode(errors="replace") for key in ("out-data", "err-data"))
        return Done(told["exitcode"] if "exitcode" in told else -told["signal"], out, err)

    def _ask(self, command: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        """One question. Whatever was still on the way for an earlier one is passed over."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(timeout_s)
            try:
                link.connect(str(self._path))
                mark = secrets.randbelow(1 << 31)
                # 0xff ends a half question that the agent may hold; its answer to this begins with one, too.
                sync = json.dumps({"execute": "guest-sync-delimited", "arguments": {"id": mark}})
                link.sendall(b"\xff" + sync.encode() + b"\n")
                with link.makefile("rb") as answers:
                    while _line(answers.readline(_MAX_ANSWER_BYTES)).get("return") != mark:
                        pass
                    link.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                    told = _line(answers.readline(_MAX_ANSWER_BYTES))
            except OSError as exc:
                raise AgentError(f"{command}: the machine's agent does not answer: {exc}") from exc
        if "error" in told:
            raise AgentError(f"{command}: {told['error'].get('desc', told['error'])}")
        return told["return"]


def _line(line: bytes) -> dict[str, Any]:
    if not line:
        raise AgentError("the machine is gone")
    try:
        told = json.loads(line.rpartition(b"\xff")[2])
    except ValueError:  # the rest of an answer to somebody who left
        return {}
    return told if isinstance(told, dict) else {}
