# SPDX-License-Identifier: Apache-2.0
"""The console over TLS, by real handshakes: who has neither token nor certificate learns nothing and does nothing."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remusdb.control.api import Switchover
from remusdb.transport.certs import make_ca_and_hosts
from tests.unit.console_rig import TOKEN, Browser, Site, console

DO = "/vm/db1/do/switchover"


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the console's CA, and of another one."""
    out = tmp_path_factory.mktemp("certs")
    make_ca_and_hosts(out, {"console": ["127.0.0.1"], "admin": ["127.0.0.1"]})
    make_ca_and_hosts(out / "strange", {"admin": ["127.0.0.1"]})
    return out


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.go_on.set()
    made.start()
    yield made
    made.stop()


def files(certs: Path, name: str) -> dict[str, Path]:
    return {"cert": certs / name / "cert.pem", "key": certs / name / "key.pem"}


def ask(browser: Browser, certs: Path, path: str, client: str = "", token: str = "", method: str = "GET") -> int:
    """The status of the answer. OSError where there is none: the console does not talk to such a client."""
    trust = ssl.create_default_context(cafile=certs / "admin" / "ca.pem")
    if client:
        trust.load_cert_chain(certs / client / "cert.pem", certs / client / "key.pem")
    connection = http.client.HTTPSConnection("127.0.0.1", browser.port, context=trust, timeout=20)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request(method, path, json.dumps({}) if method == "POST" else None, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_with_a_token_over_tls(site: Site, certs: Path) -> None:
    with console(site.run_dir, token=TOKEN, **files(certs, "console")) as browser:
        with pytest.raises((OSError, http.client.HTTPException)):
            browser.ask("/")  # in plain
        assert ask(browser, certs, "/") == 401 and ask(browser, certs, "/", token="not-the-token" * 3) == 401
        assert ask(browser, certs, DO, method="POST") in (401, 403) and site.asked == []
        assert ask(browser, certs, "/", token=TOKEN) == 200
        assert ask(browser, certs, DO, token=TOKEN, method="POST") == 202
        with pytest.raises(ssl.SSLError):  # a client who trusts another CA sends it nothing
            ask(browser, certs / "strange", "/", token=TOKEN)


@pytest.mark.parametrize("client", ["", "strange/admin"])
def test_without_a_certificate_of_its_ca_nothing_is_said(site: Site, certs: Path, client: str) -> None:
    settings: dict[str, Any] = {**files(certs, "console"), "client_ca": certs / "console" / "ca.pem"}
    with console(site.run_dir, **settings) as browser:
        for path in ("/", "/metrics", "/healthz", "/login"):
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(browser, certs, path, client)
        assert ask(browser, certs, "/", "admin") == 200
    assert site.asked == []


def test_a_client_with_a_certificate_looks_and_a_foreign_page_in_its_browser_does_nothing(
    site: Site, certs: Path
) -> None:
    settings: dict[str, Any] = {**files(certs, "console"), "client_ca": certs / "console" / "ca.pem"}
    with console(site.run_dir, **settings) as browser:
        assert ask(browser, certs, "/metrics", "admin") == 200
        assert ask(browser, certs, DO, "admin", method="POST") == 403  # without the word of our own pages
    assert Switchover(vm="db1") not in site.asked  # type: ignore[arg-type]
