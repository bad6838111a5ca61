# SPDX-License-Identifier: Apache-2.0
"""Questions to etcd through its HTTP/JSON gateway.

Each question has a connection of its own: they are rare, and on one that is used again nobody could tell a request
that was lost from one that was never read. Invariant: a change is sent to one endpoint at most, and whoever asked
learns whether it was sent.
"""

from __future__ import annotations

import http.client
import io
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from remusdb.arbiter.answers import Answer, Changed, Failure
from remusdb.arbiter.endpoints import Endpoint, parse_endpoint, tls_context
from remusdb.config import Arbiter as Config
from remusdb.deadline import Deadline
from remusdb.errors import ArbiterSilent, ArbiterUnreachable
from remusdb.jsontext import parse_json
from remusdb.printable import printable

log = logging.getLogger(__name__)

MAX_ANSWER = 1 << 20
TOLD_MAX_BYTES = 300  # of what an endpoint says; etcd's own messages are under 100
# gRPC's codes by which etcd says that it did not make a change and will not: invalid, forbidden, unknown call, not
# logged in. All others are open: "no space" (8), for one, may come with the change made.
_REFUSALS = (3, 7, 12, 16)

Json = dict[str, Any]


class _Unsent(Exception):
    """No byte of the question left, or etcd's own word that it did nothing."""


class _Unanswered(Exception):
    """The question may have arrived, and there is no answer that can be used."""


class Etcd:
    """The endpoints of one cluster, the one that answered last first. Several threads may ask at once."""

    def __init__(self, config: Config) -> None:
        """ConfigError when an endpoint or a certificate does not do."""
        self._endpoints = [parse_endpoint(url) for url in config.endpoints]
        self._timeout_s = config.timeout_ms / 1000
        self._tls = tls_context(config, self._endpoints)
        self._lock = threading.Lock()
        self._cluster = ""

    @property
    def cluster(self) -> str:
        """The id of the cluster that answers; empty before the first answer."""
        return self._cluster

    def ask(self, path: str, question: Json, kind: type[Answer]) -> Answer:
        """A question that changes nothing, to one endpoint after the other. ArbiterUnreachable if none answers."""
        return self._ask(path, question, kind, repeatable=True)

    def change(self, path: str, question: Json) -> Changed:
        """A change, sent to the first endpoint that takes connections.

        ArbiterUnreachable if it was not made and never will be; ArbiterSilent if that is not known.
        """
        return self._ask(path, question, Changed, repeatable=False)

    def ask_each(self, path: str, question: Json, kind: type[Answer]) -> dict[str, Answer | str]:
        """A question that changes nothing, to every endpoint at once: URL -> its answer, or why there is none."""
        body = msgspec.json.encode(question)

        def one(asked: Endpoint) -> Answer | str:
            try:
                return self._once(asked, path, body, kind)
            except (_Unsent, _Unanswered) as problem:
                return str(problem)

        endpoints = list(self._endpoints)
        with ThreadPoolExecutor(len(endpoints)) as pool:
            answers = pool.map(one, endpoints)
            return {asked.url: answer for asked, answer in zip(endpoints, answers, strict=True)}

    def _ask(self, path: str, question: Json, kind: type[Answer], *, repeatable: bool) -> Answer:
        body = msgspec.json.encode(question)
        problems = []
        for endpoint in list(self._endpoints):
            try:
                answer = self._once(endpoint, path, body, kind)
            except (_Unsent, _Unanswered) as problem:
                problems.append(f"{endpoint.url}: {problem}")
                if isinstance(problem, _Unanswered) and not repeatable:
                    raise ArbiterSilent(
                        f"the arbiter may have made a change, but did not confirm it: {problems[-1]}"
                    ) from problem
                continue
            self._prefer(endpoint)
            return answer
        raise ArbiterUnreachable(
            f"the arbiter does not answer: {'; '.join(problems)}", hint="see whether etcd runs and is reached from here"
        )

    def _once(self, endpoint: Endpoint, path: str, body: bytes, kind: type[Answer]) -> Answer:
        deadline = Deadline.after(self._timeout_s)
        try:
            sock = self._connect(endpoint, deadline)
        except (OSError, ValueError) as error:
            raise _Unsent(_told(error)) from error
        try:
            status, text = _exchange(_Bounded(sock, deadline), endpoint, path, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Unanswered(_told(error)) from error
        finally:
            sock.close()
        return self._understood(status, text, kind)

    def _connect(self, endpoint: Endpoint, deadline: Deadline) -> socket.socket:
        sock = socket.create_connection((endpoint.address, endpoint.port), timeout=deadline.timeout_s())
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not endpoint.secure:
                return sock
            assert self._tls is not None
            sock.settimeout(deadline.timeout_s())
            return self._tls.wrap_socket(sock, server_hostname=endpoint.address)
        except BaseException:
            sock.close()
            raise

    def _understood(self, status: int, text: bytes, kind: type[Answer]) -> Answer:
        if status != http.client.OK:
            try:
                failure = parse_json(text, Failure)
            except ValueError:
                failure = Failure()
            problem = _Unsent if failure.code in _REFUSALS else _Unanswered
            raise problem(f"{printable(failure.message, TOLD_MAX_BYTES) or 'no reason given'} (HTTP {status})")
        try:
            answer = parse_json(text, kind)
        except ValueError as error:
            raise _Unanswered(f"this is no answer of etcd: {printable(str(error), TOLD_MAX_BYTES)}") from error
        with self._lock:
            self._cluster = self._cluster or answer.header.cluster_id
        if answer.header.cluster_id != self._cluster:
            raise _Unanswered(f"belongs to cluster {answer.header.cluster_id}, not to {self._cluster}")
        return answer

    def _prefer(self, endpoint: Endpoint) -> None:
        with self._lock:
            if self._endpoints[0] is not endpoint:
                log.info("the arbiter is asked at %s from now on", endpoint.url)
                self._endpoints = [endpoint, *(other for other in self._endpoints if other is not endpoint)]


class _Bounded:
    """A socket for http.client, none of whose calls outlasts the deadline, however slowly the answer comes."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.timeout_s())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._deadline))

    def close(self) -> None:
        """The socket is closed by whoever opened it."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.timeout_s())
        return self._sock.recv_into(buffer)


def _exchange(stream: _Bounded, endpoint: Endpoint, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(endpoint.address, endpoint.port)
    connection.sock = stream  # all that http.client uses of a socket
    connection.request("POST", path, body, {"Content-Type": "application/json", "Connection": "close"})
    with connection.getresponse() as response:
        text = response.read(MAX_ANSWER + 1)
        if len(text) > MAX_ANSWER:
            raise ValueError(f"an answer of more than {MAX_ANSWER} bytes")
        return response.status, text  # one that ends early is no JSON


def _told(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(said, TOLD_MAX_BYTES) or type(error).__name__
