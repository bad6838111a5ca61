# SPDX-License-Identifier: Apache-2.0
"""The daemons' control sockets, and the channel between daemon and worker: one typed JSON object a line."""

from remusdb.control.client import call
from remusdb.control.codec import Progress, ProgressFn, Request
from remusdb.control.lines import LineChannel
from remusdb.control.server import ControlServer, Handler

__all__ = ["ControlServer", "Handler", "LineChannel", "Progress", "ProgressFn", "Request", "call"]
