# SPDX-License-Identifier: Apache-2.0
"""Runs a command with no more rights than a systemd unit of ours leaves it, where no systemd runs.

    python -m tools.lab.confine UNIT COMMAND...

What is taken from the unit: CapabilityBoundingSet, SystemCallFilter with its error number, RestrictNamespaces,
RestrictAddressFamilies, MemoryDenyWriteExecute, NoNewPrivileges and UMask. What a mount namespace or a cgroup does
(ProtectSystem, DeviceAllow, MemoryHigh) is not: the lab's hosts have mounts of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import socket
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

UNITS = Path(__file__).resolve().parents[2] / "packaging" / "systemd"
NUMBERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
CAPABILITIES = Path("/usr/include/linux/capability.h")
# linux/prctl.h, linux/seccomp.h, linux/audit.h
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 22, 24, 38, 65
SECCOMP_MODE_FILTER, ALLOW, ERRNO, KILL = 2, 0x7FFF0000, 0x00050000, 0x80000000
AUDIT_ARCH_X86_64, X32_BIT = 0xC000003E, 0x40000000
NAMESPACES = {"cgroup": 0x02000000, "ipc": 0x08000000, "net": 0x40000000, "mnt": 0x20000, "pid": 0x20000000,
              "user": 0x10000000, "uts": 0x04000000, "time": 0x80}  # fmt: skip
NR_AT, ARCH_AT, FIRST_ARGUMENT_AT = 0, 4, 16  # struct seccomp_data; the low half of an argument goes first
LOAD, EQUAL, ANY_OF, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_RET|K

Settings = dict[str, list[str]]
Instruction = tuple[int, int, int, int]


def settings(unit: str) -> Settings:
    """The words of each setting of a unit's [Service]."""
    found: Settings = defaultdict(list)
    for line in (UNITS / unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key] += value.split()
    return found


def system_calls(words: list[str]) -> set[str]:
    """The names that an allow list of SystemCallFilter stands for, groups written out."""
    said = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    groups: dict[str, set[str]] = {}
    for line in said.splitlines():
        if line.startswith("@"):
            group = groups.setdefault(line.strip(), set())
        elif line.startswith("    ") and not line.strip().startswith("#"):
            group.add(line.strip())

    def written_out(word: str) -> set[str]:
        return set().union(*map(written_out, groups[word])) if word.startswith("@") else {word}

    return set().union(*map(written_out, words))


def filter_of(unit: Settings) -> bytes:
    """The seccomp program, as classic BPF: an array of struct sock_filter."""
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", NUMBERS.read_text())}
    refused = ERRNO | getattr(errno, unit["SystemCallErrorNumber"][0])
    allowed = sorted(numbers[name] for name in system_calls(unit["SystemCallFilter"]) if name in numbers)
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCH_AT), (EQUAL, 1, 0, AUDIT_ARCH_X86_64), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NR_AT),
    ]  # fmt: skip
    taboo = sum(bit for name, bit in NAMESPACES.items() if name not in unit["RestrictNamespaces"])
    flags = [(LOAD, 0, 0, FIRST_ARGUMENT_AT), (ANY_OF, 0, 1, taboo), (RETURN, 0, 0, refused), (RETURN, 0, 0, ALLOW)]
    code += _only(numbers["unshare"], flags) + _only(numbers["clone"], flags)
    code += _only(numbers["clone3"], [(RETURN, 0, 0, ERRNO | errno.ENOSYS)])  # its flags are in memory: libc clones
    families = [getattr(socket, name) for name in unit["RestrictAddressFamilies"]]
    known = [(EQUAL, len(families) - at, 0, family) for at, family in enumerate(families)]
    code += _only(
        numbers["socket"],
        [(LOAD, 0, 0, FIRST_ARGUMENT_AT), *known, (RETURN, 0, 0, ERRNO | errno.EAFNOSUPPORT), (RETURN, 0, 0, ALLOW)],
    )
    for number in allowed:
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    code.append((RETURN, 0, 0, refused))  # x32 calls, too: their numbers are none of these
    return b"".join(struct.pack("HBBI", *one) for one in code)


def _only(number: int, then: list[Instruction]) -> list[Instruction]:
    """For this system call alone; the number is loaded, and stays so for others."""
    return [(EQUAL, 0, len(then), number), *then]


def capabilities(unit: Settings) -> set[int]:
    """The numbers of what the unit leaves in the bounding set."""
    known = dict(re.findall(r"#define (CAP_\w+)\s+(\d+)\n", CAPABILITIES.read_text()))
    return {int(known[name]) for name in unit["CapabilityBoundingSet"]}


def confine(unit: Settings) -> None:
    """Give up, in this process and for good, what the unit does not leave. OSError where that fails."""
    program = filter_of(unit)
    left, last = capabilities(unit), int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in range(last + 1):
        if number not in left:
            _prctl(PR_CAPBSET_DROP, number)
    os.umask(int(unit["UMask"][0], 8))
    if unit["NoNewPrivileges"] == ["yes"]:
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if unit["MemoryDenyWriteExecute"] == ["yes"]:
        with contextlib.suppress(OSError):  # Linux 6.3; systemd does it by its filter
            _prctl(PR_SET_MDWE, 1)
    held = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(held)), 16)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header))


def _prctl(option: int, second: int, third: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(second), ctypes.c_ulong(third), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


if __name__ == "__main__":
    confine(settings(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
