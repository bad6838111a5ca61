# SPDX-License-Identifier: Apache-2.0
"""UEFI variables: the file holds what the flash holds, page by page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from remusdb.core.messages import RamBlock
from remusdb.errors import CannotProtect, DiskError
from remusdb_agents.backup.standby.nvram import FLASH, MAX_BYTES, Nvram, flash_bytes

BLOCKS = [RamBlock("pc.ram", 1 << 28), RamBlock("system.flash0", 3653632), RamBlock(FLASH, 540672)]


def test_pages_land_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "vm" / "nvram.fd"
    path.parent.mkdir()
    path.write_bytes(b"of an earlier session" * 999)
    nvram = Nvram(path, 5 * 4096)
    assert path.read_bytes() == bytes(5 * 4096) and path.stat().st_mode & 0o777 == 0o600
    pages = np.full((2, 4096), 0xFF, dtype=np.uint8)
    pages[1] = 7
    nvram.write(np.array([1, 4]), pages)
    nvram.write(np.array([1]), np.full((1, 4096), 9, dtype=np.uint8))
    assert path.read_bytes() == bytes(4096) + b"\x09" * 4096 + bytes(2 * 4096) + b"\x07" * 4096
    nvram.close()
    nvram.close()
    with pytest.raises(DiskError):
        nvram.write(np.array([0]), pages[:1])
    assert path.exists()
    nvram.remove()
    nvram.remove()
    assert not path.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("theirs")
    (tmp_path / "nvram.fd").symlink_to(tmp_path / "other")
    Nvram(tmp_path / "nvram.fd", 4096)
    assert (tmp_path / "other").read_text() == "theirs" and not (tmp_path / "nvram.fd").is_symlink()


def test_the_size_is_the_flashs_and_bounded(tmp_path: Path) -> None:
    assert flash_bytes("<domain><os><nvram>/x</nvram></os></domain>", BLOCKS) == 540672
    assert flash_bytes("<domain><os/></domain>", BLOCKS) == 0, "a firmware that keeps nothing"
    with pytest.raises(CannotProtect, match=FLASH):
        flash_bytes("<domain><os><nvram>/x</nvram></os></domain>", BLOCKS[:2])
    with pytest.raises(CannotProtect):
        Nvram(tmp_path / "nvram.fd", MAX_BYTES + 4096)
