# SPDX-License-Identifier: Apache-2.0
"""Something on etcd's port that speaks HTTP as its gateway does, and says what a test has it say."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from remusdb.arbiter.arbiter import Arbiter
from remusdb.config import Arbiter as Config

HEADER = '{"cluster_id": "7", "member_id": "1", "revision": "41", "raft_term": "2"}'
DEEP = "[" * 100_000 + "]" * 100_000
WON = f'{{"header": {HEADER}, "succeeded": true, "responses": []}}'
KEY = base64.b64encode(b"/remusdb/vm").decode()


class Gateway:
    """`said`: path -> what it answers, one after the other; the last one stays."""

    def __init__(self) -> None:
        self.said: dict[str, list[tuple[int, bytes]]] = {}
        self.asked: list[str] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                gateway.asked.append(self.path)
                answers = gateway.said[self.path]
                status, body = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True).start()
        self.arbiter = Arbiter(Config(endpoints=[f"http://127.0.0.1:{self._server.server_port}"], timeout_ms=20_000))

    def says(self, path: str, *bodies: str | bytes | tuple[int, str | bytes]) -> None:
        answers = [body if isinstance(body, tuple) else (200, body) for body in bodies]
        self.said[f"/v3/{path}"] = [(code, text.encode() if isinstance(text, str) else text) for code, text in answers]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def gateway_at_work() -> Iterator[Gateway]:
    """One, on a free port."""
    gateway = Gateway()
    yield gateway
    gateway.close()


def kvs(value: bytes, revision: str = "40", key: str = KEY) -> str:
    pair = {"key": key, "mod_revision": revision, "value": base64.b64encode(value).decode()}
    return f'{{"header": {HEADER}, "kvs": [{json.dumps(pair)}], "count": "1"}}'


RECORD = kvs(b'{"owner": "a", "term": 1}')
