# SPDX-License-Identifier: Apache-2.0
"""A captured stream is decoded by the hosts' own codec, and nothing in it, damaged or made up, stops that."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from remusdb.cli.main import cli
from remusdb.core import dissect as module
from remusdb.core.describe import MESSAGES
from remusdb.core.devices import encode_devices
from remusdb.core.dissect import Piece, dissect
from remusdb.core.messages import Commit, Notice, pack
from remusdb.core.pages_encode import encode_full
from remusdb.core.pagework import PAGE_BYTES
from remusdb.core.references import DISK_SHIFT, encode_references
from remusdb.core.wire import HEADER_BYTES, MAX_PAYLOAD, FrameType, encode_header
from remusdb.core.writes import RECORD, Kind, encode_writes
from tests.fuzz.targets_wire import SAMPLES


def frame(kind: FrameType, payload: bytes = b"", term: int = 7, epoch: int = 3) -> bytes:
    return encode_header(kind, term, epoch, payload) + payload


PAGES = b"".join(bytes(one) for one in encode_full(2, np.array([4, 9]), np.ones((2, 4096), np.uint8)).payloads)
WRITES = encode_writes(RECORD.pack(Kind.WRITE, 1, 0, 5, 512) + b"hello" + RECORD.pack(Kind.TRIM, 0, 0, 4096, 0))[0]
DEVICES = encode_devices(b"state" * 9, b"")
BULK = [(FrameType.WRITES, WRITES), (FrameType.PAGES, PAGES), (FrameType.DEVICES, DEVICES)]
COMMIT = pack(Commit(len(BULK), sum(len(payload) for _, payload in BULK), ["192.0.2.1"]))
EPOCH = b"".join(frame(kind, payload) for kind, payload in BULK) + frame(FrameType.COMMIT, COMMIT)
STREAM = frame(FrameType.HEARTBEAT, epoch=0) + EPOCH + frame(FrameType.BYE, pack(Notice("it is over")))


def pieces(data: bytes) -> list[Piece]:
    found = list(dissect(lambda offset, count: data[offset : offset + count], len(data)))
    at = 0
    for piece in found:
        assert piece.offset == at and piece.size_bytes > 0
        at += piece.size_bytes
    assert at == len(data), "they cover all of it"
    return found


def test_each_frame_with_what_it_says() -> None:
    found = pieces(STREAM)
    assert [piece.type for piece in found] == ["HEARTBEAT", "WRITES", "PAGES", "DEVICES", "COMMIT", "BYE"]
    assert not any(piece.fault for piece in found)
    writes, page, devices, commit, bye = (piece.content for piece in found[1:])
    assert writes == {"disks": "0, 1", "write": 1, "trim": 1, "data_bytes": 5}
    assert page == {"block": 2, "encoding": "full", "pages": 2, "zero": 0, "first": 4, "last": 9}
    assert devices == {"kind": "whole", "state_bytes": 45}
    assert commit["frames"] == 3 and commit["addresses"] == "192.0.2.1" and bye["reason"] == "it is over"
    assert {(piece.term, piece.epoch) for piece in found[1:]} == {(7, 3)}


def test_every_message_of_the_protocol_is_known() -> None:
    """What carries nothing, or bulk, is known besides: no type of frame is left."""
    others = {FrameType.HEARTBEAT, *(kind for kind, _ in BULK)}
    assert {*MESSAGES, *others} == set(FrameType)
    for sample in SAMPLES:
        kind = next(kind for kind, kinds in MESSAGES.items() if type(sample) in kinds)
        (piece,) = pieces(frame(kind, pack(sample), epoch=0))
        assert not piece.fault and piece.content, kind


def test_pages_that_are_references_are_told_as_such() -> None:
    numbers, places = np.array([4, 9], np.int64), np.array([1 << DISK_SHIFT, 7], np.uint64)
    payload = encode_references(2, numbers, places, np.ones((2, PAGE_BYTES), np.uint8))
    (piece,) = pieces(frame(FrameType.PAGES, payload))
    assert piece.content == {"block": 2, "encoding": "references", "pages": 2, "first": 4, "last": 9}
    (damaged,) = pieces(frame(FrameType.PAGES, payload[:-1]))
    assert damaged.fault and not damaged.content


def test_no_definition_no_memory_and_no_disk_is_shown() -> None:
    hello = next(sample for sample in SAMPLES if type(sample).__name__ == "Hello")
    told = str(pieces(frame(FrameType.HELLO, pack(hello)) + EPOCH))
    assert "<domain" not in told and "hello" not in told and "bytes" in told


def test_it_goes_on_behind_what_is_damaged() -> None:
    damaged = bytearray(STREAM)
    damaged[HEADER_BYTES * 2 + 1] ^= 1  # in the payload of the WRITES
    found = pieces(b"junk" + bytes(damaged) + b"RMDB")
    assert [piece.type for piece in found] == ["", "HEARTBEAT", "", "PAGES", "DEVICES", "COMMIT", "BYE", ""]
    assert "bad magic" in found[0].fault and "checksum mismatch" in found[2].fault and "truncated" in found[-1].fault
    assert "there are 2 with" in found[5].fault and "would not be committed" in found[5].fault


def test_a_payload_that_is_not_what_its_type_says_is_a_fault_and_no_end() -> None:
    wrong = [(kind, b"\xff" * 40) for kind in FrameType]
    found = pieces(b"".join(frame(kind, payload) for kind, payload in wrong) + frame(FrameType.ACK))
    assert [piece.type for piece in found] == [*(kind.name for kind in FrameType), "ACK"]
    assert [bool(piece.fault) for piece in found] == [*[True] * len(wrong), False]


def test_the_end_within_a_frame_is_told() -> None:
    found = pieces(STREAM[:-3])
    assert not found[-1].is_frame and "the stream ends within a BYE frame" in found[-1].fault


def test_a_commit_is_of_its_own_epoch() -> None:
    later = frame(FrameType.COMMIT, COMMIT, epoch=4)
    assert [bool(piece.fault) for piece in pieces(EPOCH + later)] == [False] * 4 + [True]
    other = frame(FrameType.WRITES, WRITES, epoch=4)
    assert not any(piece.fault for piece in pieces(other + EPOCH)), "what came of another epoch is not counted"


def test_a_device_state_is_decompressed_to_see_whether_it_is_one() -> None:
    for state in (DEVICES[:-3], b"\2" + DEVICES[1:-3]):
        (piece,) = pieces(frame(FrameType.DEVICES, state))
        assert "device state" in piece.fault


@given(st.lists(st.tuples(st.integers(0, len(STREAM) - 1), st.integers(0, 255)), max_size=30), st.binary(max_size=90))
@settings(max_examples=150)
def test_whatever_comes_is_cut_into_pieces(changes: list[tuple[int, int]], more: bytes) -> None:
    data = bytearray(STREAM)
    for place, value in changes:
        data[place] = value
    pieces(bytes(data) + more + bytes(data))


def test_what_looks_like_many_large_frames_does_not_take_long() -> None:
    """Each header promises 12 MiB, which would be read for each."""
    head = bytearray(encode_header(FrameType.PAGES, 1, 1, bytes(MAX_PAYLOAD - (4 << 20))))
    data = bytes(head) * ((14 << 20) // len(head))
    read = 0

    def at(offset: int, count: int) -> bytes:
        nonlocal read
        found = data[offset : offset + count]
        read += len(found)
        return found

    assert not any(piece.is_frame for piece in dissect(at, len(data)))
    assert read < 12 * len(data), "not the square of it"


def test_a_frame_across_two_looks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_BYTES", 64)
    for junk in range(55, 75):
        assert [piece.is_frame for piece in pieces(b"x" * junk + frame(FrameType.ACK))] == [False, True]


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "captured"
    file.write_bytes(STREAM)
    done = CliRunner().invoke(cli, ["inspect", str(file)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[2].split()[1:] == [
        "PAGES", "term=7", "epoch=3", f"bytes={HEADER_BYTES + len(PAGES)}", "block=2", "encoding=full", "pages=2",
        "zero=0", "first=4", "last=9",
    ]  # fmt: skip
    assert lines[6] == "6 pieces, 0 with a fault"
    told = json.loads(CliRunner().invoke(cli, ["inspect", str(file), "--json"]).stdout)
    assert told["whole"] and told["faults"] == 0 and [one["type"] for one in told["pieces"]][-1] == "BYE"
    assert file.read_bytes() == STREAM


def test_the_command_on_what_is_damaged_or_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "captured"
    file.write_bytes(random.Random(1).randbytes(999) + STREAM)
    done = CliRunner().invoke(cli, ["inspect", str(file), "--faults"])
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0].split()[:5] == ["0", "no", "frame:", "999", "bytes:"]
    assert "HEARTBEAT " not in done.stdout.splitlines()[1]
    monkeypatch.setattr("remusdb.cli.inspect.PIECES_MOST", 2)
    told = json.loads(CliRunner().invoke(cli, ["inspect", str(file), "--json"]).stdout)
    assert (told["whole"], len(told["pieces"]), told["faults"]) == (False, 2, 1)
    os.mkfifo(tmp_path / "fifo")
    for wrong in (tmp_path / "fifo", tmp_path, tmp_path / "absent"):
        assert CliRunner().invoke(cli, ["inspect", str(wrong)]).exit_code == 2
