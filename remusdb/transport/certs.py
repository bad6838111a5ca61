# SPDX-License-Identifier: Apache-2.0
"""The small CA that `remusdb certs` makes: one for the two hosts, one certificate a host.

    out/ca/{ca.pem, ca.key}             the CA; its key need not be on either host
    out/NAME/{ca,cert,key}.pem          what goes to /etc/remusdb/tls of host NAME

EC P-256, ten years. Keys are 0600 from their first byte. A host's key is written last, so that a run that
was cut short leaves no host that looks finished.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from remusdb import durable
from remusdb.errors import UsageError
from remusdb.printable import printable

VALID_DAYS = 3650
FILE_MAX_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_ca_and_hosts(out: Path, hosts: dict[str, list[str]], *, overwrite: bool = False) -> list[Path]:
    """Make certificates for `hosts` (name -> its IP addresses and DNS names); return the folders made.

    The CA in `out`/ca is reused if it is there, so that a host can be added later. UsageError for a bad
    name and, unless `overwrite`, for a host that has a key already; nothing is written then.
    """
    names = {name: _alternatives(name, addresses) for name, addresses in hosts.items()}
    taken = [name for name in hosts if (out / name / "key.pem").exists()]
    if taken and not overwrite:
        raise UsageError(
            f"{out / taken[0] / 'key.pem'} exists already",
            hint="leave that host out, or ask for its key to be overwritten",
        )
    try:
        authority = _authority(out / "ca")
        return [_make_host(out / name, name, alternatives, authority) for name, alternatives in names.items()]
    except OSError as error:
        raise UsageError(f"certificates cannot be written to {out}: {error}") from error


def _check_name(name: str) -> None:
    if name == "ca" or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a host's name", hint="letters, digits, '-' and '.', at most 63; 'ca' is taken"
        )


def _authority(folder: Path) -> _Authority:
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if certificate.exists() and key.exists():
        return _load_authority(certificate, key)
    if certificate.exists() or key.exists():
        raise UsageError(f"{folder} holds half a CA", hint=f"put back the missing file, or remove {folder}")
    made = _new_authority()
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_file(key, _key_pem(made.key), 0o600)
    durable.write_file(certificate, _pem(made.certificate), 0o644)
    return made


def _load_authority(certificate: Path, key: Path) -> _Authority:
    try:
        loaded = x509.load_pem_x509_certificate(_read(certificate))
        private = serialization.load_pem_private_key(_read(key), password=None)
        # Each of these is read only when it is asked for.
        signs = loaded.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        subject, public = loaded.subject.public_bytes(), loaded.public_key()
    except Exception as error:  # cryptography's errors have no common class: ValueError, UnsupportedAlgorithm ...
        said = printable(str(error), 300) or type(error).__name__
        raise UsageError(
            f"the CA in {certificate.parent} cannot be read: {said}", hint=f"put its files back, or remove {key.parent}"
        ) from error
    if not signs or not subject:
        raise UsageError(f"{certificate} is not the certificate of a CA")
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != public:
        raise UsageError(f"{key} is not the key of {certificate}")
    return _Authority(loaded, private)


def _read(path: Path) -> bytes:
    """A file of at most 1 MiB. OSError, ValueError."""
    with path.open("rb") as file:
        data = file.read(FILE_MAX_BYTES + 1)
    if len(data) > FILE_MAX_BYTES:
        raise ValueError(f"{path} is no key and no certificate: it has more than {FILE_MAX_BYTES} bytes")
    return data


def _new_authority() -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    # The name is unique a CA: where two are mixed up, the mismatch shows in the files and in the logs.
    name = _subject(f"remusdb CA {os.urandom(4).hex()}")
    builder = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )
    return _Authority(builder.sign(key, hashes.SHA256()), key)


def _make_host(folder: Path, name: str, names: list[x509.GeneralName], authority: _Authority) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    both_sides = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(_subject(name), issuer.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_sides), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_issuer_key_id(authority), critical=False)
    )
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_file(folder / "ca.pem", _pem(issuer), 0o644)
    durable.write_file(folder / "cert.pem", _pem(builder.sign(authority.key, hashes.SHA256())), 0o644)
    durable.write_file(folder / "key.pem", _key_pem(key), 0o600)
    return folder


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # the other host's clock may be behind
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _issuer_key_id(authority: _Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(name: str, addresses: list[str]) -> list[x509.GeneralName]:
    """The name itself and every address, without repetition."""
    _check_name(name)
    return [_general_name(entry) for entry in dict.fromkeys([name, *addresses])]


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        if not text.isascii() or not re.fullmatch(r"[A-Za-z0-9_*.-]{1,253}", text):
            raise UsageError(f"{text!r} is neither an IP address nor a DNS name") from None
        return x509.DNSName(text)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
