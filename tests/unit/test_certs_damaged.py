# SPDX-License-Identifier: Apache-2.0
"""A CA whose files are damaged, or others: told, and nothing is written."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from remusdb.errors import UsageError
from remusdb.transport.certs import make_ca_and_hosts


def damaged(kind: str, folder: Path) -> None:
    """Make something else of a CA that is there."""
    certificate, key = folder / "ca.pem", folder / "ca.key"
    pem = certificate.read_bytes()
    if kind == "a key of another kind":
        key.write_bytes(private(ed25519.Ed25519PrivateKey.generate()))
    elif kind == "an RSA key":
        key.write_bytes(private(rsa.generate_private_key(65537, 2048)))
    elif kind == "an encrypted key":
        own = serialization.load_pem_private_key(key.read_bytes(), None)
        assert isinstance(own, ec.EllipticCurvePrivateKey)
        key.write_bytes(private(own, serialization.BestAvailableEncryption(b"x")))
    elif kind == "not a CA":
        make_ca_and_hosts(folder.parent, {"a": []})
        certificate.write_bytes((folder.parent / "a" / "cert.pem").read_bytes())
        key.write_bytes((folder.parent / "a" / "key.pem").read_bytes())
    elif kind == "empty":
        certificate.write_bytes(b"")
    elif kind == "a folder":
        certificate.unlink()
        certificate.mkdir()
    else:
        der = bytearray(x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER))
        at, value = {"version": (12, 9), "curve": (der.find(bytes.fromhex("2a8648ce3d030107")) + 7, 99)}[kind]
        der[at] = value

        certificate.write_bytes(
            b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
        )


def pem_of(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def private(key: Any, how: serialization.KeySerializationEncryption | None = None) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how or serialization.NoEncryption()
    )
    return pem


@pytest.mark.parametrize(
    "kind",
    ["version", "curve", "a key of another kind", "an RSA key", "an encrypted key", "not a CA", "empty", "a folder"],
)
def test_a_damaged_ca_is_told_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    make_ca_and_hosts(tmp_path, {"alpha": ["192.0.2.1"]})
    damaged(kind, tmp_path / "ca")
    with pytest.raises(UsageError) as caught:
        make_ca_and_hosts(tmp_path, {"beta": ["192.0.2.2"]})
    assert str(tmp_path / "ca") in str(caught.value) and not (tmp_path / "beta").exists()


def test_each_byte_of_a_ca_may_be_another(tmp_path: Path) -> None:
    make_ca_and_hosts(tmp_path, {"alpha": []})
    path = tmp_path / "ca" / "ca.pem"
    der = x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER)
    for at in range(0, len(der), 3):
        changed = bytearray(der)
        changed[at] ^= 0x41
        path.write_bytes(
            b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(changed) + b"-----END CERTIFICATE-----\n"
        )
        try:
            make_ca_and_hosts(tmp_path, {"beta": []}, overwrite=True)
        except UsageError:
            pass


@pytest.mark.parametrize("made", ["a file", "a folder that cannot be written"])
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, made: str) -> None:
    (tmp_path / "out").write_text("") if made == "a file" else (tmp_path / "out").symlink_to("/proc/self")
    with pytest.raises(UsageError, match="out"):
        make_ca_and_hosts(tmp_path / "out", {"alpha": []})
