# SPDX-License-Identifier: Apache-2.0
"""`remusdb certs`: what is written, what is reused, what is never overwritten."""

from __future__ import annotations

import datetime as dt
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from remusdb.errors import UsageError
from remusdb.transport.certs import make_ca_and_hosts


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_one_folder_a_host_signed_by_one_ca(tmp_path: Path) -> None:
    made = make_ca_and_hosts(tmp_path, {"alpha": ["192.0.2.1", "alpha.example"], "beta": ["2001:db8::1"]})
    assert made == [tmp_path / "alpha", tmp_path / "beta"]
    authority = certificate(tmp_path / "ca/ca.pem")
    for host in made:
        cert = certificate(host / "cert.pem")
        cert.verify_directly_issued_by(authority)
        assert (host / "ca.pem").read_bytes() == (tmp_path / "ca/ca.pem").read_bytes()
        key = load_pem_private_key((host / "key.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
        assert key.public_key() == cert.public_key()


def test_what_a_certificate_says(tmp_path: Path) -> None:
    make_ca_and_hosts(tmp_path, {"alpha": ["192.0.2.1", "alpha.example", "alpha", "2001:db8::1"]})
    cert = certificate(tmp_path / "alpha/cert.pem")
    assert cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "alpha"
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["alpha", "alpha.example"]
    addresses = names.get_values_for_type(x509.IPAddress)
    assert addresses == [ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")]
    usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    left = cert.not_valid_after_utc - dt.datetime.now(dt.UTC)
    assert dt.timedelta(days=3649) < left <= dt.timedelta(days=3650)


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    make_ca_and_hosts(tmp_path, {"alpha": []})
    for key in (tmp_path / "ca/ca.key", tmp_path / "alpha/key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "alpha").iterdir()) == ["ca.pem", "cert.pem", "key.pem"]


def test_a_host_is_added_under_the_same_ca(tmp_path: Path) -> None:
    make_ca_and_hosts(tmp_path, {"alpha": []})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    make_ca_and_hosts(tmp_path, {"gamma": ["192.0.2.3"]})
    assert {path: path.read_bytes() for path in before} == before
    certificate(tmp_path / "gamma/cert.pem").verify_directly_issued_by(certificate(tmp_path / "ca/ca.pem"))


def test_a_host_key_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    make_ca_and_hosts(tmp_path, {"alpha": []})
    old = (tmp_path / "alpha/key.pem").read_bytes()
    with pytest.raises(UsageError, match=r"alpha/key\.pem exists already"):
        make_ca_and_hosts(tmp_path, {"new": [], "alpha": []})
    assert (tmp_path / "alpha/key.pem").read_bytes() == old
    assert not (tmp_path / "new").exists()
    make_ca_and_hosts(tmp_path, {"alpha": []}, overwrite=True)
    assert (tmp_path / "alpha/key.pem").read_bytes() != old


def test_a_run_that_was_cut_short_can_be_repeated(tmp_path: Path) -> None:
    make_ca_and_hosts(tmp_path, {"alpha": []})
    (tmp_path / "alpha/key.pem").unlink()  # written last
    make_ca_and_hosts(tmp_path, {"alpha": []})
    assert (tmp_path / "alpha/key.pem").exists()


@pytest.mark.parametrize("name", ["", "ca", "a/b", "..", "-x", "x.", "a b", "x" * 64, "ä"])
def test_bad_host_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a host's name"):
        make_ca_and_hosts(tmp_path, {name: []})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["", "a b", "host/24", "ä.example"])
def test_bad_addresses_leave_nothing_behind(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="neither an IP address nor a DNS name"):
        make_ca_and_hosts(tmp_path, {"alpha": ["192.0.2.1", address]})
    assert not list(tmp_path.iterdir())


def test_a_broken_ca_is_named(tmp_path: Path) -> None:
    make_ca_and_hosts(tmp_path, {"alpha": []})
    other = tmp_path / "other"
    make_ca_and_hosts(other, {"alpha": []})
    (tmp_path / "ca/ca.key").write_bytes((other / "ca/ca.key").read_bytes())
    with pytest.raises(UsageError, match="is not the key of"):
        make_ca_and_hosts(tmp_path, {"beta": []})
    (tmp_path / "ca/ca.key").write_text("rubbish")
    with pytest.raises(UsageError, match="cannot be read"):
        make_ca_and_hosts(tmp_path, {"beta": []})
    (tmp_path / "ca/ca.key").unlink()
    with pytest.raises(UsageError, match="holds half a CA"):
        make_ca_and_hosts(tmp_path, {"beta": []})
