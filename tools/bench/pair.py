# SPDX-License-Identifier: Apache-2.0
"""Two hosts with remusdb on both, for a measurement of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tools.lab import Lab
from tools.lab.paths import BUILD
from tools.lab.product import Product, Settings


@contextmanager
def two_hosts(settings: Settings | None = None) -> Iterator[tuple[Lab, Product]]:
    """Hosts `a` and `b`, with these settings for each VM; gone at the end. Logs are kept in build/bench/logs."""
    with Lab() as lab:
        for name in ("a", "b"):
            lab.host(name).start_libvirt()
        product = Product(lab, BUILD / "bench" / "logs")
        product.install(settings or {})
        product.start()
        yield lab, product


def configure(lab: Lab, product: Product, vm: str, settings: Settings) -> None:
    """These settings for this VM of host `a`, and none for any other, from its next protection on."""
    file = lab.host("a").path("/etc/remusdb/host.toml")
    rest = file.read_text().partition("[vms.")[0].rstrip()
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    file.write_text(f"{rest}\n\n[vms.{vm}]\n{lines}")
    daemon = product.daemons["host", "a"]
    daemon.terminate()
    daemon.wait(30)
    product.start_host("a")
