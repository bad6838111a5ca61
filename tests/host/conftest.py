# SPDX-License-Identifier: Apache-2.0
"""What several files of this tier need."""

from __future__ import annotations

from pathlib import Path

import pytest

from remusdb.transport.certs import make_ca_and_hosts


def pytest_configure(config: pytest.Config) -> None:
    """Floods have sockets by the thousand: one that is left to the collector is no reason to fail."""
    config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA and certificates for the hosts `alpha` and `beta` on loopback."""
    out = tmp_path_factory.mktemp("certs")
    make_ca_and_hosts(out, {"alpha": ["127.0.0.1"], "beta": ["127.0.0.1"]})
    return out
