# SPDX-License-Identifier: Apache-2.0
"""Two hosts with remusdb on both, for a measurement of their own."""

from __future__ import annotations

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
