# SPDX-License-Identifier: Apache-2.0
"""What a MariaDB server answers, byte by byte: the samples of tests/unit/test_release_mysql.py, made anew.

    python -m tools.lab.mariasays FOLDER

Writes FOLDER/mariadb-CODENAME.json.zz (zlib): by each connection's name, what it asked and, as hex, what the server
said. As root: the server is mariabox's, in a namespace of its own.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.host.netlab import own_namespace, sh
from tools.lab import debian, mariabox
from tools.lab.paths import BUILD

_QUERY, _PREPARE, _EXECUTE, _PING = 0x03, 0x16, 0x17, 0x0E
_CAPABILITIES = 0x000FA201 | 0x20000  # 4.1, transactions, secure connection, plugins, multi-statements, results
DEPRECATE_EOF, SESSION_TRACK = 1 << 24, 1 << 23
_WAIT_S = 60.0


class Talk:
    """One connection of root, and all that was heard on it."""

    def __init__(self, more: int = 0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", 3306), 5)
        self.socket.settimeout(_WAIT_S)
        self._data = b""
        greeting = self._heard(1)
        words = struct.pack("<IIB23x", _CAPABILITIES | more, 1 << 26, 45) + b"root\0\0" + b"mysql_native_password\0"
        self._send(1, words)
        self.said: list[tuple[str, bytes]] = [("greeting", greeting), ("login", self._heard(1))]

    def ask(self, text: str) -> bytes:
        """A query; `prepared: ...` prepares it and executes it, which are two."""
        if text.startswith("prepared: "):
            text = text.removeprefix("prepared: ")
            made = self._command("prepare: " + text, bytes([_PREPARE]) + text.encode())
            if made[4] == 0xFF:
                return made
            return self._command("execute: " + text, bytes([_EXECUTE]) + made[5:9] + struct.pack("<BI", 0, 1))
        return self._command(text, bytes([_QUERY]) + text.encode())

    def _command(self, name: str, body: bytes) -> bytes:
        self._send(0, body)
        self._send(0, bytes([_PING]))  # its answer tells where the one before it ended
        both = self._heard(2)
        at = both.rindex(b"\7\0\0\1\0\0\0")
        self.said.append((name, both[:at]))
        return both[:at]

    def _send(self, sequence: int, body: bytes) -> None:
        self.socket.sendall(struct.pack("<I", len(body))[:3] + bytes([sequence]) + body)

    def _heard(self, answers: int) -> bytes:
        """So many whole answers: each begins anew with its sequence number, the greeting and the login's apart."""
        while True:
            at, begun = 0, 0
            while at + 4 <= len(self._data):
                size, sequence = int.from_bytes(self._data[at : at + 3], "little"), self._data[at + 3]
                begun += sequence == 1 or answers == 1
                at += 4 + size
            if begun >= answers and at == len(self._data):
                heard, self._data = self._data, b""
                return heard
            got = self.socket.recv(1 << 20)
            if not got:
                raise ConnectionError(f"the server closed, after {self._data!r}")
            self._data += got


@contextlib.contextmanager
def running(codename: str) -> Iterator[None]:
    """A server in a network namespace of this thread."""
    log = BUILD / "test" / f"mariabox-{codename}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    root = mariabox.ensure(codename, log.with_suffix(".build"))
    with own_namespace():
        sh("ip link set lo up")
        with mariabox.server(root, log):
            end = time.monotonic() + _WAIT_S
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", 3306), 1):
                    break
                if time.monotonic() > end:
                    raise RuntimeError(f"MariaDB does not answer: see {log}")
                time.sleep(0.2)
            yield


def main() -> None:
    """Hear all of it."""
    from tools.lab.mariaasked import CONNECTIONS, MADE, USE

    codename = debian.codename()
    with running(codename):
        maker = Talk()
        for text in MADE:
            if maker.ask(text)[4] == 0xFF:
                raise RuntimeError(f"{text}: {maker.said[-1][1]!r}")
        heard = {}
        for name, more, statements in CONNECTIONS:
            talk = Talk(more)
            for text in (USE, *statements):
                talk.ask(text)
            talk.socket.close()
            heard[name] = [(text, said.hex()) for text, said in talk.said]
    packed = zlib.compress(json.dumps(heard, separators=(",", ":")).encode(), 9)
    Path(sys.argv[1], f"mariadb-{codename}.json.zz").write_bytes(packed)


if __name__ == "__main__":
    main()
