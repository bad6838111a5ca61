# SPDX-License-Identifier: Apache-2.0
"""Logging of the daemons and workers on stderr, in the form that `--log` or REMUSDB_LOG names (workers inherit it):

    text     `2026-01-31T12:00:00.123Z WARNING remusdb.host.daemon vm=db1 term=3: words`; a traceback follows, set in
    logfmt   one line a record, `key=value`, with the keys of `json`
    json     one line a record, one JSON object: time, level, logger, message; vm, term, epoch where known; exception

Levels by who reads them: ERROR wants an operator now, WARNING soon, INFO tells the story of a VM afterwards,
DEBUG is for whoever works on the code. Each event of a VM's history is a line (`history.py` has their levels). A flood
of one kind is cut down to a few lines a second (`quietly.py`).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from remusdb.printable import json_text, printable
from remusdb.quietly import Quiet

FORM_KEY = "REMUSDB_LOG"  # in the environment
LINE_MAX_BYTES = 8 << 10  # of a message: longer than any of ours
FIELDS = ("vm", "term", "epoch")  # what a record may carry through `extra=`; `VmLog` does so

_PLAIN = re.compile(r"[A-Za-z0-9_.:/+-]+\Z", re.ASCII)

Where = Callable[[], Mapping[str, object]]  # of these fields, those that are known now


_everywhere: Where = dict


def about(where: Where) -> None:
    """Every line of this process says this from here on: for a process that has one VM."""
    global _everywhere
    _everywhere = where


class VmLog(logging.LoggerAdapter[logging.Logger]):
    """For lines about one VM: they say which it is, and where it stands as far as `where` knows."""

    def __init__(self, log: logging.Logger, vm: str, where: Where = dict) -> None:
        super().__init__(log)
        self._vm, self._where = vm, where

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """As LoggerAdapter has it."""
        kwargs["extra"] = {"vm": self._vm, **self._where(), **(kwargs.get("extra") or {})}
        return msg, kwargs


class JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        return json_text(self.entry(record))

    def entry(self, record: logging.LogRecord) -> dict[str, Any]:
        """What is told of the record."""
        entry: dict[str, Any] = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return entry


class LogfmtFormatter(JsonFormatter):
    """`key=value` of the same, on one line; a value that is no plain word is quoted as JSON has it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        return " ".join(f"{key}={_quoted(str(value))}" for key, value in self.entry(record).items())


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z WARNING remusdb.host.daemon vm=db1: text`, whatever the text is made of."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line (an exception adds its traceback, set in: no line of it passes for a record)."""
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        line = f"{_stamp(record)} {record.levelname} {record.name}{fields}: {record.getMessage()}"
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n".join([printable(line, LINE_MAX_BYTES), *(f"  {printable(one)}".rstrip() for one in trace)])


FORMS: dict[str, type[logging.Formatter]] = {"text": LineFormatter, "logfmt": LogfmtFormatter, "json": JsonFormatter}


def setup(*, debug: bool = False, form: str | None = None, otherwise: str | None = None) -> None:
    """Send the log to stderr. Every process of ours calls this once, first thing.

    `form`: one of FORMS, of this process and of those that it starts; None: as the environment says, and where it
    says nothing `otherwise`.
    """
    if form is None and FORM_KEY not in os.environ:
        form = otherwise
    if form is not None:
        os.environ[FORM_KEY] = form
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Quiet(partial(_write, handler)))
    handler.setFormatter(FORMS.get(os.environ.get(FORM_KEY, ""), LineFormatter)())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    debug = debug or os.environ.get("REMUSDB_DEBUG") == "1"
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("pyroute2").setLevel(logging.WARNING)


def _write(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Past the filter: it is the one that says this."""
    with handler.lock or nullcontext():
        handler.emit(record)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    known = {**_everywhere(), **record.__dict__}
    return {key: known[key] for key in FIELDS if key in known}


def _quoted(value: str) -> str:
    return value if _PLAIN.match(value) else json_text(value)


def _stamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
