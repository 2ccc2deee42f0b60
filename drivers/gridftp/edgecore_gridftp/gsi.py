"""Prove who we are with a grid proxy, believe only servers of known authorities, and seal a control channel.

GSI is TLS whose records travel as base64 in the FTP commands ADAT and ENC (RFC 2228, GFD.24). Python's ``ssl``
does the TLS. After the handshake the client says with one byte whether it hands over its credential: this
channel never does. The content of files does not come this way: ``globus-url-copy`` carries it, which
checks signing policies, too.
"""

from __future__ import annotations

import base64
import os
import ssl
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define, evolve, field, frozen
from cryptography import x509
from cryptography.x509.oid import NameOID

from edgecore.certificates import Judgement, Stamp, judge, stamp_of
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore_gridftp.text import Reply, trouble

__all__ = ["Credential", "Seal", "name_of"]

_NO_DELEGATION: Final = b"0"
_ENOUGH: Final = 235
_MORE: Final = (334, 335)
_ROUNDS: Final = 32
"""A handshake takes two to four."""
_READ_BYTES: Final = 1024 * 1024
_PASSING: Final = {
    9: "compare the clocks of both machines",
    10: "its operators must renew it, unless this host's clock is wrong",
    11: "compare the clocks of both machines",
    12: "have the lists of revoked certificates here fetched anew (fetch-crl)",
}
"""What is wrong only for now with a server's certificate or the list of revoked ones; see X509_V_ERR in verify(3)."""
_RENEW: Final = "make one there with grid-proxy-init, voms-proxy-init or myproxy-logon"


