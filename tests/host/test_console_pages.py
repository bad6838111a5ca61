# SPDX-License-Identifier: Apache-2.0
"""The console's pages in a browser: for everybody to read and to use, whatever the VMs do, by night, on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from remusdb.reasons import Code, Reason
from remusdb.wording import words
from tests import waiting
from tests.unit.console_rig import GOOD, KEPT, TOKEN, Site, console
from tests.vm.browsing import chromium, faults, screen, wear

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Selenium leaves sockets to the collector
LOST = Reason.of(Code.PEER_LOST, peer="beta")
STATES = {
    "protected": lambda site: None,
    "weak": lambda site: site.say(troubles=["arbiter"], reason="the arbiter does not answer"),
    "solo": lambda site: site.say(state="solo", why=LOST, reason=words(LOST), hint="remusdb status db1"),
    "held": lambda site: site.say(state="held", reason="output waits for beta"),
    "fenced": lambda site: site.say(state="fenced", owner="beta", quarantined_disks={"vda": "/srv/db1.qcow2"}),
    "promoted": lambda site: site.kept.append(replace(KEPT, vm="old", role="promoted", state="promoted")),
    "host daemon down": lambda site: site.stop("host"),
    "no VMs": lambda site: (site.own.clear(), site.kept.clear()),
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.start()
    yield made
    made.go_on.set()
    made.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as made:
        yield made


@pytest.fixture
def url(site: Site, browser: Chrome) -> Iterator[str]:
    """Of a console that the browser has logged in to."""
    with console(site.run_dir, TOKEN) as served:
        address = f"http://127.0.0.1:{served.port}"
        browser.get(address)
        browser.find_element(By.NAME, "token").send_keys(TOKEN, Keys.ENTER)
        waiting.eventually(lambda: browser.find_elements(By.CSS_SELECTOR, ".verdict h1"), 30)
        yield address
        browser.get("about:blank")  # its stream ends


def faulty(browser: Chrome) -> list[str]:
    """What axe-core finds serious, on a wide page by day and on a phone by night; and a page wider than its screen."""
    found = []
    for width, scheme in ((1280, "light"), (390, "dark")):
        screen(browser, width, 844)
        wear(browser, scheme)
        found += [f"{width} {scheme}: {fault}" for fault in faults(browser)]
        if browser.execute_script("return document.documentElement.scrollWidth > innerWidth"):
            found.append(f"{width} {scheme}: the page is wider than the screen")
    return found


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_pages_are_for_everybody_to_read(
    site: Site, url: str, browser: Chrome, change: Callable[[Site], object]
) -> None:
    change(site)
    paths = ["/", "/vm/db1"] + ["/vm/reporting"] * (change == STATES["protected"])
    for path in paths:
        browser.get(url + path)
        assert faulty(browser) == [], path


def press(browser: Chrome, *keys: str) -> None:
    """Keys for whatever has the focus."""
    ActionChains(browser).send_keys(*keys).perform()


def test_an_action_is_done_by_the_keyboard_alone(site: Site, url: str, browser: Chrome) -> None:
    focus = "return document.activeElement.dataset.dialog === 'do-switchover'"
    asked = "return document.getElementById('do-switchover').open"
    browser.get(f"{url}/vm/{GOOD.vm}")
    for _ in range(20):
        press(browser, Keys.TAB)
        if browser.execute_script(focus):
            break
    press(browser, Keys.ENTER)
    assert browser.execute_script(asked)
    assert "What clients see" in browser.find_element(By.ID, "do-switchover").text
    assert faulty(browser) == []
    press(browser, Keys.ESCAPE)
    assert not browser.execute_script(asked) and site.asked == []
    assert browser.execute_script(focus)
    press(browser, Keys.ENTER, Keys.TAB, Keys.ENTER)  # from Cancel, which is first, to the action
    waiting.eventually(lambda: site.asked, 30, "it was not asked for")
