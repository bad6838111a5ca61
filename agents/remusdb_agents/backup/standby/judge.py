# SPDX-License-Identifier: Apache-2.0
"""Whether this host starts a VM that another host sends. Pure: an XML and what this host has, to what is wrong with it.

The list that `protect` goes by on the primary (remusdb.allow.judge) says what could speak or be lost there. This one
asks what such a VM could do *here*: it is judged as if the sender wanted to harm this host, whoever it is. What is
behind the devices was taken out before (host_side.py). Of what is left no value may be a path, unless it is one that
the guest alone reads as text, or a file in a folder that agent.toml lets VMs name; no number may be more than a guest
needs.
"""

from __future__ import annotations

import copy
import posixpath
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from remusdb.allow import judge as allow
from remusdb.allow.characters import SOURCES_OF_CHANCE
from remusdb.allow.problem import Path, Problem, Vm, edit, shown, target_of, vm_of
from remusdb.preflight import needs
from remusdb.vm.prepare import QEMU_NS
from remusdb_agents.backup.standby import limits as standby_limits
from remusdb_agents.backup.standby import own_words
from remusdb_agents.backup.standby.host_side import CHARACTERS, choose_emulator, strip

REHEARSAL = "-rehearsal"  # the end of the names of the agent's own copies (xml.py)
LINK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,14}")  # IFNAMSIZ of linux/if.h, without what a path may have
ZONE = re.compile(r"[A-Za-z][\w+-]*(/[A-Za-z][\w+-]*){0,2}")  # Europe/Berlin; glibc would read /etc/anything as well

# Where text with a slash is no path to anybody but the guest or an operator: element, and attribute or None for text.
TEXTS: frozenset[tuple[Path, str | None]] = frozenset({
    (("title",), None), (("description",), None), (("os", "cmdline"), None), (("clock",), "timezone"),
    (("devices", "disk", "serial"), None), (("devices", "disk", "vendor"), None),
    (("devices", "disk", "product"), None), (("devices", "graphics"), "passwd"),
})  # fmt: skip
# Devices of this host that any VM may have.
NAMED: Mapping[tuple[Path, str | None], Collection[str]] = {
    (("devices", "interface", "backend"), "tap"): ("/dev/net/tun",),
    (("devices", "interface", "backend"), "vhost"): ("/dev/vhost-net",),
    (("devices", "rng", "backend"), None): SOURCES_OF_CHANCE,
}
DEVICES_OF_ALL = frozenset(path for paths in NAMED.values() for path in paths)
Place = tuple[int, str | None]  # id() of an element, and its attribute or None for its text
# Where several of one kind may stand beside each other. Elsewhere libvirt might read another than is looked at here.
SEVERAL: Mapping[Path, Collection[str]] = {
    (): ("sysinfo",),
    ("os",): ("boot", "initarg", "initenv"),
    ("devices", "graphics"): ("listen", "channel"),
    ("devices", "interface"): ("ip", "route"),
    ("devices", "sound"): ("codec",),
    ("devices", "redirfilter"): ("usbdev",),
}


@dataclass(frozen=True)
class Here:
    """What this host has for it. `reserved`: ports that it needs itself. `folders`: where files may be that a VM names;
    `firmware`: single files besides; `real`: of each file that the VM names there, the file that it is (links
    followed), empty for none."""

    cpus: int = 1
    reserved: frozenset[int] = frozenset()
    folders: tuple[str, ...] = ()
    firmware: frozenset[str] = frozenset()
    real: Mapping[str, str] = field(default_factory=dict)


def judge(tree: ET.Element, here: Here, targets: Collection[str] | None) -> list[Problem]:
    """All that is wrong with the domain whose root is `tree`. `targets`: the session's disks; None if not known yet."""
    vm, bare = vm_of(tree), copy.deepcopy(tree)
    strip(bare)
    choose_emulator(bare, None)
    found = [*allow.judge(tree), *_doubles(bare, vm), *_names(tree, vm)]
    for line in tree.iterfind(f"./{{{QEMU_NS}}}commandline"):
        found += own_words.command_line(line, vm)
    for line in tree.iterfind(f"./{{{QEMU_NS}}}override"):
        found += own_words.override(line, vm)
    found += [*_disks(bare, targets, vm), *_interfaces(bare, vm), *_firmware(bare, vm)]
    found += [*_files(bare, here, targets is not None, vm), *_strays(bare, (), _judged(bare), vm)]
    found += standby_limits.judge(bare, here.cpus, here.reserved, vm)
    return list(dict.fromkeys(found))


def files(tree: ET.Element) -> list[str]:
    """Each path that the VM names and that libvirt or QEMU would open."""
    bare = copy.deepcopy(tree)
    strip(bare)
    return list(dict.fromkeys(one.path for _, _, one in needs.opened(bare) if one.path))


def allowed(path: str, here: Here) -> bool:
    """Whether a VM may name this file, by its name alone."""
    plain = path.startswith("/") and posixpath.normpath(path) == path and "\0" not in path
    return plain and (path in here.firmware or _below(path, here))


def _below(path: str, here: Here) -> bool:
    return any(path.startswith(f"{folder.rstrip('/')}/") for folder in here.folders)


