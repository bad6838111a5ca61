# SPDX-License-Identifier: Apache-2.0
"""The preflight's look at the backup's machine: virtualization, CPU, memory and disk space for a standby. Pure."""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET

from remusdb.core.probe import Answer
from remusdb.preflight import cpus, needs
from remusdb.preflight.checks import Check, advice, required
from remusdb.preflight.here import Here

MIB = 1 << 20


def decide(peer: str, answer: Answer, here: Here, tree: ET.Element) -> list[Check]:
    """The checks over what QEMU needs of the host."""
    return [*_machine(peer, answer, tree, here.cpu), *_resources(peer, answer, here, tree)]


def _machine(peer: str, answer: Answer, tree: ET.Element, cpu_here: str | None) -> list[Check]:
    checks = []
    kind = tree.get("type") or "kvm"
    if answer.domain_types is not None:
        lacks = [f"{peer} cannot run VMs of type {kind}"] if kind not in answer.domain_types else []
        hint = f"on {peer}: switch virtualization on in the firmware, modprobe kvm_intel or kvm_amd, restart libvirtd"
        checks.append(required("peer domain type", lacks, kind, hint))
    if answer.cpu is not None and not cpus.passed_through(tree):
        checks.append(_cpu(peer, answer.cpu, cpu_here))
    if answer.host_cpu is not None and cpus.passed_through(tree):
        more = answer.host_cpu == cpus.SUPERSET
        less = [] if more or answer.host_cpu == cpus.IDENTICAL else [f"{peer}: {answer.host_cpu}"]
        checks.append(
            required("peer CPU", less, f"that of {peer} has {'all of this one' if more else 'the same'}", _CPU)
        )
    return checks


_CPU = "a CPU model that both hosts have (virsh hypervisor-cpu-baseline finds it): virsh edit, from the VM's next start"


def _cpu(peer: str, there: str, here: str | None) -> Check:
    lacks = cpus.missing(there)
    if there and here and (there == here or (lacks and lacks <= cpus.missing(here))):
        return advice("peer CPU", f"neither host has it in full, and it runs here: {there}", "", _CPU)
    return required("peer CPU", [f"{peer}: {there}"] if there else [], f"{peer} can build it", _CPU)


def _resources(peer: str, answer: Answer, here: Here, tree: ET.Element) -> list[Check]:
    checks = []
    if answer.cpus is not None:
        checks += _cpus(peer, answer.cpus, tree)
    wanted = needs.nodes(tree)
    if answer.nodes is not None and wanted:
        lacks = sorted(wanted - needs.parse_set(answer.nodes))
        problems = [f"its memory is bound to node {_listed(lacks)}, {peer} has {answer.nodes}"] if lacks else []
        hint = f"virsh numatune {_name(tree)} --nodeset {answer.nodes} --config, from its next start"
        if tree.find("./numatune/memnode") is not None or tree.find("./devices/memory/source/nodemask") is not None:
            hint = f"virsh edit {_name(tree)}: name node {answer.nodes} for each of them, from its next start"
        checks.append(required("peer NUMA nodes", problems, f"{peer} has node {_listed(sorted(wanted))}", hint))
    if not answer.standby:
        checks += _memory(peer, answer, tree)
        checks += _disk_space(peer, answer, here)
    return checks


def _cpus(peer: str, online: str, tree: ET.Element) -> list[Check]:
    there = needs.parse_set(online)
    beyond = {what: sorted(wanted - there) for what, wanted in needs.cpu_pins(tree).items() if wanted - there}
    vcpus = needs.number((tree.findtext("vcpu") or "").strip())
    return [
        required(
            "peer CPUs",
            [f"{what} names CPU {_listed(lacks)}, {peer} has {online}" for what, lacks in beyond.items()],
            f"{peer} has {online}",
            "; ".join(_pin(_name(tree), what, online) for what in beyond),
        ),
        advice(
            "peer vCPUs",
            f"the VM has {vcpus} vCPUs, {peer} has {len(there)} CPUs" if vcpus > len(there) else "",
            f"{len(there)} CPUs for {vcpus} vCPUs",
            "it would be slower there",
        ),
    ]


def _pin(vm: str, what: str, online: str) -> str:
    word, _, which = what.partition(" ")
    if word == "vcpu":
        return f"virsh edit {vm}: <vcpu cpuset='{online}'>, or none, from its next start"
    return f"virsh {word} {vm} {which + ' ' if which else ''}{online} --live --config"


def _memory(peer: str, answer: Answer, tree: ET.Element) -> list[Check]:
    checks = []
    sizes = needs.huge_page_bytes(tree, answer.huge_page_kib << 10)
    if answer.memory_problem is not None:
        hint = f"free memory on {peer}, raise limits.memory_max_mib in its agent.toml, or choose another backup"
        checks.append(required("peer memory", [answer.memory_problem] * bool(answer.memory_problem), "enough", hint))
    if answer.huge_pages is not None and sizes:
        checks.append(_huge_pages(peer, answer, sizes, needs.memory_bytes(tree)))
    return checks


def _huge_pages(peer: str, answer: Answer, sizes: set[int], ram: int) -> Check:
    """With several sizes nobody can tell how many of each: then only whether they are there at all."""
    problems, hints = [], []
    for size in sorted(sizes):
        kib = size >> 10
        found = (answer.huge_pages or {}).get(kib)
        free, wanted = found.free if found else 0, -(-ram // size) if size and len(sizes) == 1 else 1
        if free < wanted:
            problems.append(f"{free} huge pages of {kib} KiB are free on {peer}, the VM needs {wanted}")
            file = f"/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages"
            hints.append(f"on {peer}: echo $(($(cat {file}) + {wanted - free})) > {file}")
        if found is None or not found.mounted:
            problems.append(f"no hugetlbfs for them is mounted on {peer}")
            at = f"/dev/hugepages-{kib}"
            hints.append(
                f"on {peer}: mkdir -p {at} && mount -t hugetlbfs -o pagesize={kib}K none {at}, restart libvirtd"
            )
    return required("peer huge pages", problems, "enough are free", "; ".join(hints))


def _disk_space(peer: str, answer: Answer, here: Here) -> list[Check]:
    if answer.image_free is None or not here.disks:
        return []
    need = sum(max(0, size - answer.images.get(target, 0)) for target, size in here.disks.items())
    free = answer.image_free
    short = [f"its disks take {need // MIB} MiB more, {free // MIB} MiB are free on {peer}"] if free < need else []
    hint = f"free space on {peer}, or set image_dir in its agent.toml to a larger file system and restart remusdb-agent"
    return [required("peer disk space", short, f"{free // MIB} MiB for {need // MIB} MiB", hint)]


def _listed(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _name(tree: ET.Element) -> str:
    return shlex.quote(tree.findtext("name") or "")
