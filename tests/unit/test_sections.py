# SPDX-License-Identifier: Apache-2.0
"""The sections of a device state: every one is found, whatever the devices' own bytes look like."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.sections import EOF, HEAD, Section, differences, outline_of

Part = tuple[str, int, int, bytes]  # name, instance, id, the device's own bytes
NAMES = st.text("abcdefghij:./-0123456789", min_size=1, max_size=60)


def section(name: str, instance: int, number: int, body: bytes) -> bytes:
    head = struct.pack(">BIB", 4, number, len(name)) + name.encode() + struct.pack(">II", instance, 3)
    return head + body + b"\x7e" + struct.pack(">I", number)


def state(*parts: Part) -> bytes:
    return HEAD + b"".join(section(*part) for part in parts) + EOF


def sections_of(whole: bytes) -> list[Section] | None:
    outline = outline_of(whole)
    return None if outline is None else outline.sections


PARTS = st.lists(
    st.tuples(NAMES, st.integers(0, 300), st.integers(0, 300), st.binary(max_size=300)),
    min_size=1,
    max_size=40,
    unique_by=lambda part: part[2],
)


@given(PARTS)
def test_every_section_is_found(parts: list[Part]) -> None:
    assert sections_of(state(*parts)) == [Section(name, instance) for name, instance, _, _ in parts]


@given(PARTS, st.data())
def test_the_same_sections_at_the_same_places_are_known_without_a_search(
    parts: list[Part], data: st.DataObject
) -> None:
    outline = outline_of(state(*parts))
    assert outline is not None and outline.fits(state(*parts))
    others = [(name, instance, number, bytes(len(body))) for name, instance, number, body in parts]
    assert outline.fits(state(*others)), "what a device has of its own may change"
    at = data.draw(st.integers(0, len(parts) - 1))
    name, instance, number, body = parts[at]
    other = chr(ord(name[0]) + 1) + name[1:]
    wrong: list[Part] = [(name + "x", instance, number, body), (name, instance + 1, number, body)]
    wrong += [
        (name, instance, number, body + b"z"),
        (name, instance, number + 500, body),
        (other, instance, number, body),
    ]
    for one in wrong:
        assert not outline.fits(state(*parts[:at], one, *parts[at + 1 :])), one
    assert not outline.fits(state(*parts, ("more", 0, 999, b""))) and not outline.fits(b"")
    assert not outline.fits(state(*parts) + b"\0")


def test_bytes_of_a_device_that_look_like_a_footer_or_a_header_are_not_believed() -> None:
    footer, header = b"\x7e" + struct.pack(">I", 7), struct.pack(">BIB", 4, 9, 3) + b"nic" + bytes(8)
    for body in (footer, footer + EOF, footer + header, 3 * (footer + header), header, footer + footer[:4]):
        found = sections_of(state(("timer", 0, 7, body + bytes(30)), ("cpu", 0, 8, b"x"), ("cpu", 1, 3, b"")))
        assert found == [Section("timer", 0), Section("cpu", 0), Section("cpu", 1)]


def test_what_is_no_device_state_is_not_read() -> None:
    whole = state(("timer", 0, 7, b"abc"), ("cpu", 0, 8, b"x"))
    for bad in (b"", HEAD, whole[:-1], whole + b"\0", b"QEVM\0\0\0\2" + whole[8:], HEAD + EOF):
        assert sections_of(bad) is None


def test_a_state_that_a_guest_made_up_costs_little() -> None:
    """A thousand headers, each of which might be one: none leads to the end."""
    fake = b"".join(
        b"\x7e" + struct.pack(">I", 7) + struct.pack(">BIB", 4, 1000 + at, 3) + b"nic" + bytes(8) for at in range(1000)
    )
    began = time.process_time()
    found = sections_of(state(("timer", 0, 7, fake), ("cpu", 0, 8, b"x")))
    assert found == [Section("timer", 0), Section("cpu", 0)]
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("after", "came", "went"),
    [
        (["cpu 0", "net 0"], [], []),
        (["net 0", "cpu 0"], [], []),
        (["cpu 0", "net 0", "cpu 1"], ["cpu instance 1"], []),
        (["cpu 0"], [], ["net"]),
        (["cpu 0", "blk 0"], ["blk"], ["net"]),
    ],
)
def test_differences_name_what_came_and_went(after: list[str], came: list[str], went: list[str]) -> None:
    def read(names: list[str]) -> list[Section]:
        return [Section(name.split()[0], int(name.split()[1])) for name in names]

    found = differences(read(["cpu 0", "net 0"]), read(after))
    assert [[str(one) for one in some] for some in found] == [came, went]


@pytest.mark.parametrize(
    "body",
    [
        2_000_000 * (b"\x7e" + struct.pack(">I", 7) + b"\x04\0"),  # each might be a footer, none has a header behind it
        b"".join(  # thousands of headers, for each of which the rest is searched to its end
            b"\x7e" + struct.pack(">I", 7) + struct.pack(">BIB", 4, 1000 + at, 3) + b"nic" + bytes(8)
            for at in range(20_000)
        )
        + bytes(40 << 20),
    ],
)
def test_a_large_state_that_a_guest_made_up_costs_little_as_well(body: bytes) -> None:
    began = time.process_time()
    assert sections_of(state(("timer", 0, 7, body)) + b"no end") is None
    assert time.process_time() - began < 10
