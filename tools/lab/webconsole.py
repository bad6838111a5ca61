# SPDX-License-Identifier: Apache-2.0
"""`remusdb console` for a host of the lab, and a Chromium that looks at it.

A console needs nothing of its host but the control sockets, so it runs outside of the lab's networks, on loopback: a
browser and a Prometheus of this machine reach it there.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from remusdb.deadline import Deadline, poll_until
from tools.lab.host import Host
from tools.lab.paths import REPO

START_S = 60.0
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


class WebConsole:
    """It, with a token. Ends with `stop`."""

    def __init__(self, host: Host, folder: Path, called: str = "") -> None:
        """Its files and its log are made in `folder`. `called`: the machine's name, as pages show it."""
        called = called or host.name
        self.token, self.port = secrets.token_urlsafe(24), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.token_file, file = folder / f"token-{called}", folder / f"console-{called}.toml"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(f"{self.token}\n")
        run_dir = host.run_alias / "remusdb"
        file.write_text(f'[console]\nport = {self.port}\nrun_dir = "{run_dir}"\ntoken_file = "{self.token_file}"\n')
        command = f"hostname {called} && exec {sys.executable} -m remusdb.cli.main console --config {file}"
        with (folder / f"console-{called}.log").open("w") as log:
            self._process = subprocess.Popen(["unshare", "--uts", "sh", "-c", command], cwd=REPO, stderr=log)
        poll_until(lambda: self._answers() or self._process.poll() is not None, Deadline.after(START_S), 0.1)
        if not self._answers():
            self.stop()
            raise RuntimeError((folder / f"console-{called}.log").read_text()[-2000:])

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def get(self, path: str, *, token: bool = True) -> str:
        """What it answers to a GET. urllib.error.HTTPError where it refuses."""
        asked = urllib.request.Request(self.url + path, headers=self.bearer() if token else {})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return str(answer.read().decode())

    def bearer(self) -> dict[str, str]:
        """The header that shows the token."""
        return {"Authorization": f"Bearer {self.token}"}

    def stop(self) -> None:
        """End it; it is killed if it does not."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    """One on loopback that nobody has just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Chrome]:
    """A browser with a new profile in this folder, which must not be there yet."""
    profile.mkdir()
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    browser = Chrome(options=options, service=ChromeService("/usr/bin/chromedriver"))
    try:
        yield browser
    finally:
        browser.quit()


def colours(browser: Chrome, scheme: str) -> None:
    """Have pages look `light` or `dark`, as the reader's system asks for; at once, without a transition."""
    wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def resize(browser: Chrome, width: int, height: int) -> None:
    """The page's own size, which a headless window can make no smaller than a phone's by itself."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
