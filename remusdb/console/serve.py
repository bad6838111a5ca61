# SPDX-License-Identifier: Apache-2.0
"""`remusdb console`, running: uvicorn with TLS where it is asked for, systemd told that it lives."""

from __future__ import annotations

import logging
import socket
import ssl
import threading

import uvicorn

from remusdb.console.access import App, Rules
from remusdb.console.app import DAEMON_S, Console
from remusdb.console.config import Console as Config
from remusdb.console.config import read_token
from remusdb.console.watching import Watching
from remusdb.console.works import Works
from remusdb.control.both import Told, ask_both
from remusdb.control.notify import alive_until, notify
from remusdb.errors import RemusError
from remusdb.threads import spawn

log = logging.getLogger(__name__)


class Served:
    """A console that listens. `watching` is started by `run`."""

    def __init__(self, config: Config) -> None:
        """ConfigError, RemusError where it cannot be served so."""
        token = read_token(config.token_file) if config.token_file is not None else None
        self.rules = Rules(config.hosts, token, tls=config.tls, client_cert=config.client_ca is not None)

        def ask() -> Told:
            return ask_both(config.run_dir, config.daemons, timeout_s=DAEMON_S)

        self._watching = Watching(ask)
        self._ended = threading.Event()
        console = Console(
            self.rules, self._watching, Works(config.run_dir), run_dir=config.run_dir, ask=ask,
            machine=config.title or socket.gethostname(), port=config.port, ends=lambda: self.server.should_exit,
        )  # fmt: skip
        self.server = uvicorn.Server(_settings(config, console.app()))
        self.listener = _listener(config)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or `stop`."""
        self._watching.start()
        spawn(alive_until, self._ended, self._watching.fresh, name="watchdog")
        notify("READY=1")
        try:
            self.server.run(sockets=[self.listener])
        finally:
            self._ended.set()
            self._watching.stop()
            self.listener.close()
            notify("STOPPING=1")

    def stop(self) -> None:
        """Have `run` return."""
        self.server.should_exit = True


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. ConfigError, RemusError where that cannot be begun."""
    served = Served(config)
    if not served.rules.may_act:
        log.warning("no token_file: every user of this machine may look, and nobody can act")
    log.info("console is at http%s://%s:%d/", "s" if config.tls else "", config.listen, config.port)
    served.run()


def _settings(config: Config, app: App) -> uvicorn.Config:
    settings = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, date_header=False, lifespan="off",
        ws="none", proxy_headers=False, limit_concurrency=256, timeout_keep_alive=20, http="h11", loop="asyncio",
        ssl_certfile=str(config.cert) if config.cert else None, ssl_keyfile=str(config.key) if config.key else None,
        ssl_ca_certs=str(config.client_ca) if config.client_ca else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if config.client_ca else ssl.CERT_NONE,
    )  # fmt: skip
    try:
        settings.load()
    except (OSError, ssl.SSLError) as exc:
        raise RemusError(f"TLS cannot be set up: {exc}", hint="see cert, key and client_ca in console.toml") from exc
    return settings


def _listener(config: Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.listen else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((config.listen, config.port))
        sock.listen(128)
    except OSError as exc:
        sock.close()
        raise RemusError(
            f"{config.listen} port {config.port}: cannot listen: {exc.strerror}",
            hint="see `listen` and `port` in console.toml",
        ) from exc
    return sock
