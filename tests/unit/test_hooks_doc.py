# SPDX-License-Identifier: Apache-2.0
"""docs/hooks.md says what is so: its event is one, its names are all there are, its example works."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import get_args

import msgspec

from remusdb.history import Author, Event, EventName
from remusdb.hooks import AT_ONCE, OUTPUT_MAX_BYTES, TIMEOUT_S, WAITING_MAX_EVENTS, Hooks

DOC = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()
EXAMPLE = re.findall(r"```json\n(.*?)```", DOC, re.DOTALL)[0]


def row(field: str) -> set[str]:
    [text] = re.findall(rf"^\| `{field}` \| (.*) \|$", DOC, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", text))


def test_the_event_is_one_with_every_field() -> None:
    assert set(json.loads(EXAMPLE)) == set(Event.__struct_fields__)
    assert msgspec.json.decode(EXAMPLE, type=Event).event == "takeover"


def test_all_names_and_limits_are_there() -> None:
    assert row("event") == set(get_args(EventName))
    assert row("by") == set(get_args(Author))
    text = " ".join(DOC.split())
    assert f"after {TIMEOUT_S:g} s at the latest" in text
    assert f"first {OUTPUT_MAX_BYTES >> 10} KiB" in text
    assert AT_ONCE == 8 and "Eight runs at most" in text
    assert f"more than {WAITING_MAX_EVENTS} events" in text


def test_the_example_sends_its_message(tmp_path: Path) -> None:
    heard: list[dict[str, str]] = []

    class Room(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Room)
    threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
    try:
        (tmp_path / "webhook").write_text(f"http://127.0.0.1:{server.server_port}/room\n")
        script = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)[0]
        (tmp_path / "hooks.d").mkdir(mode=0o755)
        hook = tmp_path / "hooks.d" / "50-notify"
        hook.write_text(script.replace("/etc/remusdb/webhook", str(tmp_path / "webhook")))
        hook.chmod(0o755)
        told = msgspec.json.decode(EXAMPLE, type=Event)
        hooks = Hooks(tmp_path / "hooks.d")
        hooks.run(told)
        hooks.run(msgspec.structs.replace(told, event="resync"))
        assert hooks.wait_idle(20)
    finally:
        server.shutdown()
        server.server_close()
    assert heard == [{"text": f"db1 on beta: takeover, ready -> deciding (term 4): {told.reason}"}]
