# SPDX-License-Identifier: Apache-2.0
"""Who may see the console, and who may act by it; and that a foreign page can do neither."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remusdb.console import serve
from remusdb.console.access import Asked, Rules, judge
from remusdb.console.config import Console, load_console, read_token
from remusdb.control.api import Switchover
from remusdb.control.both import Told, ask_both
from remusdb.errors import ConfigError
from tests.unit.console_rig import TOKEN, Browser, Site, console

DO = "/vm/db1/do/switchover"
JSON = {"Content_Type": "application/json"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.go_on.set()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def browser(site: Site) -> Iterator[Browser]:
    with console(site.run_dir, token=TOKEN) as made:
        yield made


def origin(browser: Browser) -> dict[str, str]:
    return {"Origin": f"http://127.0.0.1:{browser.port}"}


def log_in(browser: Browser, token: str = TOKEN, **headers: str) -> int:
    """As a browser does; it keeps the cookie."""
    form = {"Content_Type": "application/x-www-form-urlencoded", **(headers or origin(browser))}
    status, _, told = browser.whole("/login", "POST", f"to=/&token={token}", **form)
    if "set-cookie" in told:
        assert "HttpOnly" in told["set-cookie"] and "samesite=strict" in told["set-cookie"].lower()
        browser.headers["Cookie"] = told["set-cookie"].partition(";")[0]
    return status


def word(browser: Browser) -> dict[str, str]:
    found = re.search(r'name="remusdb-console" content="([^"]+)"', browser.ask("/")[1])
    assert found is not None
    return {"X_Remusdb_Console": found[1]}


def test_nothing_of_a_vm_is_told_without_the_token(browser: Browser) -> None:
    for path in ("/", "/vm/db1", "/vm/db1/samples", "/events", "/metrics"):
        status, text = browser.ask(path)
        assert status == 401 and "db1" not in text
    status, _, told = browser.whole("/", Accept="text/html")
    assert status == 303 and told["location"] == "/login?to=/"
    assert log_in(browser, "not-the-token-not-the-token") == 403 and "Cookie" not in browser.headers
    assert browser.ask("/", Cookie=f"remusdb-console-{browser.port}=made-up")[0] == 401
    assert browser.ask("/", Authorization="Bearer not-the-token")[0] == 401
    assert browser.ask("/healthz")[0] == 200  # a load balancer has no token, and learns no name


def test_an_operator_acts(site: Site, browser: Browser) -> None:
    assert log_in(browser) == 303
    assert "db1" in browser.ask("/")[1]
    assert browser.ask(DO, "POST", "{}", **JSON, **origin(browser), **word(browser))[0] == 202
    until = time.monotonic() + 20
    while "in term 4" not in browser.ask("/vm/db1")[1]:
        assert time.monotonic() < until
    assert site.asked == [Switchover(vm="db1")]  # type: ignore[arg-type]
    assert browser.ask("/logout", "POST", "{}", **JSON, **origin(browser), **word(browser))[0] == 200
    assert browser.ask("/")[0] == 401


def test_what_a_foreign_page_can_have_a_browser_send_does_nothing(site: Site, browser: Browser) -> None:
    log_in(browser)
    good = {**JSON, **origin(browser), **word(browser)}
    evil = {"Origin": "http://evil.example"}
    for headers in (
        {**good, **evil},
        {**good, "Origin": "null"},
        {key: value for key, value in good.items() if key != "Origin"},
        {**good, "Content_Type": "text/plain"},
        {**good, "X_Remusdb_Console": "guessed"},
        {**JSON, **origin(browser)},
    ):
        assert browser.ask(DO, "POST", "{}", **headers)[0] == 403
    assert browser.ask(DO, "GET", **good)[0] == 405
    assert log_in(browser, **evil) == 403  # nor log somebody in as somebody else
    assert site.asked == []


def test_a_name_that_was_bound_to_our_address_is_refused(browser: Browser) -> None:
    log_in(browser)
    for host in ("evil.example", f"evil.example:{browser.port}", "", "[", "127.0.0.1.evil.example"):
        for path in ("/", "/metrics", "/healthz", "/login"):
            assert browser.ask(path, Host=host)[0] in (400, 421)
    assert browser.ask("/", Host="localhost")[0] == 200


def test_a_script_with_the_token_acts_and_scrapes(site: Site, browser: Browser) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert "remusdb_up" in browser.ask("/metrics", **bearer)[1]
    assert browser.ask(DO, "POST", "{}", **bearer)[0] == 415
    assert browser.ask(DO, "POST", "{}", **bearer, **JSON)[0] == 202


def test_without_a_token_it_only_shows(site: Site) -> None:
    with console(site.run_dir) as browser:
        status, text = browser.ask("/vm/db1")
        assert status == 200 and "Actions need a token" in text and "data-do" not in text
        assert browser.ask(DO, "POST", "{}", **JSON, **origin(browser), **word(browser))[0] == 403
    assert site.asked == []


def test_pages_bring_nothing_foreign_and_run_no_script_of_their_text(site: Site, browser: Browser) -> None:
    log_in(browser)
    site.say(reason="<script>alert(1)</script>", troubles=["arbiter"], hint="<img src=http://evil.example/x>")
    time.sleep(2.5)  # the next look
    for path in ("/", "/vm/db1", "/login"):
        status, text, told = browser.whole(path)
        assert status == 200 and "<script>" not in text and "<img src=http" not in text and " style=" not in text
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', text)
        policy = told["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "&lt;script&gt;" in browser.ask("/vm/db1")[1]


def test_odd_requests(site: Site, browser: Browser) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}", **JSON}
    assert browser.ask("/vm/..%2f..%2fetc", **bearer)[0] == 404
    assert browser.ask("/vm/nobody", **bearer)[0] == 404
    assert browser.ask("/static/../serve.py")[0] in (401, 404) and browser.ask("/static/%2e%2e/serve.py")[0] == 404
    assert browser.ask("/vm/db1/do/destroy", "POST", "{}", **bearer)[0] == 409
    assert browser.ask("/vm/db1/do/protect", "POST", "{}", **bearer)[0] == 409  # to which host?
    assert browser.ask(DO, "POST", "[" * 3000, **bearer)[0] == 400
    assert browser.ask(DO, "POST", "x" * 9000, **bearer)[0] == 400
    assert site.asked == []


def test_one_action_at_a_time(site: Site, browser: Browser) -> None:
    site.go_on.clear()
    bearer = {"Authorization": f"Bearer {TOKEN}", **JSON}
    assert browser.ask(DO, "POST", "{}", **bearer)[0] == 202
    status, text = browser.ask(DO, "POST", "{}", **bearer)
    assert status == 409 and "under way" in json.loads(text)["error"]
    site.go_on.set()


def test_a_page_is_told_of_a_change_without_being_loaded_again(site: Site, browser: Browser) -> None:
    with socket.create_connection(("127.0.0.1", browser.port), timeout=20) as sock:
        sock.sendall(f"GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        read = b""
        while b"db1 to beta" not in read:
            read += sock.recv(65536)
        site.say(state="held", reason="beta is not heard")
        while b"NOT PROTECTED" not in read:
            part = sock.recv(65536)
            assert part
            read += part
    assert b"text/event-stream" in read


def config(tmp_path: Path, text: str) -> Console:
    file = tmp_path / "console.toml"
    file.write_text(f"[console]\n{text}\n")
    return load_console(file, required=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('listen = "0.0.0.0"', "no TLS"),
        ('listen = "192.0.2.1"\ntoken_file = "/t"', "no TLS"),
        ('listen = "::"\ncert = "/c"\nkey = "/k"', "nobody would have to show"),
        ('cert = "/c"', "one is there without the other"),
        ('client_ca = "/c"', "need TLS"),
        ('listen = "localhost"', "no IP address"),
        ("prot = 1", "unknown key"),
        ("daemons = []", "daemons"),
    ],
)  # fmt: skip
def test_what_would_be_open_is_refused_before_it_listens(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config(tmp_path, text)


def test_away_from_loopback_with_tls_and_one_who_shows_who_he_is(tmp_path: Path) -> None:
    tls = 'listen = "192.0.2.1"\ncert = "/c"\nkey = "/k"\n'
    assert config(tmp_path, tls + 'token_file = "/t"').hosts == {"192.0.2.1"}
    assert config(tmp_path, tls + 'client_ca = "/ca"\nnames = ["DB.example"]').hosts == {"192.0.2.1", "db.example"}


def test_a_token_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for content, mode, says in (
        (TOKEN, 0o644, "every user"),
        ("short", 0o600, "24 characters"),
        ("ä" * 30, 0o600, "cannot be read"),
    ):
        file.write_text(content)
        file.chmod(mode)
        with pytest.raises(ConfigError, match=says):
            read_token(file)
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


def test_a_client_certificate_stands_for_the_token_but_not_for_the_page() -> None:
    rules = Rules(frozenset({"db.example"}), None, tls=True, client_cert=True)
    good: dict[str, Any] = {"method": "POST", "path": DO, "host": "db.example:7480", "json": True, "word": "w"}
    assert judge(Asked(origin="https://db.example:7480", **good), rules, "w").status == 200
    assert judge(Asked(origin="http://db.example:7480", **good), rules, "w").status == 403
    assert judge(Asked(**good), rules, "w").status == 403


def test_who_has_no_token_cannot_keep_the_daemons_busy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def counted(*words: Any, **more: Any) -> Told:
        asked.append(words)
        return ask_both(*words, **more)

    monkeypatch.setattr(serve, "ask_both", counted)
    with console(site.run_dir, TOKEN) as browser:
        for _ in range(40):
            assert browser.ask("/healthz")[0] == 200
            assert browser.ask("/readyz")[0] == 200
    assert len(asked) < 40  # of 80
