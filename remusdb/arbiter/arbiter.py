# SPDX-License-Identifier: Apache-2.0
"""The arbiter's records as the daemons use them: one etcd key a VM, `{"owner", "term", "previous"}` as JSON."""

from __future__ import annotations

import base64

import msgspec

from remusdb.arbiter import register
from remusdb.arbiter.answers import Changed, Found, Status
from remusdb.arbiter.etcd import Etcd, Json
from remusdb.arbiter.health import Health, judge
from remusdb.config import Arbiter as Config
from remusdb.core.ownership import Claim, Ownership, Rule
from remusdb.core.terms import Term
from remusdb.errors import ArbiterUnreachable
from remusdb.jsontext import parse_json
from remusdb.names import HostOrNobody
from remusdb.printable import printable

_RECORD_BYTES = 256  # more than a record with the longest names takes
_TOLD_MAX_BYTES = 300


class Arbiter:
    """All VMs' records. Keeps no state but which endpoint answers; several threads may use it.

    A call takes at most `timeout_ms` x endpoints for each question; a claim asks two when nothing goes wrong, and two
    more for each of `register.TRIES` when it does.
    """

    def __init__(self, config: Config) -> None:
        """ConfigError if an endpoint or a certificate does not do. Nothing is asked yet."""
        self._etcd = Etcd(config)
        self._prefix = config.prefix
        self._control = _etcdctl(config)

    def cluster(self) -> str:
        """The id of etcd's cluster, which both hosts must agree on. ArbiterUnreachable before the first answer."""
        if not self._etcd.cluster:
            self._etcd.ask("/v3/kv/range", {"key": _text(self._prefix.encode())}, Found)
        return self._etcd.cluster

    def read(self, vm: str) -> Ownership | None:
        """The record as it is now, also by other hosts' doing. ArbiterUnreachable if that cannot be known."""
        return self._record(vm).read()[0]

    def health(self) -> Health:
        """Whether it would take a change now. Writes nothing; takes `timeout_ms` x (endpoints + 1) at most."""
        compare: Json = {"key": _text(self._prefix.encode()), "target": "VERSION", "result": "LESS", "version": "0"}
        change: Json = {"request_put": {"key": compare["key"], "value": _text(bytes(_RECORD_BYTES))}}
        refusal = ""
        try:
            self._etcd.ask("/v3/kv/txn", {"compare": [compare], "success": [change]}, Changed)
        except ArbiterUnreachable as error:
            refusal = str(error)
        return judge(self._etcd.ask_each("/v3/maintenance/status", {}, Status), refusal, self._control)

    def claim(self, vm: str, rule: Rule) -> Claim:
        """Change the record by one of the rules of `core.ownership`; trouble is a verdict. See `register.claim`."""
        return register.claim(self._record(vm), rule)

    def _record(self, vm: str) -> _Record:
        return _Record(self._etcd, self._prefix + vm)


class _Stored(msgspec.Struct, frozen=True):
    """A record as it may stand in etcd, where anybody may have written it."""

    owner: HostOrNobody
    term: Term
    previous: HostOrNobody = ""


class _Record:
    """One key, as a `register.Register`."""

    def __init__(self, etcd: Etcd, key: str) -> None:
        self._etcd = etcd
        self._name = key
        self._key = _text(key.encode())

    def read(self) -> tuple[Ownership | None, int]:
        # Linearizable, which is etcd's default: it answers only while it has a quorum.
        found = self._etcd.ask("/v3/kv/range", {"key": self._key}, Found)
        self._require_whole(found)
        if not found.kvs:
            return None, 0
        pair = found.kvs[0]
        try:
            stored = parse_json(pair.content, _Stored)
        except ValueError as error:
            raise ArbiterUnreachable(
                f"the arbiter's record {self._name} cannot be read: {printable(str(error), _TOLD_MAX_BYTES)}",
                hint="be sure where the VM runs, then remove the key and protect again",
            ) from error
        return Ownership(stored.owner, stored.term, stored.previous), int(pair.mod_revision)

    def _require_whole(self, found: Found) -> None:
        """ArbiterUnreachable for what does not answer the question: only "no such key" may be taken for no record."""
        fits = len(found.kvs) <= 1 and not found.more and found.count in ("", str(len(found.kvs)))
        ours = all(pair.key == self._key and int(pair.mod_revision) <= int(found.header.revision) for pair in found.kvs)
        if not fits or not ours:
            raise ArbiterUnreachable(
                f"the arbiter gives no valid answer about {self._name}",
                hint="see whether [arbiter] names an etcd, and nothing that stands before one",
            )

    def swap(self, revision: int, new: Ownership) -> bool:
        # A key that is not there has revision 0 for etcd, too.
        compare: Json = {"key": self._key, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
        change: Json = {"request_put": {"key": self._key, "value": _text(msgspec.json.encode(new))}}
        return self._etcd.change("/v3/kv/txn", {"compare": [compare], "success": [change]}).succeeded


def _etcdctl(config: Config) -> str:
    """How etcdctl asks the same etcd."""
    named = {"endpoints": ",".join(config.endpoints), "cacert": config.ca, "cert": config.cert, "key": config.key}
    return " ".join(["etcdctl", *(f"--{option}={value}" for option, value in named.items() if value)])


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
