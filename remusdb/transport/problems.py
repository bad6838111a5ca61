# SPDX-License-Identifier: Apache-2.0
"""What went wrong with a connection, in words that say what to do: OpenSSL's and the kernel's errors, wrapped."""

from __future__ import annotations

import socket
import ssl

from remusdb.errors import PeerRefused, PeerUnreachable

_CERTS = "make and install the certificates of both hosts with one CA: `remusdb certs`"
_VERSION = "install the same remusdb on both hosts; it speaks TLS 1.3"

# OpenSSL's reason -> what it means here, and the hint. The second table is what the *peer* said of us.
_OURS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": ("it presented no certificate", _CERTS),
    "UNSUPPORTED_PROTOCOL": ("it does not speak TLS 1.3", _VERSION),
    "WRONG_VERSION_NUMBER": ("it does not speak TLS", "is this the agent's address and port?"),
    "HTTP_REQUEST": ("it speaks HTTP, not TLS", "is this the agent's address and port?"),
    "UNEXPECTED_EOF_WHILE_READING": ("it closed the connection during the handshake", ""),
}
_THEIRS = {
    "TLSV1_ALERT_UNKNOWN_CA": ("it does not trust our certificate: another CA signed it", _CERTS),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": ("it requires a certificate and we presented none", _CERTS),
    "SSLV3_ALERT_BAD_CERTIFICATE": ("it finds our certificate bad", _CERTS),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ("it finds our certificate expired; are both clocks right?", _CERTS),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": ("it does not accept our certificate", _CERTS),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": ("it does not accept our certificate", _CERTS),
    "TLSV1_ALERT_DECRYPT_ERROR": ("it finds our certificate's signature bad", _CERTS),
    "TLSV1_ALERT_PROTOCOL_VERSION": ("it does not speak our version of TLS", _VERSION),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": ("it refused the handshake", _VERSION),
}


def tls_failure(error: ssl.SSLError, peer: str) -> PeerRefused:
    """A failed handshake or a broken record, as the error that ends the session."""
    if isinstance(error, ssl.SSLCertVerificationError):
        detail = error.verify_message or str(error)
        return PeerRefused(f"the certificate of {peer} is refused: {detail}", hint=_CERTS)
    reason = error.reason or ""
    if reason in _THEIRS:
        text, hint = _THEIRS[reason]
        return PeerRefused(f"{peer} refused the connection: {text}", hint=hint)
    text, hint = _OURS.get(reason, (f"TLS failed ({reason or error})", ""))
    return PeerRefused(f"the connection with {peer} is refused: {text}", hint=hint)


def socket_failure(error: OSError, peer: str) -> PeerUnreachable:
    """A socket's error, by its plain name: 'Connection refused', 'No route to host'."""
    return PeerUnreachable(f"{peer}: {error.strerror or error}")


def no_handshake(peer: str, within_s: float) -> PeerUnreachable:
    """It was given `within_s` seconds for it."""
    return PeerUnreachable(f"no TLS handshake with {peer} within {within_s:g} s")


def address_of(sock: socket.socket) -> str:
    """The peer as 'address:port', or 'peer' where it is gone already."""
    try:
        name = sock.getpeername()
    except OSError:
        return "peer"
    return endpoint(name[0], name[1]) if isinstance(name, tuple) and len(name) > 1 else "peer"


def endpoint(address: str, port: int) -> str:
    """Address and port as one writes them, IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
