# SPDX-License-Identifier: Apache-2.0
"""Ask a daemon on this machine for something."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remusdb.control.lines import LineChannel
from remusdb.errors import BadFrame, PeerUnreachable, from_dict


def call(
    socket_path: Path | str,
    op: str,
    args: dict[str, Any],
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    timeout_s: float | None = 30.0,
) -> dict[str, Any]:
    """One request; its result, or its error raised as its own class.

    `timeout_s` bounds each silence of the daemon, not the whole call; None waits for as long as the daemon lives.
    """
    path = Path(socket_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        _connect(sock, path)
        channel = LineChannel(sock)
        try:
            with contextlib.suppress(BrokenPipeError):  # turned away: it has said why
                channel.send({"op": op, "args": args})
            return _answer(channel, on_progress, path)
        except TimeoutError as exc:
            raise PeerUnreachable(
                f"the {path.stem} daemon did not answer `{op}` within {timeout_s:g} s", hint=_look(path)
            ) from exc
        except OSError as exc:
            raise PeerUnreachable(f"the {path.stem} daemon hung up during `{op}`: {exc}", hint=_look(path)) from exc


def _connect(sock: socket.socket, path: Path) -> None:
    try:
        sock.connect(str(path))
    except PermissionError as exc:
        raise PeerUnreachable(f"{path}: permission denied", hint="run this as root") from exc
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise PeerUnreachable(
            f"the {path.stem} daemon is not running (nothing listens on {path})",
            hint=f"start it: systemctl start {_unit(path)}; or name its folder with --run-dir",
        ) from exc
    except OSError as exc:
        raise PeerUnreachable(f"{path}: {exc.strerror or exc}", hint=_look(path)) from exc


def _answer(channel: LineChannel, on_progress: Callable[[dict[str, Any]], None] | None, path: Path) -> dict[str, Any]:
    while (message := channel.receive()) is not None:
        match message:
            case {"result": dict(result)}:
                return result
            case {"error": dict(error)}:
                raise from_dict(error)
            case {"progress": dict(progress)}:
                if on_progress:
                    on_progress(progress)
            case _:
                raise BadFrame(f"the {path.stem} daemon answered with neither result, error nor progress")
    raise PeerUnreachable(f"the {path.stem} daemon ended before it answered", hint=_look(path))


def _unit(path: Path) -> str:
    return f"remusdb-{path.stem}.service"


def _look(path: Path) -> str:
    return f"see: journalctl -u {_unit(path)}"
