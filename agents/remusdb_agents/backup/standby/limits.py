# SPDX-License-Identifier: Apache-2.0
"""How much of this host a VM may ask for that another host sends: threads, devices, ports, memory. Pure.

Each limit is far above what a VM needs and far below what would harm the host; `[limits] memory_max_mib` bounds the
memory, by `ram_bytes`. A number that is not written plainly is refused: libvirt might read
another one than is read here.
"""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator

from remusdb import safexml
from remusdb.allow.problem import Problem, Vm, edit
from remusdb.core.messages import Hello
from remusdb.preflight import needs
from remusdb_agents.backup.standby.host_side import CHARACTERS

VCPUS = 64  # on any host, and on one with many CPUs
VCPUS_A_CPU = 8
DEVICES = 256  # a q35 machine with all its hot-plug ports has about 60
COUNTS = {"interface": 32, "graphics": 4, "video": 16, "sound": 8, "redirdev": 16}
CHARACTER_DEVICES = 64  # each pty is one of the host's 4096 (kernel.pty.max)
THREADS = 64  # of I/O, of each pool of them, of allocation
# libvirt's own (qemu.conf: remote_display_port_min, remote_websocket_port_min and _max)
PORTS = {"port": (5900, 65535), "tlsPort": (5900, 65535), "websocket": (5700, 65535)}
AUTO_PORTS = ("", "-1", "0")
REAL_TIME = ("fifo", "rr")
_THREADS: tuple[tuple[str, str | None], ...] = (
    ("./iothreads", None),
    ("./iothreadids/iothread", "thread_pool_min"),
    ("./iothreadids/iothread", "thread_pool_max"),
    ("./defaultiothread", "thread_pool_min"),
    ("./defaultiothread", "thread_pool_max"),
    ("./memoryBacking/allocation", "threads"),
)
_QUEUES = ("./devices/interface/driver", "./devices/disk/driver", "./devices/controller/driver")
_SIZES: tuple[tuple[str, str | None, str], ...] = (
    ("./memory", None, "KiB"),
    ("./currentMemory", None, "KiB"),
    ("./maxMemory", None, "KiB"),
    ("./cpu/numa/cell", "memory", "KiB"),
    ("./devices/memory/target/size", None, "KiB"),
    ("./devices/memory/target/requested", None, "KiB"),
    ("./devices/memory/target/block", None, "KiB"),
    ("./features/smm/tseg", None, "MiB"),
    ("./features/tcg/tb-cache", None, "MiB"),
)
_VIDEO = ("ram", "vram", "vram64", "vgamem")  # KiB


def judge(bare: ET.Element, cpus: int, reserved: Collection[int], vm: Vm) -> Iterator[Problem]:
    """What is more than a guest needs. `cpus`: of this host; `reserved`: ports that it needs itself."""
    most = max(VCPUS, VCPUS_A_CPU * cpus)
    yield from _most(bare, "./vcpu", None, most, vm)
    yield from _most(bare, "./vcpu", "current", most, vm)
    for path, attribute in _THREADS:
        yield from _most(bare, path, attribute, THREADS, vm)
    for path in _QUEUES:
        yield from _most(bare, path, "queues", most, vm)
    for path, attribute, default in _SIZES:
        yield from _sizes(bare, path, attribute, default, vm)
    for attribute in _VIDEO:
        yield from _most(bare, "./devices/video/model", attribute, 4 << 20, vm)
    yield from _counts(bare, vm)
    yield from _scheduling(bare, vm)
    for graphics in bare.iterfind("./devices/graphics"):
        yield from _display(graphics, reserved, vm)


def memory_bytes(tree: ET.Element) -> int:
    """The memory that QEMU takes for it, as the XML says: RAM, modules, displays, translated code. Sizes that are
    not written plainly count as nothing: `judge` refuses them."""
    cells = sum(
        needs.size_bytes(cell.get("memory"), cell.get("unit", "KiB")) for cell in tree.iterfind("./cpu/numa/cell")
    )
    modules = sum(_size(size, "KiB") for size in tree.iterfind("./devices/memory/target/size"))
    displays = sum(_display_bytes(model) for model in tree.iterfind("./devices/video/model"))
    code = sum(_size(size, "MiB") for size in tree.iterfind("./features/tcg/tb-cache"))
    return max(needs.memory_bytes(tree), cells + modules) + displays + code


