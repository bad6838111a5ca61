# SPDX-License-Identifier: Apache-2.0
"""Ask a daemon on this machine for something."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from remusdb.control.codec import Done, Failed, ProgressFn, Reply, Request, read_answer
from remusdb.control.lines import LineChannel
from remusdb.errors import PeerUnreachable


def call(
    socket_path: Path | str,
    request: Request[Reply],
    on_progress: ProgressFn | None = None,
    timeout_s: float | None = 30.0,
) -> Reply:
    """One request; its reply, or its error raised as its own class.

    `timeout_s` bounds each silence of the daemon, not the whole call; None waits for as long as the daemon lives.
    """
    path = Path(socket_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        _connect(sock, path)
        channel = LineChannel(sock)
        try:
            with contextlib.suppress(BrokenPipeError):  # turned away: it has said why
                channel.send(request)
            return _answer(channel, request, on_progress, path)
        except TimeoutError as exc:
            raise PeerUnreachable(
                f"the {path.stem} daemon did not answer `{request.op()}` within {timeout_s:g} s", hint=_look(path)
            ) from exc
        except OSError as exc:
            raise PeerUnreachable(
                f"the {path.stem} daemon hung up during `{request.op()}`: {exc}", hint=_look(path)
            ) from exc


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


def _answer(channel: LineChannel, request: Request[Reply], on_progress: ProgressFn | None, path: Path) -> Reply:
    while (line := channel.line()) is not None:
        match read_answer(line):
            case Done() as done:
                return done.value(request)
            case Failed() as failed:
                raise failed.error()
            case progress:
                if on_progress:
                    on_progress(progress)
    raise PeerUnreachable(f"the {path.stem} daemon ended before it answered", hint=_look(path))


def _unit(path: Path) -> str:
    return f"remusdb-{path.stem}.service"


def _look(path: Path) -> str:
    return f"see: journalctl -u {_unit(path)}"
