# SPDX-License-Identifier: Apache-2.0
"""Classic BPF programs that the gate gives to the kernel.

Classic, not extended: `cls_bpf` and packet sockets take the bytecode as it is, so nothing needs the bpf()
syscall, a compiler, or a program kept alive by a file descriptor. A classifier answers 0 (no match, the frame
goes on) or -1 (match, the action is run); a socket filter answers how many bytes it wants.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

Flow = tuple[bytes, int, bytes, int]  # address and port of the sender, the same of the receiver
FLOWS_IN_PROGRAM = 150  # of IPv6, with 25 instructions each; the kernel takes 4096

MATCH = 0xFFFFFFFF
NO_MATCH = 0

_LD_W_ABS, _LD_H_ABS, _LD_B_ABS = 0x20, 0x28, 0x30
_LDX_MSH, _LD_W_IND = 0xB1, 0x40  # the length of an IPv4 header; relative to that
_JEQ, _RET = 0x15, 0x06
_ANCILLARY = 0xFFFFF000  # SKF_AD_OFF, -0x1000
_AD_MARK = _ANCILLARY + 20

_ETH_IPV4, _ETH_IPV6, _ETH_ARP = 0x0800, 0x86DD, 0x0806
_TCP = 6
_ICMPV6, _NEIGHBOUR_SOLICIT, _NEIGHBOUR_ADVERT = 58, 135, 136
SNAP_LENGTH = 96  # bytes: Ethernet + IPv6 + the fixed part of a neighbour message


def _op(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def match_all() -> bytes:
    """Every frame, of any protocol."""
    return _op(_RET, MATCH)


def drop_all() -> bytes:
    """For a classifier whose answer is the verdict: no frame goes on (TC_ACT_SHOT)."""
    return _op(_RET, 2)


def match_all_but_mark(mark: int) -> bytes:
    """Every frame but those which carry this `skb->mark`."""
    return _op(_LD_W_ABS, _AD_MARK) + _op(_JEQ, mark, 0, 1) + _op(_RET, NO_MATCH) + _op(_RET, MATCH)


def match_mark(mark: int) -> bytes:
    """Only frames which carry this `skb->mark`."""
    return _op(_LD_W_ABS, _AD_MARK) + _op(_JEQ, mark, 0, 1) + _op(_RET, MATCH) + _op(_RET, NO_MATCH)


def drop_flows(flows: Sequence[Flow]) -> bytes:
    """For a classifier whose answer is the verdict: no TCP frame of these flows goes on, all else does.

    Of frames whose VLAN tag the kernel has taken off, as it has before any filter at a link's ingress.
    """
    program = b""
    for source, source_port, target, target_port in flows:
        ipv4 = len(source) == 4
        checks = [(_LD_H_ABS, 12, _ETH_IPV4 if ipv4 else _ETH_IPV6), (_LD_B_ABS, 23 if ipv4 else 20, _TCP)]
        words = source + target
        checks += [
            (_LD_W_ABS, (26 if ipv4 else 22) + at, int.from_bytes(words[at : at + 4], "big"))
            for at in range(0, len(words), 4)
        ]
        ports = source_port << 16 | target_port
        # Each comparison that fails leads to the next flow.
        left = 2 * len(checks) + (3 if ipv4 else 2) + 1
        for load, offset, wanted in checks:
            left -= 2
            program += _op(load, offset) + _op(_JEQ, wanted, 0, left)
        if ipv4:
            program += _op(_LDX_MSH, 14) + _op(_LD_W_IND, 14, 0, 0)
        else:
            program += _op(_LD_W_ABS, 54)
        program += _op(_JEQ, ports, 0, 1) + _op(_RET, 2)
    return program + _op(_RET, MATCH)  # TC_ACT_UNSPEC: whatever filter comes next


def one_byte_but_mark(mark: int) -> bytes:
    """Socket filter: one byte of every frame but those which carry this `skb->mark`."""
    return _op(_LD_W_ABS, _AD_MARK) + _op(_JEQ, mark, 0, 1) + _op(_RET, 0) + _op(_RET, 1)


def address_frames() -> bytes:
    """Socket filter: all ARP and IPv6 neighbour messages; only their first bytes."""
    return b"".join(
        (
            _op(_LD_H_ABS, 12),  # 0: ethertype
            _op(_JEQ, _ETH_ARP, 6, 0),  # 1: -> 8 take
            _op(_JEQ, _ETH_IPV6, 0, 6),  # 2: -> or 9 leave
            _op(_LD_B_ABS, 20),  # 3: next header
            _op(_JEQ, _ICMPV6, 0, 4),  # 4: -> or 9
            _op(_LD_B_ABS, 54),  # 5: ICMPv6 type
            _op(_JEQ, _NEIGHBOUR_SOLICIT, 1, 0),  # 6: -> 8
            _op(_JEQ, _NEIGHBOUR_ADVERT, 0, 1),  # 7: -> 8, or 9
            _op(_RET, SNAP_LENGTH),  # 8: take
            _op(_RET, 0),  # 9: leave
        )
    )
