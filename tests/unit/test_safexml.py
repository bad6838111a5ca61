# SPDX-License-Identifier: Apache-2.0
"""XML that others wrote: read in one place, within limits, or refused by the project's own error."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

from remusdb import safexml
from remusdb.errors import BadXml

REPO = Path(__file__).parents[2]
NO_DOCUMENT = {
    "nothing": "",
    "no end": "<domain>",
    "a NUL": "<domain>\0</domain>",
    "half a character": "<domain>\ud800</domain>",
    "an unknown prefix": "<a:domain/>",
    "two roots": "<domain/><domain/>",
    "an entity": '<!DOCTYPE d [<!ENTITY a "b">]><domain>&a;</domain>',
    "a document type without entities": "<!DOCTYPE domain><domain/>",
    "a document type elsewhere": '<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain/>',
    "an entity that nobody declared": "<domain>&a;</domain>",
    "too deep": "<a>" * 100_000 + "</a>" * 100_000,
    "a little too deep": "<a>" * 257 + "</a>" * 257,
    "too many": f"<domain>{'<a/>' * 100_000}</domain>",
    "too large": f"<domain>{' ' * (512 << 10)}</domain>",
    "too large in UTF-8": f"<domain>{'ä' * (300 << 10)}</domain>",
}


@pytest.mark.parametrize("name", NO_DOCUMENT)
def test_what_is_no_document_is_refused_by_the_projects_own_error(name: str) -> None:
    with pytest.raises(BadXml, match=r"^the VM's XML "):
        safexml.parse(NO_DOCUMENT[name])


def test_a_document_is_read() -> None:
    text = "<?xml version='1.0' encoding='UTF-16'?><!-- one --><d a='&lt;&#10;'>ä&amp;<b><![CDATA[<x>]]></b></d>"
    root = safexml.parse(text)
    assert (root.tag, root.get("a"), root.text, root.findtext("b")) == ("d", "<\n", "ä&", "<x>")
    assert safexml.parse("<a>" * 256 + "</a>" * 256).tag == "a"


def test_what_libvirt_says_of_a_large_host_is_read() -> None:
    cpus = "".join(f"<cpu id='{number}' socket_id='0' siblings='{number}'/>" for number in range(20_000))
    assert len(safexml.parse_host(f"<capabilities>{cpus}</capabilities>", "libvirt's capabilities")) == 20_000


def test_the_worst_that_is_read_costs_little() -> None:
    """Attributes, elements and text up to the limit; the limit of time is for a host with no time to spare."""
    attributes = " ".join(f"a{number}='1'" for number in range(40_000))
    worst = [f"<d {attributes}/>", f"<d>{'<a/>' * 32_000}</d>", f"<d>{'&#65;' * 100_000}</d>"]
    began = time.process_time()
    for text in worst:
        assert safexml.parse(text[: safexml.MAX_BYTES]).tag == "d"
    assert time.process_time() - began < 5


def test_nothing_else_parses_xml() -> None:
    """A parser without limits is one that a peer, or a guest with a long name, can use."""
    found = []
    for path in (*REPO.glob("remusdb/**/*.py"), *REPO.glob("agents/**/*.py")):
        if path.name == "safexml.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if any(
                word in f"{module}.{name}" for name in names for word in ("expat", "minidom", "sax", "pulldom", "lxml")
            ):
                found.append(f"{path}: {module} {names}")
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                if name in ("fromstring", "fromstringlist", "iterparse", "XMLParser", "XMLPullParser", "XML", "XMLID"):
                    found.append(f"{path}:{node.lineno}: {name}")
                if (
                    name == "parse"
                    and isinstance(node, ast.Attribute)
                    and ast.unparse(node.value).endswith(("ET", "Tree"))
                ):
                    found.append(f"{path}:{node.lineno}: {name}")
    assert found == []
