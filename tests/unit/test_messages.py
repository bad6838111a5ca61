# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes come as a message: one within its bounds, or BadFrame."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remusdb.core import messages, probe
from remusdb.core.messages import (
    ADDRESSES_MAX,
    BLOCKS_MAX,
    DISKS_MAX,
    NICS_MAX,
    Base,
    Capabilities,
    Commit,
    Disk,
    Hello,
    Notice,
    Proof,
    Question,
    RamBlock,
    Refuse,
    Standing,
    Taken,
    Welcome,
    pack,
    unpack,
)
from remusdb.core.probe import XML_MAX_BYTES, Answer, Bridge, Forwarding, HugePages, Namesake, Probe, Uplink
from remusdb.core.release.frames import FLOWS_MAX, FlowKey, OpenFlow
from remusdb.core.wire import FrameType, payload_limit
from remusdb.errors import BadFrame, CannotProtect
from remusdb.names import VmName

UUID = "0f3c1a52-8f0e-4d0a-9b60-3f1c2d4e5a6b"
XML = f"<domain><name>pg</name><uuid>{UUID}</uuid></domain>"
MIB = 1 << 20

BLOCKS = [RamBlock("pc.ram", 64 * MIB), RamBlock("0000:00:02.0/virtio-net-pci.rom", 256 << 10)]
DISKS = [Disk("vda", 10 * MIB, MIB), Disk("sdb", 512)]
ANSWER = Answer(
    agent="beta",
    domain_types=["kvm"],
    cpus="0-3",
    huge_pages={2048: HugePages(3, True)},
    vhost=-1,
    forwarding=Forwarding(True, ["FORWARD"]),
    paths={"/usr/share/x.fd": "is not there"},
    bridges={"br0": Bridge("br0", True, True, 1500, uplinks=[Uplink("eth0", 1500, vlans={7: True})])},
    taken_links=["tap0"],
    namesakes=[Namesake("pg", UUID, True, False, False, leftovers=["--nvram"])],
    images={"vda": 4096},
    errors={"cpu": "no"},
)
FLOW = OpenFlow(FlowKey(bytes([10, 0, 0, 1]), 5432, bytes([10, 0, 0, 2]), 40000), bytes(6), bytes(6), None, 1, 2)
FLOW6 = OpenFlow(FlowKey(bytes([253] * 16), 3306, bytes([254] * 16), 40001), bytes(6), bytes(6), 7, 2**32 - 1, 0)
SAMPLES: list[msgspec.Struct] = [
    Hello(
        *("0.1", "alpha", VmName("pg"), UUID, 7, False, 0, "pc-q35-10.0"),
        *(XML, BLOCKS, DISKS, 100, "10.0.2", "c7", [3, 0], True),
    ),
    Welcome("0.1", "beta", 8, 4, True, 500, [160, 0], 99, 2, 60_000, True),
    Refuse("the disk is full", "free some", 8, False, True, "preflight"),
    Taken(7),
    Base(1, 1024, bytes(32)),
    Commit(3, 4096, ["192.0.2.7", "2001:db8::7"], 5_000_000, True, [FLOW.pack() * 2, b"", FLOW6.pack()]),
    Notice("unprotect was asked for", True),
    Proof("refused", 1_700_000_000_000_000_000, 7, 12.5, "no", "look"),
    Question(VmName("pg"), "alpha", 7),
    Standing(VmName("pg"), 8, "beta", "promoted", "it took over"),
    Probe(XML, "<cpu/>"),
    Capabilities("0.1", (10, 0, 2), (11, 3, 0), ["pc-q35-10.0"], ANSWER),
]
each = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value in a message, with the way to it."""
    yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


def altered(sample: msgspec.Struct, path: tuple[Any, ...], value: Any) -> bytes:
    whole = copy.deepcopy(msgspec.to_builtins(sample, builtin_types=(bytes,)))
    at = whole
    for key in path[:-1]:
        at[key] = at = list(at[key]) if isinstance(at[key], tuple) else at[key]
    at[path[-1]] = value
    return msgspec.msgpack.encode(whole)


def values(sample: msgspec.Struct, kind: type) -> list[tuple[Any, ...]]:
    found = places(msgspec.to_builtins(sample, builtin_types=(bytes,)))
    return [path for path, value in found if type(value) is kind]


@each
def test_what_we_say_ourselves_is_understood(sample: msgspec.Struct) -> None:
    assert unpack(type(sample), pack(sample)) == sample
    assert unpack(type(sample), memoryview(pack(sample))) == sample


@each
def test_no_number_is_out_of_range(sample: msgspec.Struct) -> None:
    for path in values(sample, int):
        for number in (-(2**63), -2, (1 << 62) + 1, 2**63 - 1, 2**63, 2**64 - 1, 1e300, float("nan"), "7", None, True):
            if number is None and path in (("age_ns",), ("answer", "vhost")):
                continue
            with pytest.raises(BadFrame):
                unpack(type(sample), altered(sample, path, number))
    for path in values(sample, float):
        for number in (-1.0, float("nan"), float("inf"), 1e300, "7"):
            with pytest.raises(BadFrame):
                unpack(type(sample), altered(sample, path, number))


@each
def test_no_list_is_long(sample: msgspec.Struct) -> None:
    for path in values(sample, list):
        with pytest.raises(BadFrame):
            unpack(type(sample), altered(sample, path, [7] * 100_000))
        with pytest.raises(BadFrame):
            unpack(type(sample), altered(sample, path, ["x"] * 100_000))


@each
def test_every_text_is_short_or_cut(sample: msgspec.Struct) -> None:
    """And nothing that a terminal obeys comes through, but in XML, whose parser has its own say."""
    evil = "\x1b]0;x\x07\u202e" + "y" * 600_000
    for path in values(sample, str):
        got, refusal = None, ""
        try:
            got = unpack(type(sample), altered(sample, path, evil))
        except BadFrame as exc:
            refusal = str(exc)
        assert len(refusal) < 2000 and refusal.isprintable()
        if got is not None and path != ("xml",):  # counted by whoever parses it
            texts = [text for _, text in places(msgspec.to_builtins(got)) if isinstance(text, str) and "yy" in text]
            assert all(len(text.encode()) <= 1024 and text.isprintable() for text in texts), path


@pytest.mark.parametrize("kind", [Refuse, Notice, Proof, Standing])
def test_words_of_15_mb_are_words_of_1_kb(kind: Any) -> None:
    sample = next(sample for sample in SAMPLES if type(sample) is kind)
    got = unpack(kind, altered(sample, ("reason",), "\x1b[2J" + "why " * 4_000_000))
    assert len(got.reason.encode()) <= 1024 and got.reason.isprintable() and "why why" in got.reason
    assert len(pack(kind(**{**msgspec.structs.asdict(sample), "reason": "x" * 5000}))) < 1400, "also what we say"


BAD_FIELDS: dict[type[msgspec.Struct], dict[str, list[Any]]] = {
    Hello: {
        "vm": ["", "./pg", "a/b", "/etc", "a\0", "a\n", "x" * 248, 7],
        "primary": ["", "a/b", ".x", "a\n", "x" * 65],
        "uuid": ["", "uuid", "../" + UUID, UUID.upper(), UUID + "\n"],
        "domain_xml": ["x" * (XML_MAX_BYTES + 1), "ä" * (XML_MAX_BYTES // 2 + 1), b"<domain/>"],
        "heartbeat_ms": [0, 60_001],
        "told": [[1, 2, 3], [1] * (DISKS_MAX + 1)],
        "version": ["x" * 129, "a\n", "ä"],
        "blocks": [
            [{"name": "pc.ram", "size": 4095}],
            [{"name": "pc.ram", "size": (1 << 46) + 4096}],
            [{"name": "", "size": 4096}],
            [{"name": "x" * 256, "size": 4096}],
            [{"name": "a\n", "size": 4096}],
            [{"name": "a", "size": 4096}, {"name": "a", "size": 8192}],
            [{"name": f"b{n}", "size": 4096} for n in range(BLOCKS_MAX + 1)],
        ],
        "disks": [
            [{"target": "../vda", "size": 512}],
            [{"target": "vda/../../x", "size": 512}],
            [{"target": "data", "size": 512}],
            [{"target": "VDA", "size": 512}],
            [{"target": "", "size": 512}],
            [{"target": "vda", "size": 0}],
            [{"target": "vda", "size": 2**53 + 1}],
            [{"target": "vda", "size": 512, "allocated": 2**63}],
            [{"target": "vda", "size": 512}, {"target": "vda", "size": 512}],
            [{"target": f"vd{chr(97 + n // 26)}{chr(97 + n % 26)}", "size": 512} for n in range(DISKS_MAX + 1)],
        ],
    },
    Question: {"vm": ["", "../x", "a\n"], "host": ["", "a/b", "a\n"]},
    Standing: {"vm": ["", "../x"], "owner": ["a/b", "a\n", "x" * 65], "role": ["x" * 129, "\x1b"]},
    Welcome: {"agent": ["", "a/b"], "silence_ms": [0, 60_001], "copy_patience_ms": [3_600_001], "bases": [[1] * 65]},
    Base: {"disk": [DISKS_MAX], "hashes": [bytes((64 << 10) + 1), "text"]},
    Commit: {
        "addresses": [
            ["192.0.2.256"],
            ["example.org"],
            ["fe80::1%eth0"],
            ["::1%$(reboot)"],
            ["192.0.2.1/24"],
            ["192.0.2.1\n"],
            [""],
            ["1" * 46],
            ["192.0.2.1"] * (ADDRESSES_MAX + 1),
            [7],
        ],
    },
    Proof: {"verdict": ["", "maybe", 7]},
}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (kind, field, value)
        for kind, fields in BAD_FIELDS.items()
        for field, values in fields.items()
        for value in values
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_such_field_is_refused(kind: Any, field: str, value: Any) -> None:
    sample = next(sample for sample in SAMPLES if type(sample) is kind)
    if field == "disks":  # nothing else is to be wrong
        sample = msgspec.structs.replace(sample, told=[])
    with pytest.raises(BadFrame) as caught:
        unpack(kind, altered(sample, (field,), value))
    assert len(str(caught.value)) < 2000


ADVISED: dict[tuple[str | int, ...], list[Any]] = {
    ("namesakes", 0, "leftovers", 0): ["--nvram; reboot", "--" + "x" * 41, ""],
    ("namesakes", 0, "name"): ["a/b", "\n"],
    ("cpus",): ["0 --help", "all"],
    ("nodes",): ["0 1", "-" * 4097],
    ("bridges", "br0", "name"): ["br0 down"],
    ("bridges", "br0", "uplinks", 0, "name"): ["eth0 eth1", "a/b"],
    ("forwarding", "drops", 0): ["bridge f fw; reboot"],
    ("errors",): [{"\x1b]0;x": "y"}],
}


@pytest.mark.parametrize("place", ADVISED, ids=str)
def test_what_becomes_part_of_an_advised_command_holds_nothing_that_a_shell_obeys(place: tuple[Any, ...]) -> None:
    capabilities = msgspec.structs.replace(SAMPLES[-1], answer=msgspec.structs.replace(ANSWER, nodes="0"))
    evil: list[Any] = [*ADVISED[place]]
    if place[-1] not in ("name", "errors") or "namesakes" not in place:  # a VM's name is quoted
        evil += ["; rm -rf /", "$(reboot)", "`reboot`", "a|b", "a&b", "a\nb", "a>b", "a'b", 'a"b', "a\\b", "*"]
    for bad in evil:
        with pytest.raises(BadFrame):
            unpack(Capabilities, altered(capabilities, ("answer", *place), bad))


def test_what_a_primary_cannot_send_it_says_itself() -> None:
    """Before a connection is made, and by name."""
    fields = msgspec.structs.asdict(SAMPLES[0])
    changes: list[dict[str, Any]] = [
        {"disks": [DISKS[0], DISKS[0]]},
        {"blocks": [BLOCKS[0]] * 2},
        {"domain_xml": "x" * 600_000},
    ]
    changes += [{"disks": DISKS * 33}, {"blocks": BLOCKS * 513}]
    for change in changes:
        with pytest.raises(CannotProtect, match="VM pg"):
            Hello(**{**fields, **change})


def test_the_largest_messages_fit_their_frames() -> None:
    blocks = [RamBlock(f"{n:04}".ljust(255, "x"), 1 << 40) for n in range(BLOCKS_MAX)]
    disks = [Disk(f"vd{chr(97 + n // 26)}{chr(97 + n % 26)}", 2**53, 2**53) for n in range(DISKS_MAX)]
    many = [2**62] * DISKS_MAX
    xml, long = "x" * XML_MAX_BYTES, "x" * 128
    hello = Hello(
        long, "a" * 64, VmName("y" * 247), UUID, 2**62, True, 2**62, long, xml, blocks, disks, 100, long, long, many
    )
    assert len(pack(hello)) <= payload_limit(FrameType.HELLO) and unpack(Hello, pack(hello)) == hello
    welcome = Welcome(long, "a" * 64, 2**62, 2**62, True, 500, many, 2**62 - 1, 2**62, 60_000)
    assert len(pack(welcome)) <= payload_limit(FrameType.WELCOME) and unpack(Welcome, pack(welcome)) == welcome
    commit = Commit(2**62, 2**62, ["2001:0db8:0000:0000:0000:0000:0000:0001"] * ADDRESSES_MAX, 2**62, True)
    commit = msgspec.structs.replace(commit, open_flows=[FLOW6.pack() * (FLOWS_MAX // NICS_MAX)] * NICS_MAX)
    assert len(pack(commit)) <= payload_limit(FrameType.COMMIT) and unpack(Commit, pack(commit)) == commit
    base = Base(63, 2**62, bytes(messages.HASHES_MAX_BYTES - 64))
    assert len(pack(base)) <= payload_limit(FrameType.BASE)
    assert len(pack(Question(VmName("y" * 247), "a" * 64, 2**62))) <= payload_limit(FrameType.ASK)
    standing = Standing(VmName("y" * 247), 2**62, "a" * 64, long, "z" * 9000)
    assert len(pack(standing)) <= payload_limit(FrameType.STANDING)
    asked = Probe(xml, "x" * probe.CPU_MAX_BYTES)
    assert len(pack(asked)) <= payload_limit(FrameType.PROBE)


GARBAGE = [
    b"",
    b"\xc1",
    b"\x81\xa6reason\xa2\xff\xfe",  # no UTF-8
    b"\x81\xa2\xff\xfe\x01",  # in a key
    b"\x82\xa6reason\xa1a\xa1z" + b"\x91" * 200_000,  # deep, in a field that is passed over
    b"\x82\xa6reason\xa1a\xa1z" + b"\x81\xa1a" * 200_000,
    b"\x91" * 16_000_000,
    b"\xdd\xff\xff\xff\xff",  # an array, a map, a text, bytes that claim 4 GiB
    b"\xdf\xff\xff\xff\xff",
    b"\x81\xa6reason\xdb\xff\xff\xff\xff",
    b"\x81\xa6reason\xc6\xff\xff\xff\xff",
    b"\x81\xa9addresses\xdd\xff\xff\xff\xff" + b"\xa19" * 100,
    b"\xc9\xff\xff\xff\xff\x05",  # an extension
    b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
    b"\x80\x80",  # something behind the end
]


@each
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_the_projects_own_error(sample: msgspec.Struct, garbage: bytes) -> None:
    with pytest.raises(BadFrame) as caught:
        unpack(type(sample), garbage)
    assert len(str(caught.value)) < 2000 and str(caught.value).isprintable()


PACKED = [(type(sample), pack(sample)) for sample in SAMPLES]


@pytest.mark.slow
@settings(max_examples=500)
@given(
    st.sampled_from(PACKED),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 3), st.binary(max_size=9)), min_size=1, max_size=5),
)
def test_any_mutated_message_is_one_or_is_refused(
    message: tuple[type[msgspec.Struct], bytes], changes: list[tuple[int, int, bytes]]
) -> None:
    kind, data = message
    for where, drop, put in changes:
        at = where % (len(data) + 1)
        data = data[:at] + put + data[at + drop :]
    try:
        got = unpack(kind, data)
    except BadFrame:
        return
    assert unpack(kind, pack(got)) == got, "what was taken once is within the bounds"


@pytest.mark.slow
@settings(max_examples=300)
@given(
    st.sampled_from([kind for kind, _ in PACKED]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats()
        | st.text(max_size=9)
        | st.binary(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(Hello.__struct_fields__), inner, max_size=9)
        ),
        max_leaves=25,
    ),
)
def test_any_values_in_any_place(kind: type[msgspec.Struct], value: object) -> None:
    with contextlib.suppress(BadFrame):
        unpack(kind, msgspec.msgpack.encode(value))


@pytest.mark.parametrize(
    "flows",
    [
        [b"x"],
        [FLOW.pack()[:-1]],
        [b"\x05" + FLOW.pack()[1:]],
        [FLOW.pack() * FLOWS_MAX, FLOW.pack()],
        [b""] * (NICS_MAX + 1),
    ],
    ids=["a byte", "cut off", "of no IP version", "too many", "too many interfaces"],
)
def test_connections_that_cannot_be_are_no_commit(flows: list[bytes]) -> None:
    fine = msgspec.msgpack.decode(pack(Commit(0, 0, [])))
    with pytest.raises(BadFrame):
        unpack(Commit, msgspec.msgpack.encode({**fine, "open_flows": flows}))


def test_a_commit_of_an_older_primary_names_no_connections() -> None:
    fine = msgspec.msgpack.decode(pack(Commit(0, 0, [])))
    del fine["open_flows"]
    assert unpack(Commit, msgspec.msgpack.encode(fine)).open_flows == []
