"""Make an authority and certificates for servers and clients that live as long as a test wants."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import trustme
from attrs import frozen

__all__ = ["Authority", "Credential"]

_NAMES: Final = ("localhost", "127.0.0.1")


@frozen
class Credential:
    """A certificate and its key, each in a file."""

    certificate: Path
    key: Path


class Authority:
    """Sign certificates, and keep them in a directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._authority = trustme.CA(organization_name="edgecore's tests")
        self.file = directory / "authority.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def files(self) -> Mapping[str, bytes]:
        """Return certificate and key, as who signs by hand has them: name of the file -> content."""
        return {
            "authority.pem": self._authority.cert_pem.bytes(),
            "authority.key": self._authority.private_key_pem.bytes(),
        }

    def server(self, file: str = "server", *, names: tuple[str, ...] = _NAMES) -> Credential:
        """Sign for a server under these host names."""
        return self._write(file, self._authority.issue_cert(*names, common_name=names[0]))

    def client(
        self,
        name: str,
        file: str = "",
        *,
        begins: timedelta = -timedelta(days=1),
        lasts: timedelta = timedelta(days=90),
    ) -> Credential:
        """Sign for a client with this common name; valid from now and *begins*, until now and *lasts*."""
        now = datetime.now(UTC)
        leaf = self._authority.issue_cert(
            f"{name}.invalid", common_name=name, not_before=now + begins, not_after=now + lasts
        )
        return self._write(file or name, leaf)

    def _write(self, file: str, leaf: trustme.LeafCert) -> Credential:
        credential = Credential(self._directory / f"{file}.pem", self._directory / f"{file}.key")
        # Each complete under another name first: a reader never sees half of one.
        for path, content in (
            (credential.key, leaf.private_key_pem.bytes()),
            (credential.certificate, b"".join(each.bytes() for each in leaf.cert_chain_pems)),
        ):
            fresh = path.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_bytes(content)
            fresh.rename(path)
        return credential
