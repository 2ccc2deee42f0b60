"""Look whether a directory is fit for what a service keeps there, by really writing into it.

What a file system allows is not what its permissions say: quotas, read-only mounts, full tables of inodes
and squashed root accounts show only when something is written.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

from edgecore.models import Finding, Level
from edgecore.processes import user_name

__all__ = ["NETWORK_FILE_SYSTEMS", "DirectoryCheck", "file_system_of", "size_words"]

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "afs",
        "fuse.sshfs",
        "panfs",
        "pvfs2",
        "9p",
    }
)
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")
_BLOCK: Final = b"edgecore" * 512
_SKEW_S: Final = 30.0
"""More than a busy file server takes to answer."""


def file_system_of(directory: Path) -> str:
    """Return the type of the file system that a directory is on; empty where it is unknown."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    place = os.path.realpath(directory)
    for line in lines:
        _, mount, found, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def size_words(size_bytes: float) -> str:
    """Write a size for people: ``1.5 GiB``."""
    power = next((n for n in range(len(_UNITS) - 1) if size_bytes < 1023.95 * 1024**n), len(_UNITS) - 1)
    return f"{size_bytes / 1024**power:,.{1 if power else 0}f} {_UNITS[power]}"


@frozen(kw_only=True)
class DirectoryCheck:
    """What is asked of one directory."""

    subject: str
    path: Path
    made: bool = False
    """Whether a service makes it when it is missing."""
    local: bool = False
    """Whether it must not be on a network file system."""
    low_bytes: int = 1024**3
    """Less free space than this is a warning; a sixteenth of it, a failure."""
    low_files: int = 10_000
    """Fewer free inodes than this is a warning; a hundredth of it, a failure."""

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong, or one finding that says what is right. The directory is left as it was."""
        try:
            missing, place = self._there()
            if missing is not None:
                yield missing
                return
            trouble = [*self._write(place), *self._room(place), *self._access(place), *self._kind(place)]
            yield from trouble or [self._says(Level.OK, self._praise(place))]
        except OSError as error:
            words = f"{error.filename or self.path}: {error.strerror}"
            yield self._says(Level.FAILURE, words, f"let {user_name()} go there, and see that it stays")

    def _says(self, level: Level, message: str, remedy: str = "") -> Finding:
        return Finding(self.subject, level, message, remedy)

    def _there(self) -> tuple[Finding | None, Path]:
        """Return the directory to look at, the nearest that exists where ours will be made in it."""
        place = self.path
        while not _exists(place):
            place = place.parent
        if not place.is_dir():
            found = f"{place} is no directory" if place == self.path else f"{place} stands in the way"
            return self._says(
                Level.FAILURE, f"{self.path}: {found}", "name another, or move that away"
            ), place
        if place != self.path and not self.made:
            remedy = f"mkdir -p {self.path} (as {user_name()})"
            return self._says(Level.FAILURE, f"{self.path} does not exist", remedy), place
        return None, place

    def _write(self, place: Path) -> Iterator[Finding]:
        begun = time.time()
        try:
            with tempfile.NamedTemporaryFile(prefix=".edgecore-doctor-", dir=place) as file:
                file.write(_BLOCK)
                file.flush()
                os.fsync(file.fileno())
                written = os.fstat(file.fileno()).st_mtime
        except OSError as error:
            who = user_name()
            yield self._says(
                Level.FAILURE,
                f"{place}: nothing can be written there: {error.strerror}",
                f"let {who} write there; look at its permissions, the mount and the quota",
            )
            return
        skew_s = written - begun
        if abs(skew_s) > _SKEW_S + (time.time() - begun):
            yield self._says(
                Level.WARNING,
                f"{place}: a new file is {abs(skew_s):,.0f} s {'ahead of' if skew_s > 0 else 'behind'} this host's clock",
                "let this host and the file server take their time from one source",
            )

    def _room(self, place: Path) -> Iterator[Finding]:
        room = os.statvfs(place)
        free_bytes = room.f_bavail * room.f_frsize
        if free_bytes < self.low_bytes:
            level = Level.FAILURE if free_bytes < self.low_bytes / 16 else Level.WARNING
            words = f"{place}: {size_words(free_bytes)} free"
            yield self._says(level, words, f"make room; {size_words(self.low_bytes)} should be free")
        if room.f_files and room.f_favail < self.low_files:  # some file systems do not count them
            level = Level.FAILURE if room.f_favail < self.low_files / 100 else Level.WARNING
            words = f"{place}: room for {room.f_favail:,} more files (inodes)"
            yield self._says(level, words, f"remove files; {self.low_files:,} should be free")

    def _access(self, place: Path) -> Iterator[Finding]:
        """Find who else could exchange what is kept there."""
        owner, ours = place.stat().st_uid, os.geteuid()
        if place == self.path and owner != ours:
            remedy = "run the service, and this, under the account that owns it"
            if ours == 0:
                remedy = f"run this as {user_name(owner)}, if the service runs so"
            words = f"{place} belongs to {user_name(owner)}, and this account is {user_name(ours)}"
            yield self._says(Level.WARNING, words, remedy)
        for each in (place, *place.parents):
            mode = each.stat().st_mode
            if mode & stat.S_IWOTH and (each == self.path or not mode & stat.S_ISVTX):
                yield self._says(
                    Level.WARNING,
                    f"{each} can be written by every account of this host",
                    f"chmod o-w {each}, or every account can replace what the service decides by",
                )

    def _kind(self, place: Path) -> Iterator[Finding]:
        kind = file_system_of(place)
        if self.local and kind in NETWORK_FILE_SYSTEMS:
            yield self._says(
                Level.FAILURE, f"{place} is on a network file system ({kind})", "put it on a local disk"
            )

    def _praise(self, place: Path) -> str:
        room = os.statvfs(place)
        words = f"{self.path}: " + ("writable" if place == self.path else f"will be made in {place}")
        words += f", {size_words(room.f_bavail * room.f_frsize)} free"
        return f"{words}, {file_system_of(place) or 'unknown file system'}"


def _exists(place: Path) -> bool:
    """Tell whether something has that name, a link to nowhere included. Raises OSError where we may not look."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return place == Path("/")
    return True
