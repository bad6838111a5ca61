# SPDX-License-Identifier: Apache-2.0
"""TLS and frames over loopback: who is let in, what ends a session, and that nothing ends the listener."""

from __future__ import annotations

import logging
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remusdb.core.wire import MAGIC, MAX_PAYLOAD, PROTOCOL_VERSION, Frame, FrameType, encode_header
from remusdb.deadline import Deadline, poll_until
from remusdb.errors import BadFrame, ConfigError, PeerRefused, PeerUnreachable
from remusdb.transport import handshake
from remusdb.transport.certs import make_ca_and_hosts
from remusdb.transport.link import TlsLink, TlsState
from remusdb.transport.listener import Listener
from remusdb.transport.stream import FrameStream
from remusdb.transport.tls import client_context, connect, server_context

LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certs")
    make_ca_and_hosts(out, {"alpha": [LOOPBACK], "beta": [LOOPBACK, "::1"]})
    make_ca_and_hosts(out / "stranger", {"alpha": [LOOPBACK], "beta": [LOOPBACK]})
    return out


def files(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "ca.pem", folder / "cert.pem", folder / "key.pem"


class Server:
    """The agent's side: every session is put into a queue and lives until `stop`."""

    def __init__(self, certs: Path, address: str = LOOPBACK) -> None:
        self.sessions: queue.Queue[FrameStream] = queue.Queue()
        self._stop = threading.Event()
        self.listener = Listener(address, 0, server_context(*files(certs / "beta")))
        self.listener.start(self._session)
        self.port = self.listener.port

    def _session(self, stream: FrameStream) -> None:
        self.sessions.put(stream)
        self._stop.wait()

    def stop(self) -> None:
        self._stop.set()
        self.listener.close()


@pytest.fixture
def server(certs: Path) -> Iterator[Server]:
    server = Server(certs)
    yield server
    server.stop()


@pytest.fixture
def dial(certs: Path, server: Server) -> Iterator[Callable[[], FrameStream]]:
    opened: list[FrameStream] = []

    def dial() -> FrameStream:
        opened.append(connect(LOOPBACK, server.port, client_context(*files(certs / "alpha")), "beta", 5))
        return opened[-1]

    yield dial
    for stream in opened:
        stream.close()


def raw_client(server: Server, certs: Path) -> ssl.SSLSocket:
    """A peer with a good certificate that then says what it likes; the greeting is read."""
    context = client_context(*files(certs / "alpha"))
    sock = context.wrap_socket(socket.create_connection((LOOPBACK, server.port)), server_hostname="beta")
    assert sock.recv(100)[:4] == b"RMDB"
    return sock


def receive(stream: FrameStream) -> Frame:
    frame = stream.receive(10)
    assert frame is not None
    return frame


def assert_serves(server: Server, dial: Callable[[], FrameStream]) -> None:
    client = dial()
    client.send(FrameType.HEARTBEAT, 1, 1)
    assert receive(server.sessions.get(timeout=5)).type is FrameType.HEARTBEAT


# --- frames ---


def test_frames_arrive_as_they_were_sent(server: Server, dial: Callable[[], FrameStream]) -> None:
    client, agent = dial(), server.sessions.get(timeout=5)
    assert (client.peer_name, agent.peer_name) == ("beta", "alpha")
    sizes = [0, 1, 16 * 1024, 16 * 1024 + 1, 262_144, 1_000_003, MAX_PAYLOAD]
    payloads = [os.urandom(size) for size in sizes]
    sender = threading.Thread(
        target=client.send_many, args=([(FrameType.PAGES, 3, n, data) for n, data in enumerate(payloads)],)
    )
    sender.start()
    for number, payload in enumerate(payloads):
        frame = receive(agent)
        assert (frame.type, frame.term, frame.epoch) == (FrameType.PAGES, 3, number)
        assert frame.payload == payload
    sender.join()
    agent.send(FrameType.ACK, 2**62, 2**62)
    assert receive(client) == Frame(FrameType.ACK, 2**62, 2**62, b"")


def test_a_timeout_is_none_and_keeps_what_has_come(server: Server, certs: Path) -> None:
    client = raw_client(server, certs)
    agent = server.sessions.get(timeout=5)
    payload = os.urandom(100_000)
    frame = encode_header(FrameType.PAGES, 1, 1, payload) + payload
    started = time.monotonic()
    assert agent.receive(0.05) is None
    assert time.monotonic() - started < 1
    for at in range(0, len(frame), 9_001):
        heard, deadline = agent.last_heard, time.monotonic() + 5
        client.sendall(frame[at : at + 9_001])
        received = agent.receive(0.01)
        while agent.last_heard == heard:  # bytes in the middle of a frame count as life
            assert time.monotonic() < deadline
            received = agent.receive(0.01)
        assert received is None or at + 9_001 >= len(frame)
    received = received or agent.receive(5)
    assert received is not None and received.payload == payload
    client.close()


def test_what_came_and_was_not_read_can_be_seen(server: Server, dial: Callable[[], FrameStream]) -> None:
    client = dial()
    agent = server.sessions.get(timeout=5)
    while agent.receive(0.05) is not None or agent.unread:  # what TLS itself says after its handshake
        pass
    client.send(FrameType.HEARTBEAT, 1, 0)
    assert poll_until(lambda: agent.unread, Deadline.after(5), 0.01)
    assert receive(agent).type is FrameType.HEARTBEAT and not agent.unread
    client.close()
    assert not agent.unread, "the end of a connection is no sign of life"
    agent.close()
    assert not agent.unread


def test_ipv6(certs: Path) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").read_text():
        pytest.fail("IPv6 on loopback is needed")
    server = Server(certs, "::1")
    client = connect("::1", server.port, client_context(*files(certs / "alpha")), "beta", 5)
    assert client.peer_address == f"[::1]:{server.port}"
    client.close()
    server.stop()


# --- who is let in ---


def test_another_ca_is_refused_on_both_sides(server: Server, certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PeerRefused, match=r"certificate of 127\.0\.0\.1:.* is refused") as caught:
        connect(LOOPBACK, server.port, client_context(*files(certs / "stranger/alpha")), "beta", 5)
    assert "remusdb certs" in caught.value.hint
    # A client that trusts our CA and shows another one's certificate: the listener's refusal reaches connect().
    mixed = client_context(certs / "ca/ca.pem", *files(certs / "stranger/alpha")[1:])
    with pytest.raises(PeerRefused, match="another CA signed it") as caught:
        connect(LOOPBACK, server.port, mixed, "beta", 5)
    assert "remusdb certs" in caught.value.hint
    assert server.sessions.empty()
    assert wait_for_log(caplog, "the certificate of 127.0.0.1")


def test_no_certificate_is_refused(server: Server, certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.create_default_context(cafile=str(certs / "ca/ca.pem"))
    with pytest.raises(PeerRefused, match="we presented none"):
        connect(LOOPBACK, server.port, context, "beta", 5)
    assert wait_for_log(caplog, "it presented no certificate")
    assert server.sessions.empty()


def test_tls_1_2_is_refused(server: Server, certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.create_default_context(cafile=str(certs / "ca/ca.pem"))
    context.load_cert_chain(certs / "alpha/cert.pem", certs / "alpha/key.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(PeerRefused, match="does not speak our version of TLS"):
        connect(LOOPBACK, server.port, context, "beta", 5)
    assert wait_for_log(caplog, "does not speak TLS 1.3")


def test_a_listener_with_another_name_is_refused(server: Server, certs: Path) -> None:
    with pytest.raises(PeerRefused, match="not valid for 'gamma'"):
        connect(LOOPBACK, server.port, client_context(*files(certs / "alpha")), "gamma", 5)


def test_nobody_there() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(PeerUnreachable, match=f"127.0.0.1:{port}: Connection refused"):
        connect(LOOPBACK, port, ssl.create_default_context(), "beta", 1)


def test_somebody_who_says_nothing(certs: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        started = time.monotonic()
        with pytest.raises(PeerUnreachable, match="no TLS handshake"):
            connect(LOOPBACK, silent.getsockname()[1], client_context(*files(certs / "alpha")), "beta", 0.3)
        assert time.monotonic() - started < 2


def test_somebody_who_speaks_another_protocol(certs: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:

        def greet() -> None:
            with other.accept()[0] as caller:
                caller.sendall(b"220 mail.example ESMTP\r\n")
                caller.recv(1)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(PeerRefused, match="does not speak TLS"):
            connect(LOOPBACK, other.getsockname()[1], client_context(*files(certs / "alpha")), "beta", 5)


@pytest.mark.parametrize("content", [None, "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_certificates_that_cannot_be_loaded(tmp_path: Path, content: str | None) -> None:
    for path in files(tmp_path):
        if content is not None:
            path.write_text(content)
    with pytest.raises(ConfigError, match="cannot load the certificates") as caught:
        server_context(*files(tmp_path))
    assert "remusdb certs" in caught.value.hint


def test_an_encrypted_key_is_an_error_not_a_question(tmp_path: Path, certs: Path) -> None:
    """OpenSSL would ask on the terminal, where a daemon waits for ever."""
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key((certs / "beta/key.pem").read_bytes(), None)
    sealed = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret"))
    (tmp_path / "key.pem").write_bytes(sealed)
    with pytest.raises(ConfigError, match="cannot load"):
        server_context(certs / "beta/ca.pem", certs / "beta/cert.pem", tmp_path / "key.pem")


def test_an_address_that_cannot_be_had(certs: Path, server: Server) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
        Listener(LOOPBACK, server.port, server_context(*files(certs / "beta")))


def test_a_handshake_in_small_pieces(server: Server, certs: Path) -> None:
    state = TlsState(client_context(*files(certs / "alpha")), server_name="beta")
    assert not state.shake("beta")
    data = state.outgoing.read()
    sock = socket.create_connection((LOOPBACK, server.port))
    for at in range(0, len(data), 60):
        sock.sendall(data[at : at + 60])
        time.sleep(0.01)
    link = TlsLink(sock, state)
    link.handshake(20)
    assert receive(FrameStream(link)).type is FrameType.HEARTBEAT
    link.close()


# --- what ends a session, and only that ---


def corrupted() -> bytes:
    payload = b"the guest's memory"
    frame = bytearray(encode_header(FrameType.PAGES, 1, 1, payload) + payload)
    frame[-1] ^= 1
    return bytes(frame)


MINE = MAGIC + bytes([PROTOCOL_VERSION])  # how each frame begins
BAD_FRAMES = [
    (corrupted(), "checksum mismatch in a PAGES frame"),
    (b"GET / HTTP/1.1\r\n" + bytes(64), "bad magic"),
    (b"RMDB\x07" + bytes(35), "protocol version 7"),
    (MINE + b"\x05\x00\x00\xff\xff\xff\xff" + bytes(28), "oversized frame: 4294967295"),
    (MINE + b"\x00" + bytes(34), "unknown frame type 0"),
]


@pytest.mark.parametrize(("data", "text"), BAD_FRAMES)
def test_a_bad_frame_drops_its_session(
    data: bytes, text: str, server: Server, certs: Path, dial: Callable[[], FrameStream]
) -> None:
    client = raw_client(server, certs)
    agent = server.sessions.get(timeout=5)
    client.sendall(data)
    with pytest.raises(BadFrame, match=text):
        agent.receive(5)
    with pytest.raises(PeerUnreachable):
        agent.receive(5)
    with pytest.raises(PeerUnreachable):
        agent.send(FrameType.ACK, 1, 1)
    client.close()
    assert_serves(server, dial)


def test_a_frame_cut_short_is_no_frame(server: Server, certs: Path) -> None:
    client = raw_client(server, certs)
    agent = server.sessions.get(timeout=5)
    client.sendall(encode_header(FrameType.PAGES, 1, 1, bytes(1000)) + bytes(999))
    client.close()
    with pytest.raises(PeerUnreachable, match=r"closed the connection|reset"):
        agent.receive(5)


def test_bytes_altered_under_tls_end_the_session(server: Server, certs: Path) -> None:
    client = raw_client(server, certs)
    agent = server.sessions.get(timeout=5)
    os.write(client.fileno(), b"\x17\x03\x03\x00\x20" + os.urandom(32))  # a TLS record nobody encrypted
    with pytest.raises(PeerRefused, match="TLS failed"):
        agent.receive(5)
    client.close()


def test_peers_that_misbehave_do_not_end_the_listener(
    server: Server, dial: Callable[[], FrameStream], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_TIMEOUT_S", 0.3)
    for data in (b"", b"GET / HTTP/1.0\r\n\r\n", os.urandom(500), b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"):
        with socket.create_connection((LOOPBACK, server.port)) as sock:
            sock.sendall(data)
    with socket.create_connection((LOOPBACK, server.port)):  # says nothing and stays
        assert wait_for_log(caplog, "no TLS handshake")
    assert_serves(server, dial)


def test_a_session_that_raises_is_closed_and_logged(certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener(LOOPBACK, 0, server_context(*files(certs / "beta")))

    def session(stream: FrameStream) -> None:
        raise RuntimeError("a bug in the session")

    listener.start(session)
    for _ in range(2):
        client = connect(LOOPBACK, listener.port, client_context(*files(certs / "alpha")), "beta", 5)
        with pytest.raises(PeerUnreachable):
            client.receive(5)
        client.close()
    assert wait_for_log(caplog, "session with alpha .* failed")
    listener.close()


def wait_for_log(caplog: pytest.LogCaptureFixture, pattern: str) -> bool:
    caplog.set_level(logging.WARNING)
    return bool(poll_until(lambda: re.search(pattern, caplog.text), Deadline.after(5), 0.01))
