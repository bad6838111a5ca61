# SPDX-License-Identifier: Apache-2.0
"""The daemons' control sockets: one JSON object a line over a unix socket."""

from remusdb.control.client import call
from remusdb.control.lines import LineChannel
from remusdb.control.server import ControlServer, Handler, ProgressFn

__all__ = ["ControlServer", "Handler", "LineChannel", "ProgressFn", "call"]