def _names(tree: ET.Element, vm: Vm) -> Iterator[Problem]:
    if (tree.findtext("name") or "").endswith(REHEARSAL):
        hint = f"rename it while it is off: virsh domrename {vm} NAME"
        yield Problem("definition", f"its name ends in {REHEARSAL}, as those of rehearsals do", hint)
    zones = (clock.get("timezone", "") for clock in tree.iterfind("./clock"))
    for zone in zones:
        if zone and not ZONE.fullmatch(zone):
            hint = edit(vm, "timezone='Europe/Berlin', or another name of a time zone, in <clock>")
            yield Problem("definition", f"{zone:.80} is no name of a time zone", hint)


def _doubles(bare: ET.Element, vm: Vm) -> Iterator[Problem]:
    places: list[tuple[Path, ET.Element]] = [((), bare)]
    places += [(("os",), element) for element in bare.iterfind("./os")]
    places += [(("devices", shown(device.tag)), device) for device in bare.iterfind("./devices/*")]
    for path, element in places:
        for tag, count in Counter(shown(child.tag) for child in element).items():
            if count > 1 and tag not in SEVERAL.get(path, ()):
                where = f"<{path[-1] if path else 'domain'}>"
                hint = edit(vm, f"leave one <{tag}> in {where}")
                yield Problem("definition", f"{where} has {count} times <{tag}>", hint)


def _disks(bare: ET.Element, targets: Collection[str] | None, vm: Vm) -> Iterator[Problem]:
    found = [target_of(disk) for disk in bare.iterfind("./devices/disk")]
    disks = [target_of(disk) for disk in bare.iterfind("./devices/disk") if disk.get("device", "disk") == "disk"]
    for target in sorted({target for target in found if found.count(target) > 1}):
        yield Problem("disks", f"two disks are called {target}", edit(vm, f"give one of the two {target} another name"))
    if targets is not None and set(disks) != set(targets):
        odd = ", ".join(sorted(set(disks) ^ set(targets)))
        yield Problem("disks", f"the VM's disks are not those of the session: {odd}", "protect the VM again")


def _interfaces(bare: ET.Element, vm: Vm) -> Iterator[Problem]:
    for interface in bare.iterfind("./devices/interface"):
        source, target = interface.find("source"), interface.find("target")
        bridge = source.get("bridge", "") if source is not None else ""
        if not LINK.fullmatch(bridge):
            hint = edit(vm, "<interface type='bridge'> with <source bridge='BRIDGE'/>")
            yield Problem("interfaces", "an interface that names no bridge", hint)
        if target is not None and not LINK.fullmatch(target.get("dev", "")):
            hint = edit(vm, "remove <target> from the interface")
            yield Problem("interfaces", f"{target.get('dev', '')!r:.80} is no name of a tap", hint)


def _firmware(bare: ET.Element, vm: Vm) -> Iterator[Problem]:
    """libvirt would choose files, and make some, for a VM that has not run yet; one that runs names them."""
    os = bare.find("os")
    if os is None or os.get("firmware", "bios") == "bios":
        return
    loader = os.find("loader")
    stateless = loader is not None and loader.get("stateless") == "yes"
    if loader is None or not (loader.text or "").strip() or (os.find("nvram") is None and not stateless):
        yield Problem("firmware", "UEFI firmware without the files that it is in", f"start {vm}, then protect it")


def _files(bare: ET.Element, here: Here, all_there: bool, vm: Vm) -> Iterator[Problem]:
    for _, _, one in needs.opened(bare):
        if not one.path or one.path in DEVICES_OF_ALL:
            continue
        if not allowed(one.path, here):
            hint = "have the file in one of the folders of readable_dirs in agent.toml there, or add its folder to them"
            yield Problem("files", f"{one.what} {one.path:.200} is in no folder that VMs may name there", hint)
        elif not (real := here.real.get(one.path, "")):
            if not all_there:
                continue  # whoever asks is told by another answer what is not there
            yield Problem("files", f"{one.what} {one.path:.200} is no file there", "have the same file on both hosts")
        elif real not in here.firmware and not _below(real, here):
            hint = "put the file itself there, or add the folder that it is in to readable_dirs in agent.toml there"
            what = f"{one.what} {one.path:.200} leads to {real:.200}, which VMs may not name there"
            yield Problem("files", what, hint)


def _strays(element: ET.Element, path: Path, judged: Collection[Place], vm: Vm) -> Iterator[Problem]:
    """Whatever is a path, wherever it is: a place that nobody thought of is one of these."""
    if path in (("metadata",), ("qemu:commandline",)):  # the latter is rebuilt here, of words judged by themselves
        return
    places: list[tuple[str | None, str]] = [*element.attrib.items(), (None, element.text or "")]
    for name, value in places:
        if "/" not in value or _expected(path, name) or value.strip() in NAMED.get((path, name), ()):
            continue
        if (id(element), name) not in judged:
            where = f"<{path[-1] if path else 'domain'}>"
            where = f"{shown(name)} of {where}" if name is not None else where
            yield Problem("definition", f"{where} names {value.strip():.200}", edit(vm, f"remove {where}"))
    for child in element:
        yield from _strays(child, (*path, shown(child.tag)), judged, vm)


def _judged(bare: ET.Element) -> set[Place]:
    """Files that `_files` has looked at."""
    found = needs.opened(bare)
    return {(id(element), name) for element, name, one in found if one.path not in DEVICES_OF_ALL}


def _expected(path: Path, name: str | None) -> bool:
    if (path, name) in TEXTS or (len(path) > 1 and path[0] == "sysinfo" and name != "file"):
        return True
    return len(path) == 3 and path[1] in CHARACTERS and (path[2], name) in (("source", "path"), ("log", "file"))
