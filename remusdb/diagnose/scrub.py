# SPDX-License-Identifier: Apache-2.0
"""Secrets taken out of what goes into a bug report. Text in, text out: no file, no clock.

Invariant: what looks like a secret is removed, also where it is none. So a value is judged by the name in front of it
(`password=`, `"token":`, `<graphics passwd=`), and by its own shape (a key in PEM, a long run of base64, user and
password of a URL); and what an operator may have written freely for a guest (descriptions, metadata, SMBIOS and fw_cfg
strings, which cloud-init reads) is removed as a whole.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any, Final

from remusdb import safexml
from remusdb.errors import BadXml

GONE: Final = "[removed]"
_WORDS = (
    r"(?:passw|passphrase|secret|token|credential|authorization|cookie|\bpass\b|\bpwd\b|\bpsk\b|api[_-]?key|ssh[_-]?key"
    r"|(?:private|access|encryption|master|session|shared|signing)[_-]?key)"
)
_NAME = _WORDS + r"[\w.-]{0,64}"  # every repetition has a limit where it may be tried at each letter of a long line
_QUOTED = r"\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\.)*'?"
_PEM = r"[^-\n]{0,40}PRIVATE KEY[^-\n]{0,40}"
_LINES = re.IGNORECASE | re.MULTILINE
SECRET_NAME: Final = re.compile(_WORDS, re.IGNORECASE)
_RULES: Final = [
    (re.compile(rf"-----BEGIN {_PEM}-----.*?(?:-----END {_PEM}-----|\Z)", re.DOTALL), GONE),
    (re.compile(rf"\A.*?-----END {_PEM}-----", re.DOTALL), GONE),  # its beginning was cut off
    (re.compile(r"(?<=://)[^\s\"'<>]{1,512}@"), f"{GONE}@"),
    (re.compile(r"\b(Bearer\s+\S+|Basic\s+[A-Za-z0-9+/]{8,}={0,2})", re.IGNORECASE), GONE),
    (re.compile(rf"(?<![\w-])(--?(?:\w[\w-]{{0,40}}?)?{_NAME})\s+(?![-=:])(?:{_QUOTED}|\S+)", _LINES), rf"\1 {GONE}"),
    (re.compile(rf"^([ \t#;]*[\w.-]{{0,40}}?{_NAME}[ \t]*=[ \t]*)(?:{_QUOTED}|[^\n]+)", _LINES), rf"\1{GONE}"),
    (re.compile(rf"({_NAME}[\\\"']*[ \t]*=[ \t]*)(?:{_QUOTED}|\\+[\"'][^\n]*|\S+)", re.IGNORECASE), rf"\1{GONE}"),
    (re.compile(rf"({_NAME}[\\\"']*[ \t]*:[ \t]*)(?:{_QUOTED}|[^\n]+)", re.IGNORECASE), rf"\1{GONE}"),
    (re.compile(rf"(-(?:smbios|fw_cfg)[ \t]+)(?:{_QUOTED}|\S+)"), rf"\1{GONE}"),
    (re.compile(rf"(secret\b[^\n]{{0,512}}?\bdata[\\\"']*[ \t]*[:=][ \t]*)(?:{_QUOTED}|\S+)"), rf"\1{GONE}"),
    (re.compile(r"\beyJ[\w-]{8,}(?:\.[\w-]+){0,4}"), GONE),  # a JSON web token
    (re.compile(r"(?<![\w+/=])(?=[\w+/]*\d)(?=[\w+/]*[A-Z])(?=[\w+/]*[a-z])[A-Za-z0-9+/_]{40,}={0,2}"), GONE),
]  # fmt: skip
_FREE: Final = ("metadata", "description", "title", "sysinfo", "secret")  # elements that go as a whole


def scrub(text: str) -> str:
    """The text with GONE in the place of what may be a secret."""
    for pattern, by in _RULES:
        text = pattern.sub(by, text)
    return text


def scrub_value(value: Any, name: str = "") -> Any:
    """The same for what was read of TOML or JSON: by the names of keys, and in every text."""
    if name and SECRET_NAME.search(name) and value not in (None, "", True, False):
        return GONE
    if isinstance(value, Mapping):
        return {scrub(str(key)): scrub_value(of, str(key)) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [scrub_value(one) for one in value]
    return scrub(value) if isinstance(value, str) else value


def scrub_xml(text: str) -> str:
    """The same for a domain's definition; BadXml for what cannot be read, of which nothing may be shown."""
    root = safexml.parse(text)
    _scrub_element(root)
    try:
        return ET.tostring(root, encoding="unicode")
    except ValueError as exc:
        raise BadXml(f"the VM's XML cannot be written: {exc}") from exc


def _scrub_element(element: ET.Element) -> None:
    before = ""
    for child in list(element):
        name = child.tag.rpartition("}")[2] if isinstance(child.tag, str) else ""
        if name in _FREE:
            _empty(child)
        elif name == "arg" and before in ("-smbios", "-fw_cfg", "-object"):  # of qemu:commandline
            child.set("value", GONE)
        else:
            _scrub_element(child)
        before = child.get("value", "") if name == "arg" else ""
    for key, value in element.attrib.items():
        element.set(key, GONE if SECRET_NAME.search(key) else scrub(value))
    element.text = scrub(element.text) if element.text else element.text


def _empty(element: ET.Element) -> None:
    for child in list(element):
        element.remove(child)
    element.attrib.clear()
    element.text = GONE
