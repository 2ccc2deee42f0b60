"""Make X.509 proxies and certificates that begin and end when a test wants, in a millisecond: for who only reads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID, ObjectIdentifier

__all__ = ["Holder", "Span", "place_file", "proxy_pem", "write_proxy"]

_PROXY_INFO: Final = ObjectIdentifier("1.3.6.1.5.5.7.1.14")
_IMPERSONATION: Final = bytes.fromhex("300c300a06082b06010505071501")

Span = tuple[timedelta, timedelta]
"""From when until when, counted from now."""
_LONG: Final[Span] = (-timedelta(days=1), timedelta(days=90))


@frozen
class Holder:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def made(
        cls, names: Sequence[str], span: Span = _LONG, issuer: Holder | None = None, proxy: bool = False
    ) -> Holder:
        """Make one for the common *names*, signed by *issuer* or itself."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + span[0])
            .not_valid_after(now + span[1])
        )
        if proxy:
            extension = x509.UnrecognizedExtension(_PROXY_INFO, _IMPERSONATION)
            builder = builder.add_extension(extension, critical=True)
        return cls(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self, passphrase: str = "") -> bytes:
        """Return the key, encrypted where there is a passphrase."""
        how: KeySerializationEncryption = NoEncryption()
        if passphrase:
            how = BestAvailableEncryption(passphrase.encode())
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def proxy_pem(lasts_s: float = 3600, *, begins_s: float = -60, owner: Span = _LONG) -> bytes:
    """Return a proxy of Alice with its key and her certificate, which itself is valid for the span *owner*.

    Certificates count whole seconds: it ends up to a second earlier.
    """
    alice = Holder.made(["Alice"], owner)
    span = (timedelta(seconds=begins_s), timedelta(seconds=lasts_s))
    made = Holder.made(["Alice", "4711"], span, alice, proxy=True)
    return made.pem + made.key_pem() + alice.pem


def place_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """Put a file in its place as a whole."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    fresh.chmod(mode)
    return fresh.replace(path)


def write_proxy(path: Path, lasts_s: float = 3600) -> Path:
    """Put a proxy in its place."""
    return place_file(path, proxy_pem(lasts_s))
