# SPDX-License-Identifier: Apache-2.0
"""`remusdb`: the command line. Results on stdout, everything else on stderr; an error's class is its exit code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from remusdb import __version__
from remusdb.cli.asking import Settings, fill
from remusdb.cli.bench import bench
from remusdb.cli.certs import certs
from remusdb.cli.check import check
from remusdb.cli.config_check import config
from remusdb.cli.console import console
from remusdb.cli.daemons import agent, host
from remusdb.cli.demo import demo
from remusdb.cli.diagnose import diagnose
from remusdb.cli.evacuate import evacuate
from remusdb.cli.export import export
from remusdb.cli.failover import failover
from remusdb.cli.forget import forget
from remusdb.cli.history import history
from remusdb.cli.inspect import inspect
from remusdb.cli.prepare import prepare
from remusdb.cli.protect import protect, reprotect
from remusdb.cli.rehearse import rehearse
from remusdb.cli.say import say
from remusdb.cli.setup import setup
from remusdb.cli.status import status
from remusdb.cli.switchover import switchover
from remusdb.cli.unprotect import unprotect
from remusdb.errors import RemusError
from remusdb.log import setup as log_setup

log = logging.getLogger(__name__)

EXIT_CODES = """\b
Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not protected,
4 refused for safety, 5 no answer, 7 fenced, 8 cannot be protected.
"""


class ErrorsAsExitCodes(click.Group):
    """Turns the error tree into words and exit codes; the only place that does."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except RemusError as exc:
            self._debug(ctx)
            say(f"remusdb: {exc.id} {exc}", err=True)
            if exc.hint:
                say(f"hint: {exc.hint}", err=True)
            ctx.exit(exc.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as exc:  # task boundary: nobody should have to read a traceback who did not ask for it
            self._debug(ctx)
            say(f"remusdb: {RemusError.id} unexpected {type(exc).__name__}: {exc}", err=True)
            say("hint: this is a bug in remusdb; with `remusdb --debug ...` it shows where", err=True)
            ctx.exit(1)

    def _debug(self, ctx: click.Context) -> None:
        if fill(ctx).debug:
            log.debug("the command failed", exc_info=True)


@click.group(cls=ErrorsAsExitCodes, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), envvar="REMUSDB_RUN_DIR", help="Where the daemons' sockets are."
)
@click.option("--debug", is_flag=True, help="Tracebacks and debug messages on stderr.")
@click.pass_context
def cli(ctx: click.Context, run_dir: Path | None, debug: bool) -> None:
    """High availability for a database VM, without touching the database."""
    ctx.obj = Settings(run_dir=run_dir, debug=debug)
    if debug:
        log_setup(debug=True)


for command in (
    check,
    prepare,
    protect,
    status,
    history,
    bench,
    diagnose,
    inspect,
    failover,
    rehearse,
    export,
    unprotect,
    certs,
    setup,
    host,
    agent,
    config,
    console,
    reprotect,
    switchover,
    evacuate,
    forget,
    demo,
):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    cli(prog_name="remusdb")


if __name__ == "__main__":
    main()
