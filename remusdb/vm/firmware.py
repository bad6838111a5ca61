# SPDX-License-Identifier: Apache-2.0
"""Which firmware a protected VM may have: what a guest writes into its firmware's variables must be on the backup."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.vm.allow_problem import Problem, Vm


def firmware(element: ET.Element, _vm: Vm) -> Iterator[Problem]:
    """What is wrong with `<os>`'s firmware: nothing for a BIOS, which keeps no variables."""
    loader = element.find("loader")
    efi = element.get("firmware") == "efi" or element.find("nvram") is not None
    if efi or (loader is not None and loader.get("type") == "pflash"):
        hint = "the firmware's variables are a file that is not replicated yet; only BIOS guests can be protected"
        yield Problem("firmware", "UEFI", hint)


def told(tree: ET.Element) -> str:
    """What `check` says of a firmware that is fine."""
    return "UEFI" if tree.find("./os[@firmware='efi']") is not None or tree.find("./os/nvram") is not None else "BIOS"