def ram_bytes(hello: Hello) -> int:
    """What its standby takes of this host's memory: by QEMU's blocks, or by its XML, whichever is more."""
    return max(sum(block.size for block in hello.blocks), memory_bytes(safexml.parse(hello.domain_xml)))


def _display_bytes(model: ET.Element) -> int:
    ram, vram, vram64, vgamem = (needs.number(model.get(name)) << 10 for name in _VIDEO)
    return max(ram, 2 * vgamem if model.get("type") == "qxl" else vgamem) + vram + vram64


def _size(element: ET.Element, default: str) -> int:
    return needs.size_bytes(element.text, element.get("unit", default))


def _values(bare: ET.Element, path: str, attribute: str | None) -> Iterator[str]:
    for element in bare.iterfind(path):
        value = (element.text or "").strip() if attribute is None else element.get(attribute)
        if value is not None:
            yield value


def _most(bare: ET.Element, path: str, attribute: str | None, most: int, vm: Vm) -> Iterator[Problem]:
    what = path.removeprefix("./") + (f" {attribute}" if attribute else "")
    for value in _values(bare, path, attribute):
        if not _plain(value) or int(value) > most:
            yield Problem(
                "size", f"{what} is {value:.40}: at most {most} are allowed there", edit(vm, f"{what}: {most} or less")
            )


def _sizes(bare: ET.Element, path: str, attribute: str | None, default: str, vm: Vm) -> Iterator[Problem]:
    what = path.removeprefix("./")
    for element in bare.iterfind(path):
        value = (element.text or "").strip() if attribute is None else element.get(attribute, "0")
        unit = element.get("unit", default)
        if not _plain(value) or not needs.size_bytes("1", unit):
            yield Problem(
                "size", f"{what} is {value:.40} {unit:.10}, which is no size", edit(vm, f"write {what} in KiB")
            )


def _plain(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) < 16


def _counts(bare: ET.Element, vm: Vm) -> Iterator[Problem]:
    devices = [device.tag for element in bare.iterfind("./devices") for device in element]
    found = {"device": (len(devices), DEVICES)}
    found |= {tag: (devices.count(tag), most) for tag, most in COUNTS.items()}
    found["character device"] = (sum(devices.count(tag) for tag in CHARACTERS), CHARACTER_DEVICES)
    found["I/O thread"] = (len(bare.findall("./iothreadids/iothread")), THREADS)
    for what, (count, most) in found.items():
        if count > most:
            yield Problem(
                "size", f"{count} of {what}: at most {most} are allowed there", edit(vm, f"{most} of {what} or less")
            )


def _scheduling(bare: ET.Element, vm: Vm) -> Iterator[Problem]:
    """A guest that never gives a CPU back would keep this host's agent, and all standbys, from running."""
    for element in bare.iterfind("./cputune/*"):
        if element.get("scheduler") in REAL_TIME:
            hint = edit(vm, f"remove <{element.tag}> from <cputune>")
            yield Problem(
                "size", f"{element.tag} {element.get('scheduler')}: real-time priority is not given there", hint
            )


def _display(graphics: ET.Element, reserved: Collection[int], vm: Vm) -> Iterator[Problem]:
    for name, (low, high) in PORTS.items():
        value = graphics.get(name, "")
        if value not in AUTO_PORTS and not (_plain(value) and low <= int(value) <= high and int(value) not in reserved):
            hint = edit(vm, f"another {name} from {low} to {high}, or autoport='yes', in <graphics>")
            yield Problem("displays", f"a display's {name} is {value:.40}", hint)
    for element in (graphics, *graphics.findall("listen")):
        address = element.get("address") or (element.get("listen") if element is graphics else None)
        if address and address != "localhost" and not _is_address(address):
            hint = edit(vm, "an address in numbers, or localhost, as what <graphics> listens on")
            yield Problem("displays", f"a display listens on {address:.80}, which is no address", hint)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
