# SPDX-License-Identifier: Apache-2.0
"""The arbiter against a real etcd on loopback: races, lost answers, an etcd that is stopped, killed or half dead."""

from __future__ import annotations

import base64
import json
import select
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from remusdb.arbiter.answers import Found
from remusdb.arbiter.arbiter import Arbiter
from remusdb.config import Arbiter as Config
from remusdb.core.ownership import Claim, Ownership, Rule, Verdict, give_back, go_solo, open_session, take_over
from remusdb.errors import ArbiterUnreachable, ConfigError
from remusdb.transport.certs import make_ca_and_hosts
from tools.lab.etcd import Etcd

TIMEOUT_MS = 1000  # a disk that others use may take this long
Make = Callable[..., Arbiter]


def free_port() -> int:
    """A port that is free, and the one after it, too."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port: int = one.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
        return port


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    etcd = Etcd(None, tmp_path_factory.mktemp("etcd"), free_port())
    etcd.start()
    yield etcd
    etcd.kill()


@pytest.fixture
def arbiter(etcd: Etcd, request: pytest.FixtureRequest) -> Arbiter:
    return arbiter_at(etcd.url, prefix=f"/{request.node.name}/")


def arbiter_at(*urls: str, prefix: str = "/remusdb/") -> Arbiter:
    return Arbiter(Config(endpoints=list(urls), timeout_ms=TIMEOUT_MS, prefix=prefix))


class Proxy:
    """Hands connections on to etcd. While `swallow` is set, what etcd answers to a transaction is lost."""

    def __init__(self, target: str) -> None:
        self.swallow = False
        self.seen = 0  # transactions that etcd answered and nobody heard of
        self._target = ("127.0.0.1", int(target.rpartition(":")[2]))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._server.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            changes = False
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    changes = changes or (ready is client and b"/v3/kv/txn" in data)
                    if ready is client:
                        server.sendall(data)
                    elif changes and self.swallow:
                        self.seen += 1
                        return
                    else:
                        client.sendall(data)


@pytest.fixture
def proxy(etcd: Etcd) -> Iterator[Proxy]:
    proxy = Proxy(etcd.url)
    yield proxy
    proxy.close()


# --- one claimer ---


def test_a_record_goes_its_way(arbiter: Arbiter) -> None:
    assert arbiter.read("pg") is None
    assert arbiter.claim("pg", open_session("a", 1)) == Claim(Verdict.WON, Ownership("a", 1))
    assert arbiter.claim("pg", take_over("b", "a", 1)) == Claim(Verdict.WON, Ownership("b", 2))
    assert arbiter.claim("pg", go_solo("a", 1)) == Claim(Verdict.LOST, Ownership("b", 2))
    assert arbiter.claim("pg", give_back("b", "a", 2)) == Claim(Verdict.WON, Ownership("", 2, "a"))
    assert arbiter.claim("pg", open_session("a", 3)) == Claim(Verdict.WON, Ownership("a", 3))
    assert arbiter.read("pg") == Ownership("a", 3)
    assert arbiter.read("pg2") is None


def test_a_claim_that_was_won_writes_nothing_when_repeated(arbiter: Arbiter, etcd: Etcd) -> None:
    arbiter.claim("pg", open_session("a", 1))
    before = raw(etcd, "range", {"key": encoded("x")})["header"]["revision"]
    assert arbiter.claim("pg", open_session("a", 1)).verdict is Verdict.WON
    assert raw(etcd, "range", {"key": encoded("x")})["header"]["revision"] == before


def test_names_may_hold_anything(arbiter: Arbiter) -> None:
    name = 'Datenbank "ä" #1'
    arbiter.claim(name, open_session("a", 1))
    assert arbiter.read(name) == Ownership("a", 1)


# --- races ---


def test_of_two_who_race_one_wins(arbiter: Arbiter) -> None:
    """Also with one `Arbiter` for both, as several threads of one daemon use it."""
    other = arbiter_at(arbiter._etcd._endpoints[0].url, prefix=arbiter._prefix)
    with ThreadPoolExecutor(2) as pool:
        for race in range(200):
            vm = f"pg{race}"
            arbiter.claim(vm, open_session("a", 5))
            start = threading.Barrier(2)

            def run(one: Arbiter, rule: Rule, vm: str = vm, start: threading.Barrier = start) -> Claim:
                start.wait()
                return one.claim(vm, rule)

            solo = pool.submit(run, arbiter, go_solo("a", 5))
            takeover = pool.submit(run, other if race % 2 else arbiter, take_over("b", "a", 5))
            verdicts = {"a": solo.result().verdict, "b": takeover.result().verdict}
            assert sorted(verdict.value for verdict in verdicts.values()) == ["lost", "won"]
            record = arbiter.read(vm)
            assert record is not None and record.term == 6 and verdicts[record.owner] is Verdict.WON


# --- lost answers ---


def test_an_answer_that_was_lost_is_never_a_defeat(proxy: Proxy, etcd: Etcd) -> None:
    prefix = "/lost-answer/"
    near, far = arbiter_at(etcd.url, prefix=prefix), arbiter_at(proxy.url, prefix=prefix)
    near.claim("pg", open_session("a", 5))
    proxy.swallow = True
    claim = far.claim("pg", take_over("b", "a", 5))
    assert proxy.seen == 1  # it was done, and what it reads then tells it so: nothing is sent twice
    assert claim == Claim(Verdict.WON, Ownership("b", 6))
    assert near.read("pg") == Ownership("b", 6)
    assert far.claim("pg", take_over("b", "a", 5)).verdict is Verdict.WON


def test_after_a_lost_answer_no_other_endpoint_is_told_the_same_unasked(proxy: Proxy, etcd: Etcd) -> None:
    far = arbiter_at(proxy.url, etcd.url, prefix="/no-fall-over/")
    proxy.swallow = True
    assert far.claim("pg", open_session("a", 1)).verdict is Verdict.WON
    found = raw(etcd, "range", {"key": encoded("/no-fall-over/pg")})["kvs"][0]
    assert found["version"] == "1" and proxy.seen == 1


def test_a_lost_answer_and_then_silence_is_unknown(proxy: Proxy, etcd: Etcd) -> None:
    prefix = "/silence/"
    near, far = arbiter_at(etcd.url, prefix=prefix), arbiter_at(proxy.url, prefix=prefix)
    near.claim("pg", open_session("a", 5))
    proxy.swallow = True
    swallowed = threading.Event()

    def cut() -> None:
        while not proxy.seen:
            time.sleep(0.0005)
        etcd.pause()
        swallowed.set()

    # The proxy closes the connection as it swallows, so the next question may come before the pause: try until not.
    for _ in range(20):
        proxy.seen = 0
        swallowed.clear()
        watcher = threading.Thread(target=cut)
        watcher.start()
        claim = far.claim("pg", take_over("b", "a", 5))
        watcher.join(5)
        etcd.resume()
        assert claim.verdict in (Verdict.UNKNOWN, Verdict.WON)
        if claim.verdict is Verdict.UNKNOWN:
            break
        raw(etcd, "deleterange", {"key": encoded(f"{prefix}pg")})
        near.claim("pg", open_session("a", 5))
    else:
        pytest.fail("the pause never came in time")
    assert "no answer in time" in claim.why
    assert far.claim("pg", take_over("b", "a", 5)) == Claim(Verdict.WON, Ownership("b", 6))
    assert near.claim("pg", go_solo("a", 5)).verdict is Verdict.LOST


# --- an etcd in trouble ---


def test_a_stopped_etcd_is_noticed_in_time_and_asked_again(arbiter: Arbiter, etcd: Etcd) -> None:
    arbiter.claim("pg", open_session("a", 5))
    etcd.pause()
    try:
        for _ in range(3):
            began = time.monotonic()
            claim = arbiter.claim("pg", go_solo("a", 5))
            assert time.monotonic() - began < TIMEOUT_MS / 1000 + 0.5
            assert claim.verdict is Verdict.UNREACHED and "no answer in time" in claim.why
        with pytest.raises(ArbiterUnreachable):
            arbiter.read("pg")
    finally:
        etcd.resume()
    # UNREACHED was a promise: nothing of it is done later.
    time.sleep(0.3)
    assert arbiter.read("pg") == Ownership("a", 5)
    assert arbiter.claim("pg", go_solo("a", 5)).verdict is Verdict.WON


@pytest.mark.parametrize("round_", range(5))
def test_stopped_in_the_middle_of_a_claim(arbiter: Arbiter, etcd: Etcd, round_: int) -> None:
    """Whenever it stops: within bounds, and definite when asked again; unreached stays undone."""
    arbiter.claim("pg", open_session("a", 0))
    term, deadline = 0, time.monotonic() + 2
    pause = threading.Timer(0.01 + round_ * 0.007, etcd.pause)
    pause.start()
    while time.monotonic() < deadline:
        claim = arbiter.claim("pg", go_solo("a", term))
        if claim.verdict is not Verdict.WON:
            break
        term += 1
    pause.join()
    etcd.resume()
    assert claim.verdict in (Verdict.UNKNOWN, Verdict.UNREACHED)
    if claim.verdict is Verdict.UNREACHED:
        assert arbiter.read("pg") == Ownership("a", term)
    assert arbiter.claim("pg", go_solo("a", term)) == Claim(Verdict.WON, Ownership("a", term + 1))


def test_a_killed_etcd_keeps_its_records(arbiter: Arbiter, etcd: Etcd) -> None:
    arbiter.claim("pg", open_session("a", 5))
    etcd.kill()
    try:
        claim = arbiter.claim("pg", take_over("b", "a", 5))
        assert claim.verdict is Verdict.UNREACHED and "refused" in claim.why
    finally:
        etcd.start()
    assert arbiter.read("pg") == Ownership("a", 5)
    assert arbiter.claim("pg", take_over("b", "a", 5)).verdict is Verdict.WON


def test_one_endpoint_of_three_is_enough_and_is_asked_first_from_then_on(etcd: Etcd) -> None:
    refusing = f"http://127.0.0.1:{free_port()}"
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        silent = f"http://127.0.0.1:{mute.getsockname()[1]}"
        arbiter = arbiter_at(refusing, silent, etcd.url, prefix="/three/")
        assert arbiter.claim("pg", open_session("a", 1)).verdict is Verdict.WON
        began = time.monotonic()
        assert arbiter.claim("pg", take_over("b", "a", 1)).verdict is Verdict.WON
        assert time.monotonic() - began < TIMEOUT_MS / 1000
        with pytest.raises(ArbiterUnreachable, match=rf"(?s){refusing}.*{silent}"):
            arbiter_at(refusing, silent).cluster()


def test_an_answer_that_comes_drop_by_drop_does_not_outlast_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            client = server.accept()[0]
            with client:
                try:
                    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
                        client.sendall(bytes([byte]))
                        time.sleep(TIMEOUT_MS / 20_000)
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(ArbiterUnreachable, match="no answer in time"):
            arbiter_at(f"http://127.0.0.1:{server.getsockname()[1]}").read("pg")
        assert time.monotonic() - began < TIMEOUT_MS / 1000 + 0.5


# --- what is not a record, or not this cluster ---


@pytest.mark.parametrize("value", ["", "garbage", "{}", '{"owner": "a", "term": "5"}', '["a", 5]'])
def test_what_cannot_be_read_is_not_taken_for_nothing(arbiter: Arbiter, etcd: Etcd, value: str) -> None:
    key = f"{arbiter._prefix}pg"
    raw(etcd, "put", {"key": encoded(key), "value": encoded(value)})
    with pytest.raises(ArbiterUnreachable, match="cannot be read") as caught:
        arbiter.read("pg")
    assert key in str(caught.value) and caught.value.hint
    claim = arbiter.claim("pg", open_session("a", 9))
    assert claim.verdict is Verdict.UNREACHED and "cannot be read" in claim.why


def test_something_else_on_the_port_is_no_arbiter(etcd: Etcd) -> None:
    with pytest.raises(ArbiterUnreachable, match="404"):
        Arbiter(Config(endpoints=[etcd.url]))._etcd.ask("/v4/none", {}, Found)


def test_endpoints_of_another_cluster_are_not_believed(etcd: Etcd, tmp_path: Path) -> None:
    other = Etcd(None, tmp_path, free_port())
    other.start()
    try:
        arbiter = arbiter_at(etcd.url, other.url, prefix="/two/")
        arbiter.claim("pg", open_session("a", 1))
        assert arbiter.cluster() == arbiter_at(etcd.url).cluster() != arbiter_at(other.url).cluster()
        etcd.pause()
        with pytest.raises(ArbiterUnreachable, match="belongs to cluster"):
            arbiter.read("pg")
        assert arbiter.cluster()  # known from before
    finally:
        etcd.resume()
        other.kill()


def test_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    make_ca_and_hosts(tmp_path, {"etcd": ["127.0.0.1"], "a": ["127.0.0.1"]})
    make_ca_and_hosts(tmp_path / "stranger", {"a": ["127.0.0.1"]})
    port, secure = free_port(), f"https://127.0.0.1:{free_port()}"
    tls = {
        "listen-client-urls": f"http://127.0.0.1:{port},{secure}",
        "cert-file": str(tmp_path / "etcd" / "cert.pem"),
        "key-file": str(tmp_path / "etcd" / "key.pem"),
        "trusted-ca-file": str(tmp_path / "etcd" / "ca.pem"),
        "client-cert-auth": "true",
    }
    etcd = Etcd(None, tmp_path, port, tls)

    def claim(ca: Path, own: Path | None) -> Claim:
        cert, key = (own / "cert.pem", own / "key.pem") if own else (None, None)
        config = Config(endpoints=[secure], timeout_ms=2000, ca=ca / "ca.pem", cert=cert, key=key)
        return Arbiter(config).claim("pg", open_session("a", 1))

    good, bad = tmp_path / "a", tmp_path / "stranger" / "a"
    etcd.start()
    try:
        for ca, own in ((bad, good), (good, bad), (good, None)):
            assert claim(ca, own).verdict is Verdict.UNREACHED
        assert claim(good, good).verdict is Verdict.WON
    finally:
        etcd.kill()


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoints": ["http://witness:2379"]},
        {"endpoints": ["http://10.0.0.1"]},
        {"endpoints": ["10.0.0.1:2379"]},
        {"endpoints": ["http://10.0.0.1:2379"], "ca": Path("/none")},
        {"endpoints": ["https://10.0.0.1:2379"], "ca": Path("/none")},
        {"endpoints": ["https://10.0.0.1:2379"], "cert": Path("/none")},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="arbiter"):
        Arbiter(Config(**settings))  # type: ignore[arg-type]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def raw(etcd: Etcd, call: str, question: dict[str, str]) -> dict[str, Any]:
    """A question to etcd that does not go through what is tested."""
    request = urllib.request.Request(f"{etcd.url}/v3/kv/{call}", json.dumps(question).encode())
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)  # type: ignore[no-any-return]
