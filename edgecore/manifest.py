"""Write down what was staged out: name, size and checksum of every file, beside the run record.

All is looked at before it goes and again when it has gone: where anything was changed, made or removed meanwhile there
is no manifest, the transfer is tried again. So it is true of what was delivered. Names are bytes and stand
percent-encoded; lines stand directory by directory, each in the order of names, so that the same output gives the same manifest.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from attrs import define

from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.parts import READ_FILE, new_file, own_directory
from edgecore.selection import Selection
from edgecore.trees import Directory, File, Link, Parts, Plan, enter, explained, plan_tree, shown

__all__ = ["MANIFEST", "Stocktaking"]

MANIFEST: Final = "manifest.jsonl"
"""Its name in an attempt's run directory."""
_CHUNK_BYTES: Final = 1024 * 1024
_CHANGED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR})


@define
class Stocktaking:
    """Look at what is to be delivered; after that, `write` says what was."""

    directory: Path
    check: Callable[[], None]
    """Called again and again; raises TransferStopped when nobody wants it any more."""
    selection: Selection
    plan: Plan

    @classmethod
    def begin(cls, directory: Path, check: Callable[[], None], selection: Selection) -> Stocktaking:
        """Look at what is selected. Raises TransferRefused for what cannot be delivered, as a driver would."""
        with own_directory(directory, make=False) as opened:
            return cls(directory, check, selection, plan_tree(opened, check, selection))

    def unmatched(self, patterns: Sequence[str]) -> list[str]:
        """Return those *patterns* that no file and no link fits."""
        left = dict.fromkeys(patterns)
        for directory in self.plan.directories:
            spots = {each: spot for each in left if (spot := Selection((each,)).within(directory.parts))}
            for one in directory.entries if spots else ():
                self.check()
                for each in [each for each, spot in spots.items() if spot.takes(one.name)]:
                    del spots[each], left[each]
        return list(left)

    def write(self, file: Path, told: Mapping[str, str], *, compute: bool) -> str:
        """Write the manifest, durable and all at once; return its SHA-256 in hexadecimal.

        Checksums that nobody has *told* (path -> ``algorithm:hexadecimal``) are left out, unless they are to be
        computed. Raises TransferInterrupted when something has changed since the first look, and OSError.
        """
        digest, new = hashlib.sha256(), file.with_name(f"{file.name}.new")
        file.parent.mkdir(0o700, parents=True, exist_ok=True)
        with own_directory(self.directory, make=False) as root, new_file(new) as opened:
            for line in self._lines(root, told, compute):
                digest.update(line)
                opened.write(line)
            self._compare(root)
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(file)
        holder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(holder)
        finally:
            os.close(holder)
        return digest.hexdigest()

    def _lines(self, root: int, told: Mapping[str, str], compute: bool) -> Iterator[bytes]:
        for directory in sorted(self.plan.directories, key=lambda each: _raw(each.parts)):
            with self._still("list", directory.parts):
                holder = enter(root, directory.parts)
            try:
                entries: tuple[Iterable[File | Link], ...] = (directory.files, directory.links)
                for one in heapq.merge(*entries, key=_raw_name):
                    path = b"/".join((*_raw(directory.parts), _raw_name(one)))
                    if isinstance(one, Link):
                        entry: dict[str, object] = {"link": quote(os.fsencode(one.target))}
                    else:
                        entry = self._entry(holder, directory, one, told, compute)
                    yield json.dumps({"name": quote(path), **entry}).encode() + b"\n"
            finally:
                os.close(holder)

    def _entry(
        self, holder: int, directory: Directory, file: File, told: Mapping[str, str], compute: bool
    ) -> dict[str, object]:
        self.check()
        path = (*directory.parts, file.name)
        entry: dict[str, object] = {"size": file.size_bytes}
        checksum = told.get("/".join(path))
        with self._still("read", path):
            if checksum is None and compute:
                entry["checksum"] = f"sha256:{self._computed(holder, file)}"
            elif checksum is not None:
                entry["checksum"] = checksum
        return entry

    def _compare(self, root: int) -> None:
        """Look again. Raises TransferInterrupted when anything that is selected is not as it was."""
        try:
            plan = plan_tree(root, self.check, self.selection)
        except TransferRefused as error:  # the next try says so, should it stay
            raise TransferInterrupted(f"the output changed while it was staged out: {error}") from error
        before, now = _by_parts(self.plan), _by_parts(plan)
        for parts in before.keys() | now.keys():
            old, new = before.get(parts), now.get(parts)
            if old is None or new is None or (old.files, old.links) != (new.files, new.links):
                names = {one.name for one in _entries(old) ^ _entries(new)}
                path = "/".join((*parts, *sorted(names)[:1])) or "."
                words = f"{shown(path)} changed while it was staged out"
                raise TransferInterrupted(f"{words}; does something of the job still run?")

    def _computed(self, holder: int, file: File) -> str:
        digest, buffer = hashlib.sha256(), bytearray(_CHUNK_BYTES)
        with open(os.open(file.name, READ_FILE, dir_fd=holder), "rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
                self.check()
        return digest.hexdigest()

    def _still(self, asked: str, path: Parts) -> AbstractContextManager[None]:
        return explained(f"{asked} {shown('/'.join(path) or '.')} for the manifest", transient=_CHANGED)


def _by_parts(plan: Plan) -> dict[Parts, Directory]:
    return {each.parts: each for each in plan.directories}


def _entries(directory: Directory | None) -> frozenset[File | Link]:
    return frozenset() if directory is None else frozenset(directory.entries)


def _raw_name(one: File | Link) -> bytes:
    return os.fsencode(one.name)


def _raw(parts: Parts) -> tuple[bytes, ...]:
    return tuple(map(os.fsencode, parts))
