# SPDX-License-Identifier: Apache-2.0
"""What the gate's process, the kernel and QEMU say, of any bytes: read, or the project's own error."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from remusdb.errors import GateError, VmError
from remusdb.net.gatewire import Op, Reply, Request, Status
from remusdb.net.linknews import parse_news
from remusdb.net.netlink import attributes, messages, raise_if_error
from remusdb.vm.endwatch import reason_in
from remusdb.vm.monitor import field_of, objects_in, reply_in, returned
from remusdb.vm.process import is_qemu_of, socket_of
from remusdb.vm.ramblocks import parse_ramblocks
from tests.unit.odd_bytes import DEEP, LINES

# --- the gate's protocol, and the kernel's ---


@pytest.mark.parametrize("data", [b"", b"\1", b"\xff" * 16, b"\1" * 17, b"\0" * 48, Reply(Status.DONE, 1).pack()[:-1]])
def test_a_packet_of_the_gate_is_one_or_a_gate_error(data: bytes) -> None:
    for kind in (Request, Reply):
        with pytest.raises(GateError):
            kind.unpack(data)
    assert Request.unpack(Request(Op.MARK, 1, 2).pack()) == Request(Op.MARK, 1, 2)
    assert Reply.unpack(Reply(Status.DONE, 1).pack()) == Reply(Status.DONE, 1)


def netlink(kind: int, payload: bytes, length: int | None = None) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload) if length is None else length, kind, 0, 1, 0) + payload


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_message_shorter_than_its_head_ends_it(length: int) -> None:
    with pytest.raises(GateError):
        list(messages(netlink(16, b"", length)))


@pytest.mark.parametrize("code", [1, -4096, -(1 << 31), (1 << 31) - 1])
def test_an_error_number_that_is_none_is_a_gate_error(code: int) -> None:
    with pytest.raises(GateError, match="which is none"):
        raise_if_error("asking", 0, struct.pack("=i", code) + b"\0" * 16)


@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"\0" * 15, b"\0" * 16 + b"\4\0\3", b"\0" * 16 + b"\xff\xff\3\0x", bytes(range(64))]
)
def test_news_of_a_link_are_news_or_a_gate_error(payload: bytes) -> None:
    for data in (netlink(16, payload), netlink(17, payload), netlink(16, payload)[:-1]):
        try:
            parse_news(data)
        except GateError:
            pass
    attributes(payload, 0)


# --- QEMU ---


@pytest.mark.parametrize(
    "reply",
    [
        *LINES.values(), '{"error": "x"}', '{"error": null}', '{"error": {}}', '{"error": {"desc": [1]}}', "{}", '"x"',
        '{"error": {"desc": "\\u001b[2J' + "x" * 100_000 + '"}}',
    ],
)  # fmt: skip
def test_a_reply_of_qemu_is_one_or_a_vm_error(reply: bytes | str) -> None:
    with pytest.raises(VmError) as caught:
        returned("query-status", reply_in("query-status", reply))
    assert len(str(caught.value)) < 2000 and str(caught.value).isprintable()


@pytest.mark.parametrize("value", [None, [], "x", 7, {}, {"status": 7}, {"status": None}, {"Status": "running"}])
def test_a_field_of_a_reply_has_its_kind_or_is_a_vm_error(value: object) -> None:
    with pytest.raises(VmError):
        field_of("query-status", value, "status", str)
    assert field_of("query-status", {"status": "running"}, "status", str) == "running"


@pytest.mark.parametrize("value", [None, {}, "x", 7, [7], [None], [{}, []]])
def test_a_list_of_a_reply_is_of_objects_or_a_vm_error(value: object) -> None:
    with pytest.raises(VmError):
        objects_in("qom-list", value)
    assert objects_in("qom-list", [{"name": "x"}]) == [{"name": "x"}]


ROW = "  pc.ram  4 KiB  0x0000000000000000 0x{used} 0x0000000004000000 0x{address}  rw"


@pytest.mark.parametrize(
    "text",
    [
        "", None, 7, [], {}, b"\xff", "\0",
        ROW.format(used="f" * 5000, address="0"),
        ROW.format(used="ffffffffffffffff", address="1000"),
        ROW.format(used="1000", address="f" * 17),
        ROW.format(used="1000", address="ffffffffffffffff"),
        ROW.format(used="2000", address="fffffffffffff000"),
        ROW.format(used="1000", address="1234"),
        ROW.format(used="1000", address="7f0000000000").replace("pc.ram", "x" * 300),
        "\n".join([ROW.format(used="1000", address="7f0000000000")] * 2),
    ],
)  # fmt: skip
def test_what_is_no_list_of_ram_blocks_is_a_vm_error(text: Any) -> None:
    with pytest.raises(VmError):
        parse_ramblocks(text)


def test_a_list_of_ram_blocks_is_read_in_time_whatever_it_is() -> None:
    """Blanks without end were tried in each way that they can be shared out."""
    good = ROW.format(used="1000", address="7f0000000000")
    for row in ("a" + " " * 200_000, "a " * 100_000, " " * 200_000, "a" + " 1 KiB" * 40_000):
        assert [block.name for block in parse_ramblocks(f"{row}\n{good}")] == ["pc.ram"]
        with pytest.raises(VmError):
            parse_ramblocks(row)


@pytest.mark.parametrize(
    "line", [b"", b"\0", b"-chardev", b"-chardev\0", b"-chardev\0socket,id=remusdb-qmp,path=\xff\xfe", bytes(range(99))]
)
def test_a_command_line_may_be_anything(line: bytes) -> None:
    assert is_qemu_of("vm", line) is False
    assert socket_of("remusdb-qmp", line) is None or b"path=" in line


@pytest.mark.parametrize(
    "details", [None, "", "[]", "x", DEEP.decode(), '{"reason": null}', '{"reason": ["\\ud800"]}', "7"]
)
def test_qemus_word_on_its_end_is_a_word(details: str | None) -> None:
    assert reason_in(details) == "?"
    assert reason_in('{"reason": "guest-shutdown"}') == "guest-shutdown"
