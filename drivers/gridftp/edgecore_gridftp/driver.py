"""Answer the hooks of the transfer role for ``gsiftp://`` and ``ftp://``.

Two programs share the work. ``globus-url-copy`` carries content: it knows parallel streams, data channels and
delegation. A control channel of our own, on the same server, does what that client cannot: it lists trees with sizes and
times, makes directories, has checksums computed, and renames.

What the protocol cannot carry is refused before the start: links, and names with a carriage return.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from attrs import define, evolve, field

from edgecore.carrying import Patience, Tally, carry
from edgecore.errors import ConfigurationError, Problem, TransferInterrupted, TransferRefused
from edgecore.hookspecs import Transfer, hookimpl
from edgecore.models import (
    Between,
    Closed,
    Finding,
    ProbeReport,
    SiteContext,
    TransferProfile,
    TransferProgress,
    TransferReport,
)
from edgecore.parts import own_directory
from edgecore.selection import Selection
from edgecore.trees import explained, shown
from edgecore_gridftp.channels import Channels
from edgecore_gridftp.client import PROGRAM, Client
from edgecore_gridftp.control import Server
from edgecore_gridftp.deliver import Delivery
from edgecore_gridftp.examining import findings
from edgecore_gridftp.fetch import Fetching
from edgecore_gridftp.gsi import Credential
from edgecore_gridftp.place import Place, parse_url
from edgecore_gridftp.sources import LocalSource, RemoteSource
from edgecore_gridftp.work import Trip, Ways

__all__ = ["GridFtpTransfer"]

_MEGABYTE = 1_000_000


@define(eq=False, kw_only=True)
class GridFtpTransfer(Transfer):
    """Move files with GridFTP. The fields are the keys of a ``[[transfer]]`` table."""

    proxy: str = ""
    """The file of the grid proxy that says who we are; by default what X509_USER_PROXY in [environment] says.
    It is read anew for each transfer. ``ftp://`` needs none."""
    authorities: str = ""
    """The directory of authorities that are believed; by default what X509_CERT_DIR in [environment] says, else
    /etc/grid-security/certificates."""
    subject: str = ""
    """The name that a server's certificate must have, such as ``/DC=org/CN=dtn``; by default that of the URL's host."""
    answer_s: Annotated[float, Between(0.1, 3600)] = 60.0
    """Seconds that a server may take to accept a connection, and for each answer on it."""
    idle_s: Annotated[float, Between(0.1, 86_400)] = 60.0
    """Close a control channel that no transfer used for so many seconds; until then the next one of any job takes it."""
    no_progress_s: Annotated[float, Between(0.1, 86_400)] = 300.0
    """Give up when no byte moved for so many seconds."""
    checksum: Literal["sha256", "sha512", "sha1", "md5", "adler32", "none"] = "sha256"
    """What both sides compute and compare, or the next one that the server knows. With ``none`` only sizes are
    compared, and a file with the source's size and time of change counts as already right."""
    streams: Annotated[int, Between(1, 4)] = 2
    """How many batches of files move at the same time, each by a process of its own, for all transfers together."""
    parallel: Annotated[int, Between(0, 64)] = 0
    """Data connections for one long file. With 0 the way decides: one where a packet is there and back within 2 ms, as
    within a site, and four on longer ways, where one connection waits too much."""
    parallel_from_mb: Annotated[int, Between(64, 1_000_000)] = 256
    """How long a file must be for that, in megabytes of 1,000,000 bytes."""
    listen: bool = True
    """Whether a fetch of many files, or with parallel connections, may listen for the server's data connections, which
    GridFTP needs for speed. If not, nothing ever listens here, and each small file costs a connection."""
    port_range: str = ""
    """Where it listens, such as ``50000,51000``; by default anywhere."""
    options: tuple[str, ...] = ()
    """Further options for globus-url-copy, such as ``-tcp-bs`` with a size."""
    max_entries: Annotated[int, Between(1, 1_000_000_000)] = 1_000_000
    """How many names a tree may have that is fetched."""

    _site: SiteContext | None = field(init=False, default=None, repr=False)
    _channels: Channels | None = field(init=False, default=None, repr=False)
    _turns: threading.BoundedSemaphore = field(init=False, repr=False)

    @hookimpl
    def open(self, site: SiteContext) -> TransferProfile:
        """Look for the client; no server is asked yet. Raises ConfigurationError for a path that depends on where we were started."""
        self._check_paths()
        self._site = site
        self._channels = Channels(self.idle_s)
        self._turns = threading.BoundedSemaphore(self.streams)
        return TransferProfile(version=self._client(secure=False).program or f"without {PROGRAM}")

    @hookimpl
    def fetch(self, url: str, directory: Path, progress: TransferProgress) -> TransferReport:
        """Bring the file at *url*, or the content of the tree there, into *directory*."""
        place = parse_url(url)

        def work(tally: Tally) -> str:
            with own_directory(directory, make=True) as target:
                source = self._source(self._trip(place, url, tally), place, url)
                Fetching(source, target, shown(directory), source.trip).run()
                return source.trip.verified

        return self._carried(progress, f"from {url} to {shown(directory)}", work)

    @hookimpl
    def deliver(
        self, directory: Path, url: str, progress: TransferProgress, selection: Selection
    ) -> TransferReport:
        """Bring what is selected of *directory* to *url*, making directories."""
        place = parse_url(url)

        def work(tally: Tally) -> str:
            trip = self._trip(place, url, tally)
            with own_directory(directory, make=False) as source:
                Delivery(LocalSource(source, shown(directory), tally, selection), trip).run()
            return trip.verified

        return self._carried(progress, f"from {shown(directory)} to {url}", work)

    @hookimpl
    def copy(self, source: str, target: str, progress: TransferProgress) -> TransferReport:
        """Bring the file or the content of the tree at one URL to another. Both servers must take the same credential."""
        there, here = parse_url(source), parse_url(target)
        if there.scheme != here.scheme:
            raise TransferRefused(f"cannot carry from {source} to {target} directly: their schemes differ")
        if there.holds(here):
            raise TransferRefused(f"{target} lies inside {source}, which is to be copied there")
        beside = there.beside(here)

        def work(tally: Tally) -> str:
            far, near = self._trip(beside, source, tally), self._trip(here, target, tally)
            near.agree_with(far)
            Delivery(self._source(far, beside, source), near).run()
            return near.verified

        return self._carried(progress, f"from {source} to {target}", work)

    @hookimpl
    def probe(self, url: str) -> ProbeReport:
        """Tell whether *url* exists and may be read, moving nothing."""
        try:
            place = parse_url(url)
            with self._pool.channel(self._server(place), Tally()) as control:
                found = control.look(f"find {url}", place.path)
                if found.is_directory:
                    control.do(f"list {url}", b"MLSC " + place.path)
                    return ProbeReport(ok=True, message=f"{url} is a directory that may be read")
                if known := control.algorithms("ADLER32"):  # which opens it
                    first = b"CKSM %s 0 %d %s" % (known[0].encode(), min(1, found.size_bytes), place.path)
                    control.do(f"read {url}", first)
                return ProbeReport(ok=True, message=f"{url} is a file that may be read")
        except (TransferRefused, TransferInterrupted) as error:
            return ProbeReport(ok=False, message=str(error))

    @hookimpl
    def diagnose(self) -> Sequence[Finding]:
        """Look at the client, the proxy and the authorities."""
        credential = self._credential
        return findings(self._client(secure=False), credential if credential.proxy else None)

    @hookimpl
    def close(self) -> Closed:
        """Hang up everywhere."""
        if self._channels is not None:
            self._channels.close()
        return Closed()

    # ------------------------------------------------------------------------------ helpers

    def _check_paths(self) -> None:
        problems = [
            Problem(key, repr(value), "must be an absolute path, or begin with ~/")
            for key, value in (("proxy", self.proxy), ("authorities", self.authorities))
            if value and not os.path.isabs(os.path.expanduser(value))
        ]
        if problems:
            raise ConfigurationError("the transfer driver for gsiftp://", problems)

    @property
    def _opened(self) -> SiteContext:
        if self._site is None:
            raise TransferInterrupted("the driver was not opened; open it first")
        return self._site

    @property
    def _pool(self) -> Channels:
        if self._channels is None:
            raise TransferInterrupted("the driver was not opened; open it first")
        return self._channels

    @property
    def _credential(self) -> Credential:
        environment = self._opened.environment
        return Credential(
            proxy=os.path.expanduser(self.proxy) or environment.get("X509_USER_PROXY", ""),
            authorities=os.path.expanduser(self.authorities)
            or environment.get("X509_CERT_DIR", "/etc/grid-security/certificates"),
            subject=self.subject,
        )

    def _client(self, *, secure: bool) -> Client:
        credential = self._credential
        environment = {
            name: value for name, value in self._opened.environment.items() if not name.startswith("X509_")
        }
        if self.port_range:
            environment["GLOBUS_TCP_PORT_RANGE"] = self.port_range
        if secure:
            environment |= credential.environment()
        return Client(
            environment=environment,
            credential=credential.proxy if secure else "",
            options=self.options,
            turns=self._turns,
        )

    def _server(self, place: Place) -> Server:
        return Server(
            place=place,
            credential=self._credential if place.secure else None,
            answer_s=min(self.answer_s, self.no_progress_s),
        )

    def _trip(self, place: Place, url: str, tally: Tally) -> Trip:
        ways = Ways(
            checksum="" if self.checksum == "none" else self.checksum.upper(),
            streams=self.streams,
            parallel=self.parallel,
            parallel_from_bytes=self.parallel_from_mb * _MEGABYTE,
            listen=self.listen,
        )
        client = self._client(secure=place.secure)
        return Trip(self._server(place), self._pool, client, place.path, url, ways, tally)

    def _source(self, trip: Trip, place: Place, url: str) -> RemoteSource:
        """Look what *url* is; for a file, the trip goes to the directory that holds it."""
        with trip.control() as control:
            root = control.look(f"find {url}", place.path)
        if root.is_directory:
            return RemoteSource(trip, root, b"", self.max_entries)
        if not root.is_file:
            raise TransferRefused(f"{url} is neither a file nor a directory")
        above, _, name = place.path.rpartition(b"/")
        return RemoteSource(
            evolve(trip, base=above or b"/", peer_name=url.rpartition("/")[0]), root, name, self.max_entries
        )

    def _carried(
        self, progress: TransferProgress, between: str, work: Callable[[Tally], str]
    ) -> TransferReport:
        """Do *work*, watched."""
        tally, verified = Tally(), list[str]()

        def explained_work() -> None:
            with explained(f"carry files {between}"):
                verified.append(work(tally))

        patience = Patience(self.no_progress_s, between, "is the server, or the network to it, hanging?")
        carry(explained_work, tally, progress, patience)
        return tally.report(verified[0])
