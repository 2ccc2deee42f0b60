"""Say where RabbitMQ is and who we are there: the URL, certificates and passwords, and what is wrong with them.

Files are read at every connection, so that a certificate that was renewed on disk is used without a restart. A
password stands in a file or in the environment, never in the configuration, and so in no log.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from attrs import define, field, frozen
from cryptography.x509 import Certificate, load_pem_x509_certificates
from cryptography.x509.oid import NameOID

from edgecore.clock import Clock
from edgecore.errors import BrokerUnavailable, ConfigurationError, Problem
from edgecore.models import Finding, Level

__all__ = ["Access", "Reminder", "misconfigured"]

log = logging.getLogger(__name__)

_PORTS: Final = {"amqp": 5672, "amqps": 5671}
_PASSWORD: Final = "EDGECORE_RABBITMQ_PASSWORD"  # noqa: S105 - names where it is
_LARGEST_FILE: Final = 1024 * 1024
_DAY_S: Final = 86_400.0


def misconfigured(path: str, found: str, allowed: str) -> ConfigurationError:
    """Make the error for one thing that the operator must correct."""
    return ConfigurationError("messaging", [Problem(path, found, allowed)])


@frozen(kw_only=True)
class Access:
    """What the configuration says about the way to the brokers."""

    url: str
    hosts: Sequence[str]
    certificate: str | None
    key: str | None
    authority: str | None
    verify_host_name: bool
    user: str | None
    password_file: str | None
    warn_days: float
    _clock: Clock = field(factory=Clock)

    def check(self) -> None:
        """Raise ConfigurationError for what no renewal and no waiting mends."""
        parts = self._parts()
        if parts.password is not None:
            raise misconfigured(
                "url",
                "a password",
                f"put it into a file of which only this account can read, and name that in password_file, or into the "
                f"environment as {_PASSWORD}",
            )
        if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
            raise misconfigured("url", repr(self.url), "must be amqps://host:port/virtual-host, or amqp://")
        self.addresses()
        for key, path in self._files():
            if not Path(path).is_absolute():
                raise misconfigured(key, repr(path), "must be an absolute path")
            try:
                _read(path)
            except OSError as error:
                raise misconfigured(
                    key, f"{path}: {error.strerror}", "must be a file that we can read"
                ) from error
        if parts.scheme == "amqp":
            self._check_plain()
        elif not self.certificate and not self.user_name:
            raise misconfigured("certificate", "none", "name our certificate, or a user with a password")

    def _check_plain(self) -> None:
        for key in ("certificate", "key", "authority"):
            if getattr(self, key):
                raise misconfigured(key, "a file, with amqp://", "is used with amqps:// only: write that")
        if not self.user_name:
            raise misconfigured(
                "user", "none", "name the broker's user; its password comes from password_file"
            )

    def addresses(self) -> Sequence[tuple[str, int]]:
        """Return host and port of every broker, in the order in which they are tried."""
        parts = self._parts()
        return [_address(each, parts.scheme) for each in (parts.netloc.rpartition("@")[2], *self.hosts)]

    @property
    def virtual_host(self) -> str:
        """The broker's name space; ``/`` where the URL names none."""
        return unquote(self._parts().path.removeprefix("/")) or "/"

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self._parts().scheme == "amqps"

    @property
    def user_name(self) -> str:
        """The user who gives a password; empty where the certificate speaks for us."""
        named = self._parts().username
        if named:
            return unquote(named)
        wanted = self.password_file or os.environ.get(_PASSWORD)
        return (self.user or "") if wanted or not self.certificate else ""

    def password(self) -> str:
        """Return the password. Raises BrokerUnavailable when it cannot be read just now."""
        if self.password_file is None:
            found = os.environ.get(_PASSWORD)
            if found is None:
                words = f"there is no password for {self.user_name}: set password_file, or {_PASSWORD}"
                raise BrokerUnavailable(words)
            return found
        try:
            return _read(self.password_file).decode("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BrokerUnavailable(
                f"the password file {self.password_file} cannot be read: {error}"
            ) from error

    def identity(self) -> str:
        """Return the name that the broker knows us by, as far as we can tell; empty where we cannot."""
        if self.user is not None:
            return self.user
        if self.user_name:
            return self.user_name
        certificate = self._load_certificate()
        return "" if certificate is None else _common_name(certificate)

    def tls(self) -> ssl.SSLContext | None:
        """Read the files and return what a TLS connection needs.

        Raises BrokerUnavailable: a certificate that is bad now is good when somebody has renewed it.
        """
        if not self.secure:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if self.authority else ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.verify_host_name
        what = f"authority {self.authority}"
        try:
            if self.authority:
                context.load_verify_locations(cafile=self.authority)
            if self.certificate:
                what = f"certificate {self.certificate} with the key {self.key or self.certificate}"
                context.load_cert_chain(self.certificate, self.key, _no_passphrase)
        except (OSError, ValueError) as error:
            raise BrokerUnavailable(f"the {what} cannot be used: {_why(error)}") from error
        for finding in self._lifetime():
            if finding.level is Level.FAILURE:
                raise BrokerUnavailable(f"{finding.message}; {finding.remedy}")
        return context

    def stamp(self) -> tuple[int, ...]:
        """Return what changes when a file is replaced."""
        found = []
        for _, path in self._files():
            try:
                status = os.stat(path)
            except OSError:
                continue
            found += [status.st_mtime_ns, status.st_ino, status.st_size]
        return tuple(found)

    def is_usable(self) -> bool:
        """Tell whether a connection could be made with the files as they are now."""
        try:
            self.tls()
        except BrokerUnavailable:
            return False
        return True

    # ------------------------------------------------------------------------------ findings

    def findings(self) -> Iterator[Finding]:
        """Look at the files that say who we are."""
        yield from self._secret("key", self.key or self.certificate)
        yield from self._secret("password file", self.password_file)
        if not self.secure:
            words = "amqp:// carries passwords and messages in the clear"
            yield Finding(
                "encryption", Level.WARNING, words, "write amqps://, unless the broker is on this host"
            )
        elif not self.verify_host_name:
            words = (
                "verify_host_name = false: any host with a certificate of our authority passes for the broker"
            )
            yield Finding(
                "encryption",
                Level.WARNING,
                words,
                "remove it, and give the broker a certificate for its name",
            )
        try:
            self.tls()
        except BrokerUnavailable as error:
            yield Finding(
                "certificate",
                Level.FAILURE,
                str(error),
                "correct the files; they are read at every connection",
            )
            return
        yield from self._lifetime()

    def _secret(self, subject: str, path: str | None) -> Iterator[Finding]:
        if not path:
            return
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            yield Finding(subject, Level.FAILURE, f"{path}: {error.strerror}", "put it there")
            return
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            words = f"{path} has mode {stat.S_IMODE(mode):04o}: others than this account can read it"
            yield Finding(
                subject, Level.WARNING, words, f"chmod 600 {path}, and have a new one made if others read it"
            )
        else:
            yield Finding(subject, Level.OK, f"{path} is this account's alone")

    def _lifetime(self) -> Iterator[Finding]:
        certificate = self._load_certificate()
        if certificate is None:
            return
        now = datetime.fromtimestamp(self._clock.now() / 1e6, UTC)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        words = f"{self.certificate}, for {_common_name(certificate) or 'nobody by name'},"
        renew = "put a new one, with its key, in the same place: it is used without a restart"
        if ends <= now:
            yield Finding(
                "certificate", Level.FAILURE, f"{words} expired on {ends:%Y-%m-%d %H:%M} UTC", renew
            )
        elif begins > now:
            words = f"{words} is not valid before {begins:%Y-%m-%d %H:%M} UTC"
            yield Finding("certificate", Level.FAILURE, words, "wait, or see this host's clock")
        else:
            days = (ends - now) / timedelta(days=1)
            near = days <= self.warn_days
            words = f"{words} expires in {days:.0f} days, on {ends:%Y-%m-%d %H:%M} UTC"
            yield Finding("certificate", Level.WARNING if near else Level.OK, words, renew if near else "")

    def expiry_warning(self) -> str:
        """Say that the certificate expires soon, or has; empty while there is time."""
        found = (each for each in self._lifetime() if each.level is not Level.OK)
        return next((f"{each.message}: {each.remedy}" for each in found), "")

    def _load_certificate(self) -> Certificate | None:
        """Read our certificate; None without one, or one that cannot be read (`tls` says so)."""
        if not self.secure or not self.certificate:
            return None
        try:
            return load_pem_x509_certificates(_read(self.certificate))[0]
        except (OSError, ValueError):
            return None

    def _files(self) -> Iterator[tuple[str, str]]:
        for key in ("certificate", "key", "authority", "password_file"):
            if path := getattr(self, key):
                yield key, path

    def _parts(self) -> SplitResult:
        try:
            return urlsplit(self.url)
        except ValueError as error:
            raise misconfigured(
                "url", str(error), "must be amqps://host:port/virtual-host, or amqp://"
            ) from error


@define(eq=False)
class Reminder:
    """Say in the log, once a day, that the certificate expires soon."""

    access: Access
    _clock: Clock = field(factory=Clock)
    _said: float | None = field(init=False, default=None)

    def look(self) -> None:
        """Look at the certificate, unless that was said today."""
        now = self._clock.monotonic()
        if self._said is not None and now - self._said < _DAY_S:
            return
        if words := self.access.expiry_warning():
            self._said = now
            log.warning("%s", words)


def _address(text: str, scheme: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port or _PORTS[scheme]
    except (ValueError, KeyError):
        parts, port = urlsplit("//"), 0
    if not parts.hostname or parts.path or parts.username is not None:
        raise misconfigured("hosts", repr(text.rpartition("@")[2]), "must be host or host:port")
    return parts.hostname, port


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_LARGEST_FILE)


def _no_passphrase() -> str:
    raise ValueError("the key wants a passphrase, and nobody is there to give it: use one without")


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    if isinstance(error, ssl.SSLError):
        return f"it is no PEM file, or damaged ({error.reason or error})"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _common_name(certificate: Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[-1].value) if found else ""
