# SPDX-License-Identifier: Apache-2.0
"""Consoles of the lab's hosts, and who looks at them from outside: headless Chromium, Prometheus.

The lab's hosts have networks of their own; a relay makes the loopback of one reachable from here. Chromium and
Prometheus are Debian's. tests/vm/data has axe-core 4.14.1 as npm has it (sha256 of axe-core-4.14.1.tgz:
e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745), compressed; MPL-2.0, for tests alone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from remusdb.deadline import Deadline, poll_until
from tools.lab.host import Host
from tools.lab.links import socket_in

AXE = Path(__file__).parent / "data" / "axe-core-4.14.1.min.js.zst"
TOKEN = "a-token-that-nobody-guesses-42"
PORT = 7480
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


def start_console(host: Host, log: Path) -> None:
    """`remusdb console` on a host, with a token; it answers when this returns."""
    token = host.path("/etc/remusdb") / "console-token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    config = f'[console]\ntoken_file = "/etc/remusdb/console-token"\ntitle = "{host.name}"\n'
    host.path("/etc/remusdb/console.toml").write_text(config)
    host.popen(["remusdb", "console"], log=log)

    def answers() -> bool:
        with contextlib.suppress(OSError):
            connected(host).close()
            return True
        return False

    assert poll_until(answers, Deadline.after(60), 0.2), log.read_text()


@contextlib.contextmanager
def relay(host: Host) -> Iterator[int]:
    """A port of this machine's loopback that leads to the console on that of a host."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    here, _ = listener.accept()
                    threading.Thread(target=join, args=(here,), daemon=True).start()

        def join(here: socket.socket) -> None:
            with here, contextlib.suppress(OSError), connected(host) as there:
                back = threading.Thread(target=pump, args=(there, here), daemon=True)
                back.start()
                pump(here, there)
                back.join()

        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def connected(host: Host) -> socket.socket:
    """A connection to the console on that host's loopback. OSError."""
    sock = socket_in(host.netns, kind=socket.SOCK_STREAM)
    try:
        sock.connect(("127.0.0.1", PORT))
    except OSError:
        sock.close()
        raise
    return sock


def pump(source: socket.socket, to: socket.socket) -> None:
    """All that comes, until there is no more."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    for sock in (source, to):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, that asks no network for anything."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for word in (*QUIET, f"--user-data-dir={profile}", "--window-size=1200,1000"):
            options.add_argument(word)
        browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            browser.set_script_timeout(60)
            yield browser
        finally:
            browser.quit()


def faults(browser: webdriver.Chrome) -> list[str]:
    """What axe-core finds on this page that is serious or critical."""
    browser.execute_script(zstandard.ZstdDecompressor().decompress(AXE.read_bytes()).decode())
    found: dict[str, Any] = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert found["passes"], "axe-core looked at nothing"
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def wear(browser: webdriver.Chrome, scheme: str) -> None:
    """`light` or `dark`, at once: in the middle of a transition axe-core sees colours that nobody reads."""
    wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = {"features": [{"name": name, "value": value} for name, value in wishes.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)


def screen(browser: webdriver.Chrome, width: int, height: int) -> None:
    """How much of the page is seen at a time; a phone's, if it is narrow."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def shoot(browser: webdriver.Chrome, to: Path, width: int, height: int) -> None:
    """A picture of the page's upper part."""
    screen(browser, width, height)
    threading.Event().wait(2)  # the plots are drawn anew
    browser.save_screenshot(str(to))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


class Prometheus:
    """Debian's, scraping consoles every second."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}} for name, port in ports.items()]
        job = {
            "job_name": "remusdb", "authorization": {"credentials": TOKEN}, "static_configs": targets,
        }  # fmt: skip
        folder.mkdir(parents=True)
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML, too
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        program = shutil.which("prometheus")
        assert program is not None, "prometheus is missing: tools/setup.sh installs it"
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{self._port}"],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query finds now; none while it is starting."""
        url = f"http://127.0.0.1:{self._port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found
        return []

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)
        self._log.close()
