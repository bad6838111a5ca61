# SPDX-License-Identifier: Apache-2.0
"""Character devices: where what a guest writes to its serial ports, consoles and channels may go.

To nobody, to a terminal or display that somebody looks at, or to a log. A socket, a pipe or a device of the host is an
output that no gate holds: a client at its other end would hear of a state that the backup does not have.
"""

from __future__ import annotations

import posixpath
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.allow.problem import Problem, Vm, edit

LOG_FOLDER = "/var/log/libvirt/"  # libvirt's own on every host, so that the standby can open a file in it, too
# Nothing, a terminal of libvirt's, the guest's display in text or SPICE, QEMU's stdout (libvirt's log), a file.
UNHEARD = ("null", "pty", "vc", "stdio", "spicevmc", "file")
AGENT = "org.qemu.guest_agent.0"
# libvirt's own sockets: /run/libvirt/qemu/channel/ID-NAME/AGENT; of older versions domain-ID-NAME/AGENT or NAME.AGENT
# in /var/lib/libvirt/qemu/channel/target/.
AGENT_SOCKET = re.compile(r"(/var/lib|/run|/var/run)/libvirt/qemu/channel/(target/)?([^/]+[/.])?" + re.escape(AGENT))
SOURCES_OF_CHANCE = ("/dev/urandom", "/dev/random", "/dev/hwrng")


def character(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """A serial or parallel port, a console, a channel."""
    kind, name = element.get("type", "pty"), _named(element)
    if kind == "unix" and element.tag == "channel" and _is_agents(element):
        yield from _log(element, name, vm)
    elif kind in ("dev", "host", "passthrough"):
        hint = edit(vm, f"remove <{element.tag} type='{kind}'>, or make its type pty")
        yield Problem("devices", f"a {element.tag} device that is this host's own", hint)
    elif kind not in UNHEARD:
        why = f"{name} goes out by a {kind} backend, which no gate holds"
        yield Problem("devices", why, edit(vm, f"remove <{element.tag} type='{kind}'>, or make its type pty"))
    else:
        yield from _file(element.find("source") if kind == "file" else None, name, vm)
        yield from _log(element, name, vm)


def redirection(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """USB redirection and smart cards: by the SPICE display or not at all."""
    tag, mode, kind = element.tag, element.get("mode", "passthrough"), element.get("type", "spicevmc")
    if mode != "passthrough":
        yield Problem("devices", f"a smartcard of this host (mode {mode})", edit(vm, f"remove <{tag} mode='{mode}'>"))
    elif kind != "spicevmc":
        why = f"a {tag} by a {kind} backend, which no gate holds"
        yield Problem("devices", why, edit(vm, f"remove <{tag} type='{kind}'>"))
    else:
        yield from _log(element, f"a {tag}", vm)


def chance(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """Where a random number generator's numbers come from."""
    if element.get("model") == "egd":
        hint = edit(vm, "<backend model='random'>/dev/urandom</backend>")
        yield Problem("devices", "random numbers over an egd connection, which no gate holds", hint)
    elif element.get("model") == "random" and (element.text or "").strip() not in ("", *SOURCES_OF_CHANCE):
        hint = edit(vm, "<backend model='random'>/dev/urandom</backend>")
        yield Problem("devices", f"random numbers from {(element.text or '').strip()}, which the backup may lack", hint)


def _is_agents(channel: ET.Element) -> bool:
    """The guest agent's channel, on libvirt's own socket: only libvirt listens there."""
    target, source = channel.find("target"), channel.find("source")
    if target is not None and target.get("name", AGENT) != AGENT:
        return False
    if source is None or not source.get("path"):
        return True
    path = source.get("path", "")
    libvirts = AGENT_SOCKET.fullmatch(path) is not None and posixpath.normpath(path) == path
    return source.get("mode", "bind") == "bind" and libvirts


def _file(source: ET.Element | None, name: str, vm: Vm) -> Iterator[Problem]:
    if source is not None and not _is_log(path := source.get("path", "")):
        hint = edit(vm, f"{_base(path)} as the path of its source, or type='pty'")
        yield Problem("devices", f"{name} writes to {path}, outside {LOG_FOLDER}", hint)


def _log(element: ET.Element, name: str, vm: Vm) -> Iterator[Problem]:
    log = element.find("log")
    if log is not None and not _is_log(path := log.get("file", "")):
        hint = edit(vm, f"remove <log file='{path}'/>, or write {_base(path)}")
        yield Problem("devices", f"{name} is logged to {path}, outside {LOG_FOLDER}", hint)


def _is_log(path: str) -> bool:
    return path.startswith(LOG_FOLDER) and posixpath.normpath(path) == path


def _base(path: str) -> str:
    return LOG_FOLDER + (posixpath.basename(path) or "serial.log")


def _named(element: ET.Element) -> str:
    target = element.find("target")
    name = target.get("name") or target.get("port") if target is not None else None
    return f"{element.tag} {name}" if name else f"a {element.tag}"
