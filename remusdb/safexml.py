# SPDX-License-Identifier: Apache-2.0
"""XML that others wrote, read in one place: no document type, so no entities, and bounded in size and depth.

What is read is a libvirt document: a domain that a peer sent or that its guest's name is in, or what this host's own
libvirt says of itself. None has a document type. No other module parses XML (tests/unit/test_safexml.py).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from remusdb.errors import BadXml

MAX_BYTES = 512 << 10  # of a domain; one with 40 disks and all their aliases has 40 KiB
HOST_MAX_BYTES = 16 << 20  # of this host's own capabilities, which list each of its CPUs and machine types
MAX_DEPTH = 256  # libxml2's own limit (xmlParserMaxDepth): libvirt writes and reads nothing deeper
BYTES_AN_ELEMENT = 16  # so a document of MAX_BYTES has 32768 elements at most


class _Bounded(ET.TreeBuilder):
    """Builds the tree as long as it stays within its limits."""

    def __init__(self, what: str, max_elements: int) -> None:
        super().__init__()
        self._what = what
        self._left = max_elements
        self._depth = 0

    def start(self, tag: Any, attrs: Any, /) -> Any:
        self._depth += 1
        self._left -= 1
        if self._depth > MAX_DEPTH:
            raise BadXml(f"{self._what} is nested more than {MAX_DEPTH} deep")
        if self._left < 0:
            raise BadXml(f"{self._what} has too many elements")
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> Any:
        self._depth -= 1
        return super().end(tag)


def parse(text: str, what: str = "the VM's XML", *, max_bytes: int = MAX_BYTES) -> ET.Element:
    """The root of a document. BadXml, which names it as `what`, for one that is none or is beyond a limit."""
    if len(text) > max_bytes:
        raise BadXml(f"{what} has more than {max_bytes} bytes")
    try:
        raw = text.encode()
    except UnicodeEncodeError as exc:
        raise BadXml(f"{what} has characters that are none") from exc
    if len(raw) > max_bytes:
        raise BadXml(f"{what} has more than {max_bytes} bytes")
    if b"<!DOCTYPE" in raw:
        raise BadXml(f"{what} has a document type, which no document of libvirt's has")
    parser = ET.XMLParser(target=_Bounded(what, max_bytes // BYTES_AN_ELEMENT), encoding="utf-8")
    try:
        parser.feed(raw)
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError, LookupError) as exc:
        raise BadXml(f"{what} cannot be read: {exc}") from exc
    return root


def parse_host(text: str, what: str) -> ET.Element:
    """The same, of what this host's own libvirt says of the host, which grows with the host."""
    return parse(text, what, max_bytes=HOST_MAX_BYTES)
