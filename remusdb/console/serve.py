# SPDX-License-Identifier: Apache-2.0
"""`remusdb console`, running: uvicorn with TLS where it is asked for, systemd told that it lives."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading

import uvicorn

from remusdb.console.access import Rules
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


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. ConfigError, RemusError where that cannot be begun."""
    token = read_token(config.token_file) if config.token_file is not None else None
    rules = Rules(config.hosts, token, tls=config.tls, client_cert=config.client_ca is not None)
    if not rules.may_act:
        log.warning("no token_file: every user of this machine may look, and nobody can act")

    def ask() -> Told:
        return ask_both(config.run_dir, config.daemons, timeout_s=DAEMON_S)

    watching = Watching(ask)
    server: uvicorn.Server | None = None
    console = Console(
        rules, watching, Works(config.run_dir), run_dir=config.run_dir, ask=ask, machine=socket.gethostname(),
        port=config.port, ends=lambda: server is not None and server.should_exit,
    )  # fmt: skip
    settings = uvicorn.Config(
        console.app(), log_config=None, access_log=False, server_header=False, date_header=False, lifespan="off",
        ws="none", proxy_headers=False, limit_concurrency=256, timeout_keep_alive=20, http="h11", loop="asyncio",
        ssl_certfile=str(config.cert) if config.cert else None, ssl_keyfile=str(config.key) if config.key else None,
        ssl_ca_certs=str(config.client_ca) if config.client_ca else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if config.client_ca else ssl.CERT_NONE,
    )  # fmt: skip
    try:
        settings.load()
    except (OSError, ssl.SSLError) as exc:
        raise RemusError(f"TLS cannot be set up: {exc}", hint="see cert, key and client_ca in console.toml") from exc
    server = uvicorn.Server(settings)
    with contextlib.closing(_listener(config)) as listener:
        watching.start()
        end = threading.Event()
        spawn(alive_until, end, watching.fresh, name="watchdog")
        notify("READY=1")
        where = f"http{'s' if config.tls else ''}://{config.listen}:{config.port}/"
        log.info("console is ready at %s", where)
        try:
            server.run(sockets=[listener])
        finally:
            end.set()
            watching.stop()
            notify("STOPPING=1")


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
