"""Be the server's side of a control channel with GSI: prove who the host is, and believe every client.

It is TLS whose records travel in ADAT, ENC and their answers (RFC 2228, GFD.24). A client says with one byte whether it
delegates its credential; one that does is asked for it as Globus asks, and what it sends is thrown away.
"""

from __future__ import annotations

import base64
import ssl
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from attrs import define, field
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from testbed.grid import Grid, Owner

__all__ = ["Acceptor", "host_context", "owner_context"]

_READ_BYTES: Final = 1024 * 1024
_DELEGATES: Final = b"D"


def host_context(grid: Grid, directory: Path) -> ssl.SSLContext:
    """Return how a host of the grid speaks; *directory* gets its certificate and its key."""
    return owner_context(grid.host(), directory)


def owner_context(owner: Owner, directory: Path) -> ssl.SSLContext:
    """Return how one host speaks."""
    certificate, key = directory / "host.pem", directory / "host.key"
    owner.write(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@define(eq=False)
class Acceptor:
    """One channel."""

    context: ssl.SSLContext
    _came: ssl.MemoryBIO = field(factory=ssl.MemoryBIO, init=False)
    _goes: ssl.MemoryBIO = field(factory=ssl.MemoryBIO, init=False)
    _tls: ssl.SSLObject = field(init=False)
    _shaken: bool = field(default=False, init=False)
    _asked: bool = field(default=False, init=False)
    ready: bool = field(default=False, init=False)
    """Whether all that follows is sealed."""

    def __attrs_post_init__(self) -> None:
        """Wait for the client's first word."""
        self._tls = self.context.wrap_bio(self._came, self._goes, server_side=True)

    def shake_hands(self, token: bytes) -> bytes:
        """Take what stands in an ADAT, and return the answer to it."""
        self._came.write(base64.b64decode(token))
        with suppress(ssl.SSLWantReadError):
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
            said = self._tls.read(_READ_BYTES)
            if said == _DELEGATES and not self._asked:
                self._tls.write(_request())
                self._asked = True
            else:
                self.ready = True
        answer = base64.b64encode(self._goes.read())
        if not self.ready:
            return b"335 ADAT=" + answer
        return b"235 ADAT=" + answer if answer else b"235 welcome"

    def open(self, sealed: bytes) -> bytes:
        """Return the command that stands in an ENC."""
        self._came.write(base64.b64decode(sealed))
        return self._tls.read(_READ_BYTES)

    def close(self, reply: bytes) -> bytes:
        """Return a reply, sealed."""
        self._tls.write(reply)
        return b"633 " + base64.b64encode(self._goes.read())


@cache
def _request() -> bytes:
    """Return a request for a proxy, as a server makes one that wants a client's credential."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)
