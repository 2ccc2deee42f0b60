"""A service only calls out, and without a network it has nobody to call: its sockets, while it works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from sites import make_site, wait_for

from edgecore.builtin.fork_spool import lock_file
from edgecore.states import SETTLED

pytestmark = pytest.mark.slow

TABLES: Final = ("tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "icmp", "packet", "netlink", "unix")
_INODE: Final[Mapping[str, int]] = {"unix": 6, "packet": 8, "netlink": 9}
"""Table of proc(5) -> the column of the inode, where it is not that of the others."""
_TCP_STATES: Final[Mapping[str, str]] = {"01": "connected", "0A": "listening"}
_LISTENS: Final = 0x10000  # __SO_ACCEPTCON


def _open_inodes(pid: int) -> Iterator[str]:
    """Yield the inode of each open socket of a process, by all of its threads."""
    for place in Path(f"/proc/{pid}/task").glob("*/fd/*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            link = os.readlink(place)
            if link.startswith("socket:["):
                yield link[8:-1]


def _known(pid: int) -> Iterator[tuple[str, str]]:
    """Yield inode and description of every socket in the network that the process is in."""
    for table in TABLES:
        with suppress(FileNotFoundError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text(errors="replace").splitlines()[1:]:
                words = line.split()
                state = ""
                if table.startswith("tcp"):
                    state = _TCP_STATES.get(words[3], words[3])
                elif table == "unix":
                    state = (
                        "listening"
                        if int(words[3], 16) & _LISTENS
                        else "connected"
                        if words[5] == "03"
                        else ""
                    )
                yield words[_INODE.get(table, 9)], f"{table} {state}".strip()


def sockets(pid: int) -> list[str]:
    """Describe the open sockets of a process; none where it has ended meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        inodes = set(_open_inodes(pid))
        known = dict(_known(pid)) if inodes else {}
        return sorted(known.get(inode, "of another family") for inode in inodes)
    return []


def family(*pids: int) -> set[int]:
    """Return processes with all that descend from them."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


OPEN: Final = """
import socket, sys
inet, unix = socket.socket(), socket.socket(socket.AF_UNIX)
inet.bind(("127.0.0.1", 0)), inet.listen()
unix.bind(b"\\0edgecore-test-%d" % inet.getsockname()[1]), unix.listen()
calling = socket.create_connection(inet.getsockname())
unbound, pair, datagram = socket.socket(), socket.socketpair(), socket.socket(type=socket.SOCK_DGRAM)
print(flush=True), sys.stdin.read()
"""


def test_the_test_below_sees_sockets_of_every_kind() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OPEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = sockets(process.pid)
        process.communicate()
    assert {"tcp connected", "tcp listening", "unix connected", "unix listening"} <= set(found)
    assert 7 == len(found)  # the pair are two; who has no address yet is in no table
    assert process.pid in family(os.getpid()) | {process.pid}


def test_a_service_at_work_has_no_socket_and_neither_has_anything_that_it_started(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", slots=2)
    programs: set[str] = set()
    seen: set[str] = set()

    def look(*pids: int) -> None:
        for pid in family(*pids):
            seen.update(sockets(pid))
            with suppress(FileNotFoundError, ProcessLookupError):
                programs.update(Path(f"/proc/{pid}/cmdline").read_text().split("\0"))

    with site.service() as process:
        wait_for(lock_file(site.config.work_directory / ".fork").exists, 20, site.diagnosis)
        site.send(
            *(
                site.job(name=f"job-{number}", **site.files(f"in-{number}", seconds=0.3))
                for number in range(6)
            )
        )

        def settled() -> bool:
            words = lock_file(site.config.work_directory / ".fork").read_text().split()
            look(process.pid, *map(int, words[:1]))
            jobs = site.jobs()
            return len(jobs) == 6 and all(job.state in SETTLED for job in jobs)

        wait_for(settled, 60, site.diagnosis)
        assert process.poll() is None
        assert [] == sockets(process.pid)
    assert {"JOB_FINISHED"} == {str(job.state) for job in site.jobs()}
    assert any(program.endswith("batch.sh") for program in programs), programs
    # The C library may ask a name service of this machine for the account's name.
    assert set() == seen - {"unix connected"}
