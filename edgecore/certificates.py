"""Judge a credential by its files: whether it can be used, why not, and until when.

A credential is a certificate with its private key, or an X.509 proxy, which is a short-lived certificate, its key and
the certificates that vouch for it in one file. It lives as long as the certificate in its file that ends first. Being
alive is not enough: the file must be readable, the key must be there, be that of the certificate and be nobody
else's to read. cryptography is imported only where something is judged.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from edgecore.clock import microseconds

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["Judgement", "Stamp", "judge", "stamp_of", "utc"]

Stamp = tuple[tuple[int, ...], ...]
"""What changes when a file is replaced, written or shut to somebody."""

_LARGEST_FILE: Final = 1024 * 1024
_KEY: Final = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)
_PROXY_EXTENSIONS: Final = (
    bytes.fromhex("06082b0601050507010e"),
    bytes.fromhex("060a2b060104019b5001815e"),
)
"""Of RFC 3820 (1.3.6.1.5.5.7.1.14), and of the draft before it (1.3.6.1.4.1.3536.1.222), as they stand in a certificate: a
parser refuses certificates for extensions that everybody else puts up with."""
_OLD_PROXIES: Final = frozenset({"proxy", "limited proxy"})
"""Common names of proxies that are older than both."""


@frozen(kw_only=True)
class Judgement:
    """What the files of a credential say."""

    trouble: str = ""
    """What is wrong with them whatever the time, and what to do; empty where only time limits the credential."""
    subject: str = ""
    """Whom it is for."""
    begins: int = 0
    """Microseconds UTC, like `expires`; 0 where there is no certificate."""
    expires: int = 0
    """When the first of its certificates ends."""
    is_proxy: bool = False

    def reason(self, now: int) -> str:
        """Say why it cannot be used at a time (microseconds UTC); empty where it can."""
        if self.trouble:
            return self.trouble
        if now >= self.expires:
            return f"it expired at {utc(self.expires)}"
        if now < self.begins:
            return f"it is not valid before {utc(self.begins)}: wait, or see this host's clock"
        return ""


class _Unusable(Exception):
    """Something is wrong with the files, in words for people."""


_sound: Final[dict[tuple[Path, Path | None], tuple[Stamp, Judgement]]] = {}
"""What was found of files that can be used, with their stamps: to read a key takes 50 ms, since its primes are tested."""


def judge(file: Path, key: Path | None = None) -> Judgement:
    """Say what a credential is worth, whose key stands in *file* too where *key* is None. Raises ImportError without cryptography.

    Files that could be used are read again once they have changed; others each time, since the host may have been to blame.
    """
    stamp = stamp_of(file, key)
    known = _sound.get((file, key))
    if known is not None and known[0] == stamp:
        return known[1]
    found = _read_credential(file, key)
    if not found.trouble:
        _sound[file, key] = stamp, found
    return found


def _read_credential(file: Path, key: Path | None) -> Judgement:
    from cryptography.x509 import load_pem_x509_certificates

    found = Judgement()
    try:
        content, status = _read(file)
        try:
            chain = load_pem_x509_certificates(content)
        except ValueError as error:
            raise _Unusable(
                f"{file} holds no certificate in PEM that can be read: put a whole one there"
            ) from error
        found = _described(chain)
        if found.is_proxy:
            _check_proxy(file, status, chain)
        elif key is not None:
            content, status = _read(key)
        _check_key(key or file, content, status, chain[0])
    except _Unusable as error:
        return evolve(found, trouble=str(error))
    except Exception as error:  # parts of a certificate are read when they are asked for: any may be damaged
        words = f"{file} holds a certificate that is damaged: put a whole one there"
        return evolve(found, trouble=f"{words} ({_printable(str(error))[:200]})")
    return found


def _described(chain: Sequence[Certificate]) -> Judgement:
    return Judgement(
        subject=_printable(chain[0].subject.rfc4514_string()),
        begins=max(microseconds(each.not_valid_before_utc) for each in chain),
        expires=min(microseconds(each.not_valid_after_utc) for each in chain),
        is_proxy=_is_proxy(chain[0]),
    )


def stamp_of(file: Path, key: Path | None = None) -> Stamp:
    """Return what differs once `judge` might answer otherwise; costs a look or two."""
    found: list[tuple[int, ...]] = []
    for path in (file, key):
        if path is not None:
            try:
                status = os.stat(path)
            except OSError as error:
                found.append((error.errno or 0,))
            else:
                found.append((status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size))
    return tuple(found)


def utc(time_us: int) -> str:
    """Write a time for people."""
    return f"{datetime.fromtimestamp(time_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hold us up
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _Unusable(f"{path} is no regular file: put the credential there")
            return os.read(descriptor, _LARGEST_FILE), status
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _Unusable(f"{path}: {error.strerror}: put it there, and let this account read it") from error


def _check_proxy(path: Path, status: os.stat_result, chain: Sequence[Certificate]) -> None:
    """See what every grid library asks of a proxy's file, and that it is whole."""
    if status.st_uid != os.geteuid():
        raise _Unusable(f"{path} belongs to another account than this service's: a proxy must be its own")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _Unusable(_open_to_others(path, status))
    for each, issuer in itertools.pairwise(chain):
        if _is_proxy(each) and each.issuer != issuer.subject:
            raise _Unusable(f"{path} does not hold its certificates in order: have a new proxy made")
    if _is_proxy(chain[-1]):
        raise _Unusable(
            f"{path} breaks off before the certificate that the proxy was made from: put a whole one there"
        )


def _check_key(path: Path, content: bytes, status: os.stat_result, certificate: Certificate) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    found = _KEY.search(content)
    if found is None:
        raise _Unusable(f"{path} holds no private key in PEM: name the file that does (key)")
    if status.st_mode & stat.S_IRWXO:
        raise _Unusable(_open_to_others(path, status))
    try:
        key = load_pem_private_key(found[0], None)
        own = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        certified = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except TypeError as error:
        raise _Unusable(f"the key in {path} wants a passphrase, and nobody is there to give it") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _Unusable(f"the key in {path} cannot be read: put a whole one there ({error})") from error
    if own != certified:
        raise _Unusable(
            f"the key in {path} is not that of the certificate: put both there that belong together"
        )


def _open_to_others(path: Path, status: os.stat_result) -> str:
    mode = stat.S_IMODE(status.st_mode)
    return f"{path} has mode {mode:04o}, so that others can use the key: chmod 600 {path}, and have a new one made"


def _is_proxy(certificate: Certificate) -> bool:
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if names and names[-1].value in _OLD_PROXIES:
        return True
    content = certificate.public_bytes(Encoding.DER)
    return any(each in content for each in _PROXY_EXTENSIONS)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
