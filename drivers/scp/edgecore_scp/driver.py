"""Answer the hooks of the transfer role for ``scp://`` and ``sftp://``, which are the same here.

The protocol is SFTP either way, as with today's ``scp``. One connection per host serves all jobs and threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import paramiko
from attrs import define, field

from edgecore.carrying import Patience, Tally, carry
from edgecore.errors import TransferInterrupted, TransferRefused
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
from edgecore.remote import plan_remote_file
from edgecore.selection import Selection
from edgecore.trees import Plan, explained, shown
from edgecore_scp import wire
from edgecore_scp.bulk import Bulk
from edgecore_scp.connection import Connection, Pool
from edgecore_scp.deliver import Delivery
from edgecore_scp.examining import findings
from edgecore_scp.fetch import Fetching
from edgecore_scp.hosts import Login
from edgecore_scp.listing import file_numbers, plan_remote_tree
from edgecore_scp.place import Place, parse_url
from edgecore_scp.session import Session, failing
from edgecore_scp.wire import Attributes, Kind
from edgecore_scp.work import Trip, Ways

__all__ = ["ScpTransfer"]

_MEBIBYTE = 1024 * 1024


@define(eq=False, kw_only=True)
class ScpTransfer(Transfer):
    """Move files over SSH. The fields are the keys of a ``[[transfer]]`` table."""

    user: str = ""
    """Log in under this name where the URL names nobody; by default as ssh_config says, else our own name."""
    key_file: str = ""
    """The private key, perhaps with a certificate ``-cert.pub`` beside it; by default those of ssh_config or ~/.ssh."""
    known_hosts: str = ""
    """Where host keys are looked up, besides /etc/ssh/ssh_known_hosts; by default as ssh_config says."""
    ssh_config: str = "~/.ssh/config"
    """OpenSSH's configuration, of which Host, HostName, HostKeyAlias, IdentityFile, Port, ProxyJump, User and
    UserKnownHostsFile are heeded; ``none`` for none."""
    agent: bool = True
    """Whether keys of an agent (SSH_AUTH_SOCK) are tried, too."""
    connect_s: Annotated[float, Between(0.1, 3600)] = 30.0
    """Seconds that a connection, and each step of a log-in, may take."""
    keepalive_s: Annotated[float, Between(1, 3600)] = 30.0
    """Seconds between signs of life on a connection, so that no firewall forgets it."""
    idle_s: Annotated[float, Between(0.1, 86_400)] = 60.0
    """Close a connection that nobody used for so many seconds."""
    no_progress_s: Annotated[float, Between(0.1, 86_400)] = 300.0
    """Give up when no byte moved for so many seconds."""
    checksums: bool = True
    """Whether SHA-256 of both sides is compared where the host lets us run sha256sum; if not, sizes only, and a file
    with the source's size and time of change counts as already right."""
    streams: Annotated[int, Between(1, 4)] = 2
    """How many batches of files move at the same time."""
    openssh: bool = True
    """Whether long files are handed to OpenSSH's own ``sftp`` where it is installed."""
    openssh_from_mb: Annotated[int, Between(1, 1_000_000)] = 64
    """How long a file must be for that, in megabytes of 1,000,000 bytes."""
    ciphers: tuple[str, ...] = ("aes128-gcm@openssh.com",)
    """Ciphers to prefer, the best first; those of each side's own choice come after them."""
    max_entries: Annotated[int, Between(1, 1_000_000_000)] = 1_000_000
    """How many names a tree that is fetched may have, or the place that is delivered to."""

    _pool: Pool | None = field(init=False, default=None, repr=False)
    _bulk: Bulk | None = field(init=False, default=None, repr=False)
    _environment: Mapping[str, str] = field(init=False, factory=dict, repr=False)

    @hookimpl
    def open(self, site: SiteContext) -> TransferProfile:
        """Look for OpenSSH; no host is asked yet."""
        login = self._login
        self._environment = site.environment
        self._bulk = Bulk.found(login, site.environment) if self.openssh else None
        self._pool = Pool(login, self.idle_s)
        return TransferProfile(version=f"paramiko {paramiko.__version__}")

    @hookimpl
    def fetch(self, url: str, directory: Path, progress: TransferProgress) -> TransferReport:
        """Bring the file at *url*, or the content of the tree there, into *directory*."""
        place = parse_url(url)

        def work(connection: Connection, tally: Tally) -> str:
            with own_directory(directory, make=True) as target:
                base, root = self._looked(connection, place, url, tally)
                if root.is_directory:
                    trip = Trip(connection, base, url, self._ways, tally)
                    planned: Callable[[Session], Plan] = lambda session: plan_remote_tree(  # noqa: E731
                        session, base, root, tally.beat, self.max_entries
                    )
                else:
                    holder = base.rpartition(b"/")[0] or b"/"
                    trip = Trip(connection, holder, url.rpartition("/")[0], self._ways, tally)
                    planned = lambda session: plan_remote_file(place.name, file_numbers(root))  # noqa: E731
                Fetching(target, shown(directory), trip).run(planned)
                return trip.verified

        return self._carried(place, progress, f"from {url} to {shown(directory)}", work)

    @hookimpl
    def deliver(
        self, directory: Path, url: str, progress: TransferProgress, selection: Selection
    ) -> TransferReport:
        """Bring what is selected of *directory* to *url*, making directories."""
        place = parse_url(url)

        def work(connection: Connection, tally: Tally) -> str:
            with own_directory(directory, make=False) as source:
                base = self._absolute(connection, place, tally)
                trip = Trip(connection, base, url, self._ways, tally)
                Delivery(source, shown(directory), trip, selection).run()
                return trip.verified

        return self._carried(place, progress, f"from {shown(directory)} to {url}", work)

    @hookimpl
    def probe(self, url: str) -> ProbeReport:
        """Tell whether *url* exists and may be read, moving nothing."""
        try:
            place, tally = parse_url(url), Tally()
            with self._connections.connection(place) as connection:
                base, found = self._looked(connection, place, url, tally)
                with connection.session(tally.beat, tally.check) as session, failing(f"read {url}"):
                    request = (
                        wire.of_path(Kind.OPENDIR, base)
                        if found.is_directory
                        else wire.open_file(base, wire.READ)
                    )
                    session.ask(wire.close_file(session.ask(request).handle()))
                kind = "directory" if found.is_directory else "file"
                return ProbeReport(
                    ok=True, message=f"{url} is a {kind} that may be read as {connection.route}"
                )
        except (TransferRefused, TransferInterrupted) as error:
            return ProbeReport(ok=False, message=str(error))

    @hookimpl
    def diagnose(self) -> Sequence[Finding]:
        """Look at keys, known hosts, the agent and OpenSSH."""
        return findings(self._login, self._bulk if self.openssh else None, wanted=self.openssh)

    @hookimpl
    def close(self) -> Closed:
        """Log out everywhere."""
        if self._pool is not None:
            self._pool.close()
        return Closed()

    # ------------------------------------------------------------------------------ helpers

    @property
    def _login(self) -> Login:
        return Login(
            user=self.user,
            key_file=self.key_file,
            known_hosts=self.known_hosts,
            ssh_config=self.ssh_config,
            agent=self.agent,
            connect_s=min(self.connect_s, self.no_progress_s),
            keepalive_s=self.keepalive_s,
            ciphers=self.ciphers,
        )

    @property
    def _ways(self) -> Ways:
        return Ways(
            checksums=self.checksums,
            streams=self.streams,
            bulk=self._bulk,
            bulk_from_bytes=self.openssh_from_mb * 1_000_000,
            max_entries=self.max_entries,
        )

    @property
    def _connections(self) -> Pool:
        if self._pool is None:
            raise TransferInterrupted("the driver was not opened, or is closed; open it first")
        return self._pool

    def _carried(
        self, place: Place, progress: TransferProgress, between: str, work: Callable[[Connection, Tally], str]
    ) -> TransferReport:
        """Do *work*, watched, with a connection to the host."""
        tally, verified = Tally(), list[str]()

        def connect_and_work() -> None:
            with (
                failing(f"carry files {between}"),
                explained(f"carry files {between}"),
                self._connections.connection(place) as connection,
            ):
                verified.append(work(connection, tally))

        patience = Patience(self.no_progress_s, between, "is the host, or the network to it, hanging?")
        carry(connect_and_work, tally, progress, patience)
        return tally.report(verified[0])

    def _absolute(self, connection: Connection, place: Place, tally: Tally) -> bytes:
        """Return the path from the root; what begins with ``~`` begins in the home directory there."""
        if not place.path.startswith(b"~"):
            return place.path
        with connection.session(tally.beat, tally.check) as session, failing("find our home directory"):
            home = session.ask(wire.of_path(Kind.REALPATH, b".")).path()
        if not home.startswith(b"/"):
            raise TransferInterrupted(f"{connection.route} says that our home directory is {home!r}")
        return home.rstrip(b"/") + place.path[1:]

    def _looked(
        self, connection: Connection, place: Place, url: str, tally: Tally
    ) -> tuple[bytes, Attributes]:
        """Return the path of *url* and what stands there."""
        base = self._absolute(connection, place, tally)
        with connection.session(tally.beat, tally.check) as session, failing(f"find {url}"):
            found = session.ask(wire.of_path(Kind.STAT, base)).attributes()
        if not (found.is_directory or found.is_file):
            raise TransferRefused(f"{url} is neither a file nor a directory")
        return base, found
