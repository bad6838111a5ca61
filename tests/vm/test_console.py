# SPDX-License-Identifier: Apache-2.0
"""The web console in a real browser, and a real Prometheus, while a VM is moved and its host dies."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.vm.pair import Pair, eventually, running_pair
from tools.lab.webconsole import WebConsole, chromium, free_port

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "build" / "test" / __name__
DASHBOARD = json.loads((REPO / "docs" / "monitoring" / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
HEADLINE = "return document.querySelector('.verdict h1').textContent.trim().replace(/\\s+/g, ' ')"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two hosts with an arbiter, so that a backup may take over."""
    with running_pair(FOLDER, arbiter=True) as made:
        yield made


@pytest.fixture
def consoles(pair: Pair, tmp_path: Path) -> Iterator[tuple[WebConsole, WebConsole]]:
    a = WebConsole(pair.a, tmp_path)
    try:
        b = WebConsole(pair.b, tmp_path)
        yield a, b
        b.stop()
    finally:
        a.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    with chromium(tmp_path / "profile") as made:
        yield made


def headline(browser: Chrome) -> str:
    """The first words of the page."""
    return str(browser.execute_script(HEADLINE))


def log_in(browser: Chrome, console: WebConsole, path: str) -> None:
    """Come to this page as a person does, by way of the form."""
    browser.get(console.url + path)
    browser.find_element(By.NAME, "token").send_keys(console.token)
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    eventually(lambda: urllib.parse.urlsplit(browser.current_url).path == path, otherwise="the token lets nobody in")
    browser.execute_script("window.loadedOnce = true")


def not_loaded_again(browser: Chrome) -> bool:
    """Whether this is still the page that `log_in` came to."""
    return bool(browser.execute_script("return window.loadedOnce === true"))


def act(browser: Chrome, action: str) -> str:
    """Press the action's button, and confirm; what the question said."""
    browser.find_element(By.CSS_SELECTOR, f"[data-dialog=do-{action}]").click()
    dialog = browser.find_element(By.ID, f"do-{action}")
    said = dialog.text
    dialog.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    return said


@contextmanager
def prometheus(consoles: tuple[WebConsole, ...], folder: Path) -> Iterator[str]:
    """Debian's, scraping these consoles each second: its URL."""
    port = free_port()
    scrapes = [
        {
            "job_name": f"remusdb-{number}",
            "scrape_interval": "1s",
            "authorization": {"credentials_file": str(console.token_file)},
            "static_configs": [{"targets": [f"127.0.0.1:{console.port}"]}],
        }
        for number, console in enumerate(consoles)
    ]
    file = folder / "prometheus.yml"
    file.write_text(json.dumps({"scrape_configs": scrapes}))  # JSON is YAML
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def shown(url: str, query: str) -> list[Any]:
    """What a panel of the dashboard shows, of all VMs and hosts."""
    for variable, value in (("$vm", ".*"), ("$host", ".*"), ("$__rate_interval", "10s")):
        query = query.replace(variable, value)
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10) as told:
        result: list[Any] = json.load(told)["data"]["result"]
    return result


def refusal(console: WebConsole, path: str, **headers: str) -> int:
    """How an action is refused that is asked for so."""
    asked = urllib.request.Request(console.url + path, b"{}", {"content-type": "application/json", **headers})
    with pytest.raises(urllib.error.HTTPError) as told:
        urllib.request.urlopen(asked, timeout=10)
    told.value.close()
    return told.value.code


def test_nobody_looks_or_acts_without_the_token(consoles: tuple[WebConsole, WebConsole], browser: Chrome) -> None:
    console, path = consoles[0], "/vm/db1/do/switchover"
    assert refusal(console, path) == 401
    assert refusal(console, path, authorization="Bearer guessed") == 401
    browser.get(console.url)
    assert "/login" in browser.current_url
    browser.find_element(By.NAME, "token").send_keys("guessed")
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    eventually(lambda: "not the token" in browser.find_element(By.TAG_NAME, "main").text)
    browser.get(console.url)
    assert "/login" in browser.current_url


@pytest.mark.timeout(600)
def test_a_switchover_by_clicking_and_a_failover_are_seen_live(
    pair: Pair, consoles: tuple[WebConsole, WebConsole], browser: Chrome, tmp_path: Path
) -> None:
    a, b = consoles
    vm = pair.bare()
    log_in(browser, a, "/")
    assert headline(browser) == "NOT PROTECTED"
    pair.protect(vm.name)
    eventually(lambda: headline(browser) == "PROTECTED", otherwise="the overview does not say that it is protected")
    assert not_loaded_again(browser)
    with prometheus(consoles, tmp_path) as url:
        for query in QUERIES:
            eventually(lambda query=query: shown(url, query), 30, f"no data: {query}")  # type: ignore[misc]

    log_in(browser, a, f"/vm/{vm.name}")
    assert headline(browser) == f"{vm.name} PROTECTED"
    said = act(browser, "switchover")
    assert "What clients see" in said and "Connections stay" in said
    eventually(lambda: pair.product.owner(vm.name) == "b", 30, "it was not moved")
    eventually(lambda: "PROTECTED" not in headline(browser), otherwise="its page does not say that it left")
    assert not_loaded_again(browser)

    log_in(browser, b, f"/vm/{vm.name}")
    assert headline(browser) == f"{vm.name} NOT PROTECTED"
    act(browser, "reprotect")
    eventually(lambda: headline(browser) == f"{vm.name} PROTECTED", 30, "it was not protected to a")
    assert not_loaded_again(browser)

    log_in(browser, a, f"/vm/{vm.name}")
    assert headline(browser) == f"{vm.name} backup here"
    pair.b.kill()
    try:
        eventually(lambda: headline(browser) == f"{vm.name} NOT PROTECTED", 30, "its page does not show the takeover")
        assert not_loaded_again(browser)
        assert "takeover" in browser.find_element(By.ID, "history").text
        assert pair.runs(vm, pair.a)
    finally:
        pair.product.reboot("b")
