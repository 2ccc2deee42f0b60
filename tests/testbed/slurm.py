"""Run a private Slurm on loopback: its own ports, key, database and state, on nodes that are processes.

It never meets a Slurm of the machine: nothing of it is looked up outside of its directory. Each server is a `Daemon`,
which tests stop, kill, freeze and start. Nodes claim more processors than the machine has, so that jobs of many nodes
run on a small one.

    with running_slurm(directory, nodes=4) as slurm:
        slurm.run("sbatch", "job.sh")
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from attrs import define

from edgecore.processes import carrying, process_stat, user_name
from testbed.daemon import Daemon
from testbed.keeper import Keeper
from testbed.slurm_layout import ADDRESS, PARTITIONS, Layout

__all__ = ["PARTITIONS", "Slurm", "missing_slurm", "need_slurm", "running_slurm"]

_SBIN: Final = Path("/usr/sbin")
_DEADLINE_S: Final = 60.0
_PORTS: Final = (20_000, 32_000)
"""Below those that the kernel gives to clients, so that a server that was down finds its own free."""
_BLOCK: Final = 64
_PROGRAMS: Final = ("slurmctld", "slurmd", "slurmstepd", "munged", "sbatch", "squeue", "scontrol", "scancel")
_ACCOUNTING_PROGRAMS: Final = ("slurmdbd", "mariadbd", "sacct", "sacctmgr")
_TABLES: Final = Path("/usr/share/mysql/mysql_system_tables.sql")
_PLUGINS: Final = "usr/lib/*/slurm-wlm/accounting_storage_mysql.so"
_AWAY: Final = re.compile(r"\*|unk|power|boot")
_OUT_OF_USE: Final = re.compile(r"down|drain|fail")


def missing_slurm(*, accounting: bool = False) -> str:
    """Say what is missing for a server; empty where it can be started."""
    wanted = (*_PROGRAMS, *(_ACCOUNTING_PROGRAMS if accounting else ()))
    missing = [name for name in wanted if shutil.which(name, path=f"{_SBIN}:{os.defpath}") is None]
    if accounting and not list(Path("/").glob(_PLUGINS)):
        missing.append("slurm-wlm-mysql-plugin")
    if not missing:
        return ""
    return f"Slurm is not installed here: no {', '.join(missing)}; as root `make packages` installs it"


def need_slurm(*, accounting: bool = False) -> None:
    """Skip the test where there is no Slurm, but fail where `CI` is set."""
    if words := missing_slurm(accounting=accounting):
        if "CI" in os.environ:
            pytest.fail(words)
        pytest.skip(words)


@define(eq=False)
class Slurm:
    """One cluster, which is named ``lab``; made by `running_slurm`."""

    directory: Path
    environment: Mapping[str, str]
    """What Slurm's commands need: PATH and SLURM_CONF."""
    munged: Daemon
    controller: Daemon
    slurmd: Mapping[str, Daemon]
    """Node (n1, n2, ...) -> its server. A job outlives it."""
    slurmdbd: Daemon | None = None
    database: Daemon | None = None

    @property
    def conf(self) -> Path:
        """Its slurm.conf."""
        return self.directory / "slurm.conf"

    # ------------------------------------------------------------------------------ servers

    @property
    def controller_pid(self) -> int:
        """The process id of slurmctld."""
        return self.controller.pid

    def start_controller(self) -> None:
        """Start slurmctld, unless it runs; return when it answers and knows which nodes are there."""
        self._start_controller()
        self.wait_nodes()

    def _start_controller(self) -> None:
        if not self.controller.alive:
            self.controller.start()
            for node in self.slurmd.values():
                node.signal(signal.SIGHUP)  # so that it reports itself now, not when it is asked

    def stop_controller(self) -> None:
        """Shut slurmctld down in good order: it loses nothing."""
        self.controller.stop()

    def kill_controller(self) -> None:
        """End slurmctld as a power failure does: it loses what it was told in the last seconds."""
        self.controller.kill()

    def frozen_controller(self) -> contextlib.AbstractContextManager[None]:
        """Let slurmctld answer nothing meanwhile; what was asked of it, it does afterwards."""
        return self.controller.frozen()

    def start(self) -> None:
        """Start every server that does not run, whatever a test has done; return when all is in order."""
        self.start_accounting()
        self._start_controller()
        for node in self.slurmd.values():
            node.launch()
        self.wait_nodes()

    def start_accounting(self) -> None:
        """Start what can be told of accounts before there is a controller."""
        self.munged.start()
        if self.database is not None and self.slurmdbd is not None:
            self.database.start()
            self.slurmdbd.start()

    def wait_nodes(self) -> None:
        """Wait until every node whose server runs answers to the controller."""
        deadline = time.monotonic() + _DEADLINE_S
        while missing := [node for node, state in self._states().items() if _AWAY.search(state)]:
            if not any(self.slurmd[node].alive for node in missing):
                return
            assert time.monotonic() < deadline, self.run("sinfo", "-N", "-o", "%N %T %E", check=False)
            time.sleep(0.02)

    def _states(self) -> dict[str, str]:
        """Return node -> state."""
        return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines())

    # ------------------------------------------------------------------------------- failures

    def crash_controller(self, next_id: int) -> None:
        """Kill slurmctld, and start it with nothing that it wrote of jobs, as if that had not reached the disk.

        It knows of no job afterwards, and gives the id *next_id* to the next one.
        """
        self.kill_controller()
        state = self.directory / "state"
        for path in (*state.glob("job_state*"), *state.glob("hash.*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        text = re.sub(r"^FirstJobId=.*\n", "", self.conf.read_text(), flags=re.MULTILINE)
        self.conf.write_text(f"FirstJobId={next_id}\n{text}")
        self.start_controller()

    def kill_job(self, job_id: str) -> None:
        """End all processes of a job as the failure of its node does, without a word; *job_id* is no member's."""
        for pid in self._job_processes():
            with contextlib.suppress(OSError):  # it has just ended
                command = Path(f"/proc/{pid}/cmdline").read_text()
                environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
                if command.startswith(f"slurmstepd: [{job_id}.") or f"SLURM_JOB_ID={job_id}" in environment:
                    os.kill(pid, signal.SIGKILL)

    def _job_processes(self) -> list[int]:
        """Return who has this slurm.conf in its environment and is no server."""
        servers = {daemon.pid for daemon in (self.munged, self.controller, *self.slurmd.values())}
        servers |= {daemon.pid for daemon in (self.slurmdbd, self.database) if daemon is not None}
        found = []
        for pid in carrying([f"SLURM_CONF={self.conf}".encode()]):
            stat = process_stat(pid)
            if (
                pid not in servers
                and stat is not None
                and int(stat[1]) not in {self.controller.pid, os.getpid()}
            ):
                found.append(pid)
        return found

    # ----------------------------------------------------------------------------- operator

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands; return what it prints, with its errors where it is not *check*-ed."""
        done = subprocess.run(
            command,
            env={**self.environment, "TZ": "UTC"},
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
            cwd=self.directory,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return (done.stdout if check else done.stdout + done.stderr).strip()

    def clear(self) -> None:
        """Start what is down, and remove every job and whatever is left of one, as for another test."""
        self.start()
        for node in [node for node, state in self._states().items() if _OUT_OF_USE.search(state)]:
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        deadline = time.monotonic() + _DEADLINE_S
        while ids := set(self.run("squeue", "-h", "-a", "-o", "%A").split()):
            self.run("scancel", "--full", "--signal=KILL", *ids, check=False)
            self.run("scancel", *ids, check=False)
            assert time.monotonic() < deadline, f"jobs do not end: {self.run('squeue', '-a')}"
            time.sleep(0.05)
        for pid in self._job_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running_slurm(
    directory: Path,
    *,
    nodes: int = 4,
    cpus: int = 16,
    accounting: bool = False,
    accounts: Sequence[str] = (),
    partitions: Sequence[str] = PARTITIONS,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Slurm]:
    """Run a cluster in a directory of its own, which may exist; skip or fail where there is none.

    *settings* are keys of slurm.conf, such as ``{"MinJobAge": 5}``. With *accounting* there are a database and
    slurmdbd, too, which takes seconds; *accounts* are what sacctmgr is told before slurmctld starts, such as
    ``"add account atlas"``. All processes, those of jobs included, are gone afterwards.
    """
    need_slurm(accounting=accounting)
    reserved, ports = _reserve_ports(2 + nodes)
    with (
        contextlib.closing(reserved),
        tempfile.TemporaryDirectory(prefix="edgecore-slurm-") as spool,
        contextlib.closing(Keeper()) as keeper,
    ):
        layout = Layout(
            base=directory.absolute(),
            spool=Path(spool),
            nodes=[f"n{number + 1}" for number in range(nodes)],
            cpus=cpus,
            partitions=partitions,
            settings=settings or {},
            ports=ports,
            accounting=accounting,
        )
        layout.write()
        layout.spool.chmod(0o711)
        slurm = _Servers(layout, keeper).cluster()
        slurm.start_accounting()
        for words in accounts:
            slurm.run("sacctmgr", "-i", *words.split())
        slurm.start()
        yield slurm


@define(eq=False)
class _Servers:
    """How each server of a cluster is run."""

    layout: Layout
    keeper: Keeper

    def cluster(self) -> Slurm:
        layout = self.layout
        accounting = layout.accounting
        return Slurm(
            directory=layout.base,
            environment=layout.environment,
            munged=self._munged(),
            controller=self._daemon([self._program("slurmctld"), "-D"], self._controller_answers),
            slurmd={name: self._slurmd(name) for name in layout.nodes},
            slurmdbd=self._daemon([str(_SBIN / "slurmdbd"), "-D"], self._accounts) if accounting else None,
            database=self._database() if accounting else None,
        )

    def _daemon(self, command: Sequence[str], ready: Callable[[], bool], name: str = "") -> Daemon:
        base = self.layout.base
        log = base / "log" / f"{name or Path(command[0]).name}.out"
        environment = {**self.layout.environment, "MYSQL_UNIX_PORT": f"{base}/run/mysql"}
        return Daemon(command, environment, log, ready, self.keeper)

    def _program(self, name: str) -> str:
        """Link a program of Slurm under its own name, by which it knows what it is.

        Debian's alternative may lead to one that is built to emulate clusters, and cannot run jobs.
        """
        link = self.layout.base / "bin" / name
        real = _SBIN / f"{name}-wlm"
        if not link.is_symlink():
            link.symlink_to(real if real.exists() else _SBIN / name)
        return str(link)

    def _munged(self) -> Daemon:
        base = self.layout.base
        command = [str(_SBIN / "munged"), "--foreground", "--force", "--num-threads=2"]
        command += [f"--socket={self.layout.socket}", f"--key-file={self.layout.munge_key}"]
        command += [f"--pid-file={base}/run/munged.pid", f"--seed-file={base}/state/munged.seed"]
        return self._daemon([*command, f"--log-file={base}/log/munged"], self._munges)

    def _slurmd(self, name: str) -> Daemon:
        command = [self._program("slurmd"), "-D", "-N", name, "-d", self._program("slurmstepd")]
        return self._daemon(command, lambda: True, name)

    def _database(self) -> Daemon:
        """Run a server that knows no users, behind its socket, and of the tables of a server has the one for procedures.

        Installing all takes seconds. What it does not write at once is lost only if this machine fails.
        """
        base = self.layout.base
        (table,) = re.findall(r"^CREATE TABLE IF NOT EXISTS proc .*?;$", _TABLES.read_text(), re.M | re.S)
        first = base / "state" / "first.sql"
        first.write_text(f"CREATE DATABASE IF NOT EXISTS mysql;\nUSE mysql;\n{' '.join(table.split())}\n")
        command = [
            *(f"{_SBIN}/mariadbd", "--no-defaults", f"--user={user_name()}", "--skip-networking"),
            *("--skip-grant-tables", f"--datadir={base}/state/mysql", f"--socket={base}/run/mysql"),
            *(f"--pid-file={base}/run/mysql.pid", "--innodb-buffer-pool-size=32M", "--key-buffer-size=1M"),
            *(f"--init-file={first}", "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0"),
            *("--innodb-flush-method=nosync", "--innodb-lock-wait-timeout=900"),
        ]
        return self._daemon(command, self._connects)

    # ----------------------------------------------------------------------------- are they up

    def _munges(self) -> bool:
        return self._succeeds("munge", "-S", str(self.layout.socket), "-n")

    def _controller_answers(self) -> bool:
        return self._succeeds("scontrol", "ping")

    def _accounts(self) -> bool:
        """Tell whether slurmdbd answers; tell it of the cluster when it does."""
        return self._succeeds("sacctmgr", "-n", "list", "cluster") and self._succeeds(
            "sh", "-c", "sacctmgr -nP list cluster format=cluster | grep -q . || sacctmgr -i add cluster lab"
        )

    def _connects(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(f"{self.layout.base}/run/mysql")
            return True
        return False

    def _succeeds(self, *command: str) -> bool:
        environment = self.layout.environment
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                command, env=environment, capture_output=True, timeout=_DEADLINE_S, check=False
            )
            return done.returncode == 0
        return False


def _reserve_ports(count: int) -> tuple[socket.socket, Sequence[int]]:
    """Return ports that other clusters leave alone, also while servers are down, until the socket is closed.

    Its name says that they are taken.
    """
    blocks = list(range(*_PORTS, _BLOCK))
    random.shuffle(blocks)
    for first in blocks:
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0edgecore-slurm-{first}")
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind((ADDRESS, port))
        except OSError:  # somebody has it
            name.close()
        else:
            return name, range(first, first + count)
    raise OSError(f"no {count} free ports in {_PORTS}")
