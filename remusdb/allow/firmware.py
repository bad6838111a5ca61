# SPDX-License-Identifier: Apache-2.0
"""Which firmware a protected VM may have: what a guest writes into its firmware's variables must be on the backup."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.allow.problem import Problem, Vm


def firmware(element: ET.Element, _vm: Vm) -> Iterator[Problem]:
    """What is wrong with `<os>`'s firmware. Variables in a flash chip of their own are captured with the memory."""
    loader = element.find("loader")
    if loader is not None and loader.get("type") == "pflash" and loader.get("readonly", "no") != "yes":
        yield Problem(
            "firmware",
            "the guest's variables are in its firmware, one file that is not replicated",
            "give it variables of its own: <loader readonly='yes' type='pflash'> and <nvram>, from its next start",
        )


def told(tree: ET.Element) -> str:
    """What `check` says of a firmware that is fine."""
    return "UEFI, with its variables" if tree.find("./os/nvram") is not None else "a firmware that keeps no variables"
