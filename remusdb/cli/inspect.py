# SPDX-License-Identifier: Apache-2.0
"""`remusdb inspect`: what is in a captured stream of the protocol between the hosts."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import click
from msgspec import Struct

from remusdb.cli import words
from remusdb.cli.asking import json_option
from remusdb.cli.say import print_json, say
from remusdb.core.dissect import Piece, dissect
from remusdb.errors import UsageError
from remusdb.says import says

PIECES_MOST = 100_000  # in JSON, which is one document; a capture has some 60 a second


class Capture(Struct, frozen=True, kw_only=True):
    """A captured stream, frame by frame."""

    size_bytes: Annotated[int, says("of the file")]
    pieces: Annotated[list[Piece], says("in their order: they cover the file up to where they end")]
    whole: Annotated[bool, says("the pieces reach to the end of the file; false: there are more than are shown")]
    faults: Annotated[int, says("pieces with which something is wrong")]


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--faults", "faults_only", is_flag=True, help="Show only what something is wrong with.")
@json_option
@click.pass_context
def inspect(ctx: click.Context, file: Path, faults_only: bool, as_json: bool) -> None:
    """Decode FILE, a captured stream between the hosts (one direction, behind its TLS), frame by frame.

    Checksums and contents are checked as the hosts do. Bytes that are no frame are skipped, up to the next one whose
    checksum holds. Shown are names, numbers and reasons; never memory, disks or the VM's definition. FILE is only read.
    Exit code 1 if something is wrong with it.
    """
    fd = _opened(file)
    try:
        size = os.fstat(fd).st_size
        pieces = dissect(lambda offset, count: os.pread(fd, count, offset), size)
        faults = _json(pieces, size, faults_only) if as_json else _lines(pieces, faults_only)
    finally:
        os.close(fd)
    if faults:
        ctx.exit(1)


def _opened(file: Path) -> int:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror}") from exc
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise UsageError(f"{file}: it is no file", hint="write what was captured to a file first")


def _json(pieces: Iterator[Piece], size: int, faults_only: bool) -> int:
    looked_at = list(islice(pieces, PIECES_MOST))
    end = looked_at[-1].offset + looked_at[-1].size_bytes if looked_at else 0
    faults = sum(bool(piece.fault) for piece in looked_at)
    shown = [piece for piece in looked_at if piece.fault or not faults_only]
    print_json(Capture(size_bytes=size, pieces=shown, whole=end == size, faults=faults))
    return faults


def _lines(pieces: Iterator[Piece], faults_only: bool) -> int:
    """A line a piece, as it is found, then how many there were of each type."""
    types: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    faults = 0
    for piece in pieces:
        name = piece.type or "no frame"
        types[name] += 1
        sizes[name] += piece.size_bytes
        faults += bool(piece.fault)
        if piece.fault or not faults_only:
            say(_line(piece))
    say(f"{sum(types.values())} pieces, {faults} with a fault")
    say(*(f"  {name:<10} {count:>8}  {words.size(sizes[name])}" for name, count in sorted(types.items())))
    return faults


def _line(piece: Piece) -> str:
    where = f"{piece.offset:>10}"
    if not piece.is_frame:
        return f"{where}  no frame: {piece.size_bytes} bytes: {piece.fault}"
    content = " ".join(f"{name}={value}" for name, value in piece.content.items() if value != "")
    fault = f"  FAULT: {piece.fault}" if piece.fault else ""
    head = f"{where}  {piece.type:<9} term={piece.term} epoch={piece.epoch} bytes={piece.size_bytes}"
    return f"{head}  {content}{fault}".rstrip()
