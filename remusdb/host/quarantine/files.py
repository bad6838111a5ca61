# SPDX-License-Identifier: Apache-2.0
"""What is kept of a VM that is quarantined: its definition, and the disks that remusdb made.

Owns `STATE_DIR/quarantine/VM-termN*`. Invariant: what was saved once is not overwritten, so that a step that is
repeated after a crash still knows the VM as it was before anything was done to it.
"""

from __future__ import annotations

import logging
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import quote

import libvirt

from remusdb import durable, safexml
from remusdb.errors import BadXml, DiskError, RemusError
from remusdb.names import file_stem
from remusdb.safefiles import make_folder
from remusdb.vm.prepare import QEMU_NS
from remusdb.vm.process import RUN_FOLDER

log = logging.getLogger(__name__)

FOLDER = "quarantine-term"
VARIABLES = "nvram"  # how a UEFI guest's variables are called among the disks
CONFIG_FOLDER = Path("/etc/libvirt/qemu")  # NAME.xml: its definition

ET.register_namespace("qemu", QEMU_NS)


class SavedDefinition:
    """The definition of one VM as it was when it was fenced in `term`. OSErrors come as RemusError."""

    def __init__(self, state_dir: Path, vm: str, term: int) -> None:
        self._folder = state_dir / "quarantine"
        self._vm = vm
        stem = f"{file_stem(vm)}-term{term}"
        self.definition = self._folder / f"{stem}.xml"  # what `virsh define` takes
        self.live = self._folder / f"{stem}.live.xml"  # as it ran: it may have had other disks
        self._stem = stem

    def save(self, handle: libvirt.virDomain) -> None:
        """Ask libvirt. Blocks as libvirt does: call under a deadline."""
        if handle.isActive():
            self._put(self.live, _with_volumes(handle, handle.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)))
        for snapshot in handle.listAllSnapshots():  # the definition goes with them, or not at all
            name = quote(snapshot.getName(), safe="")
            self._put(self._folder / f"{self._stem}.snapshot-{name}.xml", snapshot.getXMLDesc())
        self._put(self.definition, handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))

    def save_without_libvirt(self) -> None:
        """From libvirt's own files; nothing at all where it keeps them elsewhere."""
        running, defined = (_read(folder / f"{self._vm}.xml") for folder in (RUN_FOLDER, CONFIG_FOLDER))
        domain = running.find("./domain") if running is not None else None
        if domain is not None:
            self._put(self.live, ET.tostring(domain, encoding="unicode"))
        if defined is not None:
            self._put(self.definition, ET.tostring(defined, encoding="unicode"))
        elif domain is not None:
            domain.attrib.pop("id", None)
            self._put(self.definition, ET.tostring(domain, encoding="unicode"))

    def disks(self) -> dict[str, str]:
        """Target to file or device of each disk that the VM could write; as it ran goes before as it was defined."""
        return {target: where for target, (where, _) in self._disks().items()}

    def formats(self) -> dict[str, str]:
        """Target to format of each of `disks`, by the definition: a disk's content is the guest's, and may lie."""
        return {target: kind for target, (_, kind) in self._disks().items()}

    def _disks(self) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        for path in (self.live, self.definition):
            tree = _read(path)
            for disk in tree.iterfind("./devices/disk") if tree is not None else ():
                target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
                if target is None or source is None or disk.get("device", "disk") != "disk":
                    continue
                where = source.get("file") or source.get("dev")
                if where and disk.find("readonly") is None:
                    kind = driver.get("type", "raw") if driver is not None else "raw"
                    found.setdefault(target.get("dev", ""), (where, kind))
            if tree is not None and (variables := _variables(tree)):
                found.setdefault(VARIABLES, (variables, ""))  # no disk: a copy of the VM takes them from its memory
        return found

    def rename_disks(self, moved: dict[str, str]) -> None:
        """Have the definition name the disks (old path to new path) where they are now."""
        tree = _read(self.definition)
        if tree is None:
            return
        before = ET.tostring(tree)
        for source in (*tree.iterfind("./devices/disk/source"), *tree.iterfind("./os/nvram/source")):
            if source.get("file", "") in moved:
                source.set("file", moved[source.get("file", "")])
        nvram = tree.find("./os/nvram")
        if nvram is not None and (nvram.text or "").strip() in moved:
            nvram.text = moved[(nvram.text or "").strip()]
        if (after := ET.tostring(tree)) != before:
            durable.write_file(self.definition, after)

    def _put(self, path: Path, xml: str) -> None:
        if path.exists():
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write_file(path, xml.encode())
            durable.sync_folder(self._folder.parent)
        except OSError as exc:
            raise RemusError(f"{path}: cannot be written: {exc.strerror}") from exc


def _with_volumes(handle: libvirt.virDomain, xml: str) -> str:
    """The XML with the path of each disk that it names by pool and volume."""
    root = safexml.parse(xml)
    for source in root.iterfind("./devices/disk[@type='volume']/source"):
        try:
            pool = handle.connect().storagePoolLookupByName(source.get("pool", ""))
            source.set("file", pool.storageVolLookupByName(source.get("volume", "")).path())
        except libvirt.libvirtError as exc:
            log.warning("where volume %s is not known: %s", source.get("volume"), exc)
    return ET.tostring(root, encoding="unicode")


def _variables(tree: ET.Element) -> str:
    """The file of a UEFI guest's variables, in one of libvirt's two ways to name it; empty where there is none."""
    source = tree.find("./os/nvram/source")
    return (tree.findtext("./os/nvram") or "").strip() or (source.get("file", "") if source is not None else "")


def _read(path: Path) -> ET.Element | None:
    try:
        return safexml.parse_host(path.read_text(), str(path))
    except (OSError, ValueError, BadXml):
        return None


def move_aside(path: str, folder: Path, term: int) -> str:
    """Move a disk of `folder` into its `quarantine-termN`; where it is now. The same path for one that is elsewhere.

    It may have been moved before: by an earlier attempt, or in an earlier term (it is then left where it is).
    """
    disk = Path(path)
    if disk.parent.resolve() != folder.resolve():
        return path
    aside = folder / f"{FOLDER}{term}" / disk.name
    try:
        if disk.exists() and not aside.exists():
            make_folder(aside.parent)
            disk.rename(aside)
            durable.sync_folder(aside.parent)
            durable.sync_folder(folder)
    except OSError as exc:
        raise DiskError(f"{disk} cannot be moved aside to {aside}: {exc.strerror}") from exc
    return str(aside) if aside.exists() else path


def remove_older(folder: Path, term: int) -> list[Path]:
    """Remove what was kept of earlier terms, if something was kept in this one; the folders that went."""
    if not (folder / f"{FOLDER}{term}").is_dir():
        return []
    older = [path for path in sorted(folder.glob(f"{FOLDER}*")) if _term_of(path) < term and path.is_dir()]
    for path in older:
        try:
            shutil.rmtree(path)
        except OSError as exc:
            raise DiskError(f"{path}, kept of an earlier term, cannot be removed: {exc.strerror}") from exc
    return older


def _term_of(folder: Path) -> int:
    """The term in the folder's name; of a name that is not ours, one that is never older."""
    digits = folder.name.removeprefix(FOLDER)
    return int(digits) if digits.isascii() and digits.isdecimal() else 1 << 64
