# SPDX-License-Identifier: Apache-2.0
"""Whatever is in a HELLO, it gets a REFUSE (or, of nothing that can be answered, the end), and nothing is left."""

from __future__ import annotations

from typing import Any

from remusdb.core.messages import Refuse
from tests.hostile.rig import Rig
from tests.hostile.sayings import MIB, domain_xml, hello

DOCTYPES = {
    "a billion laughs": '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {n} "{f"&{m};" * 10}">' for m, n in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>",
    "an external entity": '<!DOCTYPE d [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
    "an external DTD": '<!DOCTYPE d SYSTEM "file:///etc/passwd">',
    "a parameter entity": "<!DOCTYPE d [<!ENTITY % a \"<!ENTITY b 'c'>\"> %a;]>",
    "one entity": '<!DOCTYPE d [<!ENTITY a "harmless">]>',
    "a DOCTYPE alone": "<!DOCTYPE domain>",
}
XMLS = {
    "nothing": "",
    "no XML": "hello",
    "not closed": "<domain>",
    "NUL": "<domain>\0</domain>",
    "two roots": domain_xml("pg") * 2,
    "another root": "<network/>",
    "an unbound prefix": "<q:domain/>",
    "100,000 deep": "<a>" * 100_000 + "</a>" * 100_000,
    "1,000 deep in devices": domain_xml("pg", more="<a>" * 1000 + "</a>" * 1000),
    "UTF-7": '<?xml version="1.0" encoding="UTF-7"?><domain/>',
    "unknown encoding": '<?xml version="1.0" encoding="x-none"?><domain/>',
    **{name: domain_xml("pg", head=head) for name, head in DOCTYPES.items()},
}
DISKS: dict[str, Any] = {
    "2^63 bytes": [{"target": "vda", "size": 1 << 63}],
    "2^62 bytes": [{"target": "vda", "size": 1 << 62}],
    "negative": [{"target": "vda", "size": -1}],
    "21, the last of 2^64-1": [
        *({"target": f"vd{chr(97 + n)}", "size": MIB} for n in range(20)),
        {"target": "vdz", "size": (1 << 64) - 1},
    ],
    "the same twice": [{"target": "vda", "size": MIB}] * 2,
    "10,000": [{"target": f"vd{n}", "size": MIB} for n in range(10_000)],
    "allocated 2^63": [{"target": "vda", "size": MIB, "allocated": 1 << 63}],
    "allocated negative": [{"target": "vda", "size": MIB, "allocated": -(1 << 60)}],
    "no list": "vda",
    "numbers": [1, 2, 3],
}
BLOCKS: dict[str, Any] = {
    "2^63 bytes": [{"name": "pc.ram", "size": 1 << 63}],
    "negative": [{"name": "pc.ram", "size": -(1 << 40)}],
    "20,000": [{"name": f"b{n}", "size": 4096} for n in range(20_000)],
    "the same twice": [{"name": "pc.ram", "size": 4096}] * 2,
    "a long name": [{"name": "b" * 100_000, "size": 4096}],
    "together more than the host has": [{"name": f"b{n}", "size": 1 << 40} for n in range(100)],
}
FIELDS: dict[str, Any] = {
    "heartbeat": {"heartbeat_ms": -(1 << 62)},
    "epoch": {"epoch": -1},
    "told": {"told": [1 << 62] * 100_000},
    "told negative": {"told": [-1]},
    "machine": {"machine": "m" * 1_000_000},
    "version": {"version": "v" * 1_000_000},
    "arbiter": {"arbiter": "a" * 1_000_000},
    "types": {"vm": 7, "term": "x", "blocks": None},
    "another primary": {"primary": "gamma"},
    "no primary": {"primary": ""},
}


def leaves_nothing(agent: Rig, field: str, kinds: dict[str, Any]) -> None:
    """HELLOs with these values in one field: each is refused, nothing of it stays, no VM is half-done in the status."""
    wrong = {}
    with agent.unchanged():
        for name, value in kinds.items():
            changes = value if field == "" else {field: value}
            for _ in range(2):
                caller, answer = agent.hello({**hello("pg", "alpha"), **changes}, "alpha")
                caller.close()
                if not isinstance(answer, Refuse):
                    wrong[name] = "no answer" if answer is None else "welcomed"
                elif answer.fenced or answer.renounced or len(answer.reason) > 1024:
                    wrong[name] = f"{answer!r:.200}"
        assert not wrong
    assert [vm for vm in agent.status() if vm["state"] != "empty"] == []
    assert "Traceback" not in agent.told()


def test_xml_that_is_none(agent: Rig) -> None:
    leaves_nothing(agent, "domain_xml", XMLS)


def test_disks_that_are_none(agent: Rig) -> None:
    leaves_nothing(agent, "disks", DISKS)


def test_memory_that_is_none(agent: Rig) -> None:
    leaves_nothing(agent, "blocks", BLOCKS)


def test_other_fields(agent: Rig) -> None:
    leaves_nothing(agent, "", FIELDS)
