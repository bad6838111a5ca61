# SPDX-License-Identifier: Apache-2.0
"""The console as an operator meets it: in a browser, before real hosts, while a VM is moved and while a host dies.

`make screenshots` runs this, and keeps pictures of the pages in docs/images.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.vm.browsing import TOKEN, Prometheus, chromium, faults, relay, shoot, start_console, wear
from tests.vm.pair import Pair, eventually
from tools.lab import domains
from tools.lab.guest import Mode

REPO = Path(__file__).resolve().parents[2]
LOGS = REPO / "build" / "test" / "console"
PICTURES = os.environ.get("REMUSDB_PICTURES")
PLOTTED_S = 75 if PICTURES else 0  # so long a picture's plots go back
VM = "orders-db"


@pytest.fixture(scope="module")
def ports(pair: Pair) -> Iterator[dict[str, int]]:
    """The consoles of both hosts, each behind a port of this machine."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for host in (pair.a, pair.b):
        start_console(host, LOGS / f"console-{host.name}.log")
    with relay(pair.a) as a, relay(pair.b) as b:
        yield {"a": a, "b": b}


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as made:
        yield made


def open_page(browser: webdriver.Chrome, port: int, path: str) -> None:
    """A page, with the token where it is asked for."""
    browser.get(f"http://127.0.0.1:{port}{path}")
    if browser.find_elements(By.NAME, "token"):
        browser.find_element(By.NAME, "token").send_keys(TOKEN)
        browser.find_element(By.CSS_SELECTOR, "button.primary").click()
    eventually(lambda: head(browser), 30, "the page does not come")
    browser.execute_script("window.notLoadedAgain = true")


def text(browser: webdriver.Chrome, selector: str) -> str:
    """What stands there now, at once: an element that was found is gone when the page follows. Empty: not there."""
    return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def head(browser: webdriver.Chrome) -> str:
    return text(browser, ".verdict")


def await_head(browser: webdriver.Chrome, *words: str, within_s: float = 30) -> None:
    """Wait until the page says this, without having been loaded again."""
    eventually(lambda: all(word in head(browser) for word in words), within_s, f"{words}: {head(browser)}")
    assert browser.execute_script("return window.notLoadedAgain")


def panels() -> dict[str, str]:
    """Each query of the dashboard that has data while a VM is protected, by the panel's title."""
    board: dict[str, Any] = json.loads((REPO / "docs/monitoring/grafana-dashboard.json").read_text())
    return {
        f"{panel['title']} {target['refId']}": re.sub(
            r"\$(vm|host)", ".*", target["expr"].replace("$__rate_interval", "10s")
        )
        for panel in board["panels"]
        for target in panel["targets"]
    }


def picture(browser: webdriver.Chrome, name: str, width: int = 1200, height: int = 900) -> None:
    if PICTURES:
        Path(PICTURES).mkdir(exist_ok=True)
        shoot(browser, Path(PICTURES) / f"{name}.png", width, height)


@pytest.mark.timeout(500)
def test_a_console_while_a_vm_is_moved_and_a_host_dies(
    pair: Pair, ports: dict[str, int], browser: webdriver.Chrome, tmp_path: Path
) -> None:
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name=VM)
    pair.start(vm)
    prometheus = Prometheus(tmp_path / "prometheus", ports)
    try:
        pair.protect(VM)
        _refused_without_the_token(browser, ports["a"])
        open_page(browser, ports["a"], "/")
        await_head(browser, "PROTECTED", VM)
        open_page(browser, ports["a"], f"/vm/{VM}")
        await_head(browser, "PROTECTED", "with b")
        eventually(lambda: pair.product.status(VM)["proven_at_ns"], 60, "the standby was not proven")
        _every_panel_has_data(prometheus)
    finally:
        prometheus.close()
    if PLOTTED_S:
        time.sleep(PLOTTED_S)
    for scheme in ("light", "dark"):
        wear(browser, scheme)
        for path, name in (("/", "overview"), (f"/vm/{VM}", "vm")):
            open_page(browser, ports["a"], path)
            await_head(browser, "PROTECTED")
            if name == "vm":
                eventually(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#plots canvas")) == 7, 10, "no plots")
            assert faults(browser) == [], f"{name} in {scheme}"
            picture(browser, f"console-{name}-{scheme}", 1200, 480 if name == "overview" else 1240)
    wear(browser, "light")
    picture(browser, "console-phone", 390, 844)

    # A switchover by clicking.
    browser.find_element(By.CSS_SELECTOR, "[data-dialog=do-switchover]").click()
    asked = text(browser, "#do-switchover")
    assert "Connections stay" in asked and f"{VM} moves to b" in asked
    assert faults(browser) == []
    picture(browser, "console-switchover", 1200, 760)
    browser.find_element(By.CSS_SELECTOR, "#do-switchover [type=submit]").click()
    eventually(lambda: "it runs on b now" in text(browser, "#work"), 60, "it was not moved")
    assert browser.execute_script("return window.notLoadedAgain")
    eventually(lambda: pair.running(pair.b) == [VM], 20, "it does not run on b")

    # The host that runs it now dies, and the page of the other one sees it.
    pair.product.cli("b", "reprotect", VM, "--to", "a", timeout_s=90)
    open_page(browser, ports["a"], f"/vm/{VM}")
    await_head(browser, "backup here", "replica of b")
    pair.b.kill()
    await_head(browser, "NOT PROTECTED", "promoted")
    eventually(lambda: "takeover" in text(browser, "#history"), 20, "the history does not tell of it")
    assert faults(browser) == []
    picture(browser, "console-takeover", 1200, 760)
    pair.product.reboot("b")


def _refused_without_the_token(browser: webdriver.Chrome, port: int) -> None:
    browser.get(f"http://127.0.0.1:{port}/vm/{VM}")
    assert "Log in" in browser.title and VM not in text(browser, "main")
    browser.find_element(By.NAME, "token").send_keys("not-the-token-not-the-token")
    browser.find_element(By.CSS_SELECTOR, "button.primary").click()
    eventually(lambda: "not the token" in text(browser, "main"), 20, "a wrong token is not refused")
    act = (
        "return fetch(arguments[0], {method: 'POST', body: '{}', headers: {'content-type': 'application/json'}})"
        ".then(answer => answer.status)"
    )
    assert browser.execute_script(act, f"/vm/{VM}/do/switchover") == 401
    assert faults(browser) == []


def _every_panel_has_data(prometheus: Prometheus) -> None:
    empty = panels()

    def shown() -> bool:
        for title in [title for title, query in empty.items() if prometheus.ask(query)]:
            del empty[title]
        return not empty

    eventually(shown, 60, f"no data: {empty}")
    assert [one["value"][1] for one in prometheus.ask("remusdb_vm_protected")] == ["1"]
