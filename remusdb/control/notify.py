# SPDX-License-Identifier: Apache-2.0
"""Tell systemd how far the daemon is (sd_notify), where systemd asked to be told."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send `READY=1`, `STOPPING=1`, `STATUS=...`; nothing happens outside systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket, as systemd writes it
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.sendall(state.encode())
    except OSError as exc:
        log.warning("systemd cannot be notified of %s: %s", state, exc)


def alive_until(end: threading.Event, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait for `end`; meanwhile tell systemd's watchdog, if it wants to know, that this process lives while it does."""
    try:
        limit_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        limit_s = 0.0
    while not end.wait(limit_s / 3 or None):
        if alive():
            notify("WATCHDOG=1")
