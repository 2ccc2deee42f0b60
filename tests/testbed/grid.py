"""Make what a grid has: an authority with its signing policy, host and user certificates, proxies good and expired.

Everything is made by hand (RFC 3820 for proxies), so that no program of a grid is needed besides ``openssl``, which
computes the name under which an authority is found.
"""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

__all__ = ["Grid", "Owner"]

_DAY: Final = timedelta(days=1)
_LONG: Final = 90 * _DAY
_PROXY_INFO: Final = ObjectIdentifier("1.3.6.1.5.5.7.1.14")
_IMPERSONATION: Final = bytes.fromhex("300c300a06082b06010505071501")
"""ProxyCertInfo of a proxy that may do all that its owner may (id-ppl-inheritAll)."""
_POLICY: Final = """\
access_id_CA      X509         '{authority}'
pos_rights        globus       CA:sign
cond_subjects     globus       '"/DC=org/DC=edgecore-tests/*"'
"""


@frozen
class Owner:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def name(self) -> str:
        """Its subject, as the grid writes it."""
        return _written(self.certificate.subject)

    def write(self, certificate: Path, key: Path) -> None:
        """Write both; nobody else may read the key."""
        certificate.write_bytes(_pem(self.certificate))
        key.touch(mode=0o600)
        key.write_bytes(_key_pem(self.key))

    def write_proxy(self, path: Path, *, lasts: timedelta = _DAY) -> Path:
        """Write a proxy that ends after *lasts*, which may be negative."""
        key, now = _key(), datetime.now(UTC)
        serial = x509.random_serial_number()
        subject = x509.Name(
            [*self.certificate.subject, x509.NameAttribute(NameOID.COMMON_NAME, str(serial % 10**9))]
        )
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - _DAY)
            .not_valid_after(now + lasts)
            .add_extension(x509.UnrecognizedExtension(_PROXY_INFO, _IMPERSONATION), critical=True)
            .add_extension(_usage(), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(_pem(made) + _key_pem(key) + _pem(self.certificate))
        return fresh.replace(path)


class Grid:
    """One authority, and the directory in which it is believed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authorities = directory / "certificates"
        self.authorities.mkdir(parents=True)
        self._key = _key()
        name = _name(f"Authority of {directory.name}")
        self._certificate = (
            _builder(name, name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._install()

    def _install(self) -> None:
        file = self.directory / "authority.pem"
        file.write_bytes(_pem(self._certificate))
        asked = ["openssl", "x509", "-in", str(file), "-noout", "-subject_hash"]
        found = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        (self.authorities / f"{found}.0").write_bytes(_pem(self._certificate))
        policy = _POLICY.format(authority=_written(self._certificate.subject))
        (self.authorities / f"{found}.signing_policy").write_text(policy)

    def revoke(self, *owners: Owner, lasts: timedelta = _DAY) -> None:
        """Install a list of those whose certificates are revoked, which is good for so long and may have expired."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - 2 * _DAY)
            .next_update(now + lasts)
        )
        for owner in owners:
            revoked = x509.RevokedCertificateBuilder().serial_number(owner.certificate.serial_number)
            builder = builder.add_revoked_certificate(revoked.revocation_date(now - _DAY).build())
        made = builder.sign(self._key, hashes.SHA256())
        [authority] = self.authorities.glob("*.0")
        authority.with_suffix(".r0").write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def host(
        self,
        names: Sequence[str] = ("localhost",),
        addresses: Sequence[str] = ("127.0.0.1",),
        lasts: timedelta = _LONG,
    ) -> Owner:
        """Sign for a host."""
        others = (
            [x509.DNSName(name) for name in names],
            [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses],
        )
        return self._signed(names[0], x509.SubjectAlternativeName([*others[0], *others[1]]), lasts)

    def user(self, name: str) -> Owner:
        """Sign for a person or a service."""
        return self._signed(name, None)

    def _signed(
        self, name: str, others: x509.SubjectAlternativeName | None, lasts: timedelta = _LONG
    ) -> Owner:
        key = _key()
        builder = (
            _builder(_name(name), self._certificate.subject, key, lasts)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(), critical=True)
        )
        if others is not None:
            builder = builder.add_extension(others, critical=False)
        return Owner(builder.sign(self._key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPrivateKey, lasts: timedelta = _LONG
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * _DAY)
        .not_valid_after(now + lasts)
    )


def _name(common: str) -> x509.Name:
    parts = [(NameOID.DOMAIN_COMPONENT, "org"), (NameOID.DOMAIN_COMPONENT, "edgecore-tests")]
    return x509.Name(
        [x509.NameAttribute(oid, value) for oid, value in [*parts, (NameOID.COMMON_NAME, common)]]
    )


def _written(name: x509.Name) -> str:
    return "".join(f"/{each.rfc4514_attribute_name}={each.value!s}" for each in name)


def _usage(*, signs: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_encipherment=not signs, data_encipherment=False, content_commitment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
