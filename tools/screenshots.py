# SPDX-License-Identifier: Apache-2.0
"""`make screenshots`: the console's pages of a protected PostgreSQL VM under load, as pictures in docs/images/."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tools.lab.paths import BUILD, REPO
from tools.lab.webconsole import WebConsole, chromium, colours, resize
from tools.rig import VM, running_rig
from tools.show import run_to_exit, say, step

TO = REPO / "docs" / "images"
FILL_S = 90.0  # so much of the plots is filled
SIZES = {"": (1280, 900), "-phone": (390, 844)}


def main() -> int:
    """The exit code: always 0."""
    TO.mkdir(exist_ok=True)
    with running_rig(BUILD / "screenshots") as rig, tempfile.TemporaryDirectory() as scratch:
        with step(f"{VM} is protected"):
            owner = rig.make_protected()
        console = WebConsole(rig.host(owner), Path(scratch))
        try:
            with chromium(Path(scratch) / "profile") as browser:
                browser.get(console.url)
                browser.find_element(By.NAME, "token").send_keys(console.token)
                browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
                with step(f"{FILL_S:.0f} s for the plots"):
                    time.sleep(FILL_S)
                take(browser, console.url, "console-overview")
                take(browser, f"{console.url}/vm/{VM}", "console-vm")
        finally:
            console.stop()
    return 0


def take(browser: Chrome, url: str, name: str) -> None:
    """This page, as wide as a desk's screen and a phone's, light and dark: four files."""
    for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            resize(browser, width, height)
            colours(browser, scheme)
            browser.get(url)
            time.sleep(3.0)  # the first look, and the plots
            file = TO / f"{name}{size}-{scheme}.png"
            browser.save_screenshot(str(file))
            say(f"  {file.relative_to(REPO)}")


if __name__ == "__main__":
    run_to_exit(main, "screenshots")
