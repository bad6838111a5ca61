# SPDX-License-Identifier: Apache-2.0
"""`remusdb console`: the web console and the metrics, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from remusdb import log
from remusdb.cli.asking import fill
from remusdb.errors import RemusError

DEFAULT = Path("/etc/remusdb/console.toml")


@click.command()
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help=f"What to load.  [default: {DEFAULT}, if there]"
)
@click.option(
    "--log", "form", type=click.Choice(list(log.FORMS)), help="Form of the log.  [default: REMUSDB_LOG, or text]"
)
@click.pass_context
def console(ctx: click.Context, file: Path | None, form: str | None) -> None:
    """Serve the web console and the metrics of this machine in the foreground.

    It asks the daemons by their control sockets, and needs no other right. On loopback unless console.toml says so;
    elsewhere only with TLS, and a token or certificates of clients. /metrics is for Prometheus; /healthz says whether
    the daemons answer, /readyz whether all VMs that are to be are protected.
    """
    try:
        from remusdb.console.config import load_console
        from remusdb.console.serve import serve
    except ImportError as exc:
        raise RemusError(
            f"the console's libraries are not here: {exc}",
            hint="apt install python3-starlette python3-uvicorn python3-jinja2 python3-prometheus-client, or "
            "pip install 'remusdb[console]'",
        ) from exc
    config = load_console(file or DEFAULT, required=file is not None)
    log.setup(debug=fill(ctx).debug, form=form)
    serve(config)