@frozen(kw_only=True)
class Credential:
    """What proves who we are, and whom to believe."""

    proxy: str
    authorities: str
    subject: str = ""
    """The name that the server's certificate must have; empty: that of the host in the URL."""

    def judged(self) -> Judgement:
        """Say what the proxy's file holds, and what the client would have against it."""
        found = judge(Path(self.proxy))
        if found.trouble:
            return found
        try:
            mode = stat.S_IMODE(os.stat(self.proxy).st_mode)
        except OSError as error:
            return evolve(found, trouble=f"{self.proxy}: {error.strerror}")
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            words = f"{self.proxy} has mode {mode:04o}, and nobody else may read it: chmod 600 {self.proxy}"
            return evolve(found, trouble=words)
        return found

    def check(self) -> Stamp:
        """See that the proxy can be used; return what tells it from the next one in the same file.

        Raises TransferInterrupted: it may be renewed.
        """
        if not self.proxy:
            raise TransferRefused(
                "gsiftp:// needs a grid proxy: name its file in the site's table (proxy = ...)"
            )
        stamp, found = stamp_of(Path(self.proxy)), self.judged()
        if reason := found.reason(time.time_ns() // 1000):
            words = found.trouble or f"{self.proxy}: {reason}"
            raise TransferInterrupted(f"the grid proxy cannot be used: {words}; {_RENEW}")
        return stamp

    def context(self) -> ssl.SSLContext:
        """Return how to speak TLS as this credential. Raises TransferInterrupted."""
        self.check()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = not self.subject
        try:
            revocations = self._has_revocations()
        except OSError as error:
            raise TransferInterrupted(
                f"cannot read the authorities in {self.authorities}: {error.strerror}; install those of your grid, or "
                "name their place (authorities)"
            ) from error
        try:
            context.load_verify_locations(capath=self.authorities)
            context.load_cert_chain(self.proxy, password="")  # or OpenSSL asks at the terminal
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise TransferInterrupted(
                f"cannot use the grid proxy {self.proxy} with the authorities in {self.authorities}: {error}; {_RENEW}"
            ) from error
        if revocations:
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context

    def environment(self) -> dict[str, str]:
        """Return what tells the client of it; nothing else than this proxy is ever taken."""
        return {"X509_USER_PROXY": self.proxy, "X509_CERT_DIR": self.authorities}

    def _has_revocations(self) -> bool:
        """Tell whether there is a list of revoked certificates beside every authority; OpenSSL wants all or none."""
        found = {name for name in os.listdir(self.authorities) if name.endswith((".0", ".r0"))}
        authorities = {name.removesuffix(".0") for name in found if name.endswith(".0")}
        return bool(authorities) and all(f"{name}.r0" in found for name in authorities)


@define(eq=False)
class Seal:
    """Seal what is said to one server, and open what it says."""

    tls: ssl.SSLObject
    came: ssl.MemoryBIO
    goes: ssl.MemoryBIO
    _established: bool = field(default=False, init=False)

    @classmethod
    def made(cls, credential: Credential, host: str) -> Seal:
        """Begin to speak with *host*."""
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = credential.context().wrap_bio(came, goes, server_hostname=host)
        return cls(tls, came, goes)

    def shake_hands(self, ask: Callable[[bytes], Reply], credential: Credential, server: str) -> None:
        """Exchange tokens until the server has seen enough. Raises TransferRefused, TransferInterrupted."""
        asked = f"log in to {server}"
        for _ in range(_ROUNDS):
            token = self._next_token(asked)
            reply = ask(b"ADAT " + base64.b64encode(token))
            if reply.code not in (*_MORE, _ENOUGH):
                raise trouble(asked, reply.words)
            self._take(reply, asked)
            if reply.code == _ENOUGH:
                break
        else:
            raise TransferRefused(f"cannot {asked}: the server asks for more without an end")
        if not self._established:
            raise TransferRefused(
                f"cannot {asked}: the server ended the handshake before it had shown who it is"
            )
        self._see_name(credential, server)

    def _next_token(self, asked: str) -> bytes:
        try:
            if not self._established:
                with suppress(ssl.SSLWantReadError):
                    self.tls.do_handshake()
                    self._established = True
            token = self.goes.read()
            if not token and self._established:
                with suppress(ssl.SSLWantReadError):
                    self.tls.read(_READ_BYTES)  # with TLS 1.3 the server says something first
                self.tls.write(_NO_DELEGATION)
                token = self.goes.read()
        except ssl.SSLCertVerificationError as error:
            words = f"cannot {asked}: its certificate is not believed: {error.verify_message}"
            if advice := _PASSING.get(error.verify_code):
                raise TransferInterrupted(f"{words}; {advice}") from error
            raise TransferRefused(
                f"{words}; compare the authorities, and whether the certificate names this host (if not: subject)"
            ) from error
        except ssl.SSLError as error:
            raise TransferInterrupted(f"cannot {asked}: {error}") from error
        if not token:
            raise TransferInterrupted(
                f"cannot {asked}: the server asks for more, and there is nothing to tell"
            )
        return token

    def _take(self, reply: Reply, asked: str) -> None:
        for line in reply.lines:
            _, found, token = line.partition(b"ADAT=")
            if found:
                try:
                    self.came.write(base64.b64decode(token))
                except ValueError as error:
                    raise TransferInterrupted(f"cannot {asked}: the server says what is no base64") from error

    def _see_name(self, credential: Credential, server: str) -> None:
        certificate = self.tls.getpeercert(binary_form=True)
        assert certificate is not None  # there is no handshake without
        found = name_of(x509.load_der_x509_certificate(certificate).subject)
        if credential.subject and found != credential.subject:
            raise TransferRefused(
                f"{server} is {found}, and not {credential.subject} as the site says (subject)"
            )

    def close(self, line: bytes) -> bytes:
        """Return a sealed command."""
        self.tls.write(line)
        return b"ENC " + base64.b64encode(self.goes.read())

    def open(self, sealed: bytes) -> bytes:
        """Return what stands in a sealed reply. Raises ssl.SSLError."""
        self.came.write(base64.b64decode(sealed))
        content = b""
        with suppress(ssl.SSLWantReadError):
            while more := self.tls.read(_READ_BYTES):
                content += more
                if not (self.came.pending or self.tls.pending()):
                    break  # to ask for more and be refused costs as much as to unseal
        return content


def name_of(name: x509.Name) -> str:
    """Write a name as the grid does: ``/DC=org/CN=Alice``."""
    texts = []
    for attribute in name:
        email = attribute.oid == NameOID.EMAIL_ADDRESS
        key = "emailAddress" if email else attribute.rfc4514_attribute_name
        value = attribute.value
        texts.append(f"/{key}={value if isinstance(value, str) else value.hex()}")
    return "".join(texts)
