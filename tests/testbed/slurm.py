"""Run a private Slurm on loopback: its own ports, key, database and state, on nodes that are processes.

It never meets a Slurm of the machine: nothing of it is looked up outside of its directory. Each server is a `Daemon`, which tests stop, kill, freeze and start. Nodes
claim more processors than the machine has, so that jobs of many nodes run on a small one.

    with running_slurm(directory, nodes=4) as slurm:
        slurm.run("sbatch", "job.sh")
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from attrs import Factory, define, field

from edgecore.processes import process_start, user_name
from testbed.keeper import Keeper

__all__ = ["Daemon", "Slurm", "missing_slurm", "need_slurm", "running_slurm"]

_SBIN: Final = Path("/usr/sbin")
_DEADLINE_S: Final = 60.0
_ADDRESS: Final = "127.0.0.1"
_PORTS: Final = (20_000, 32_000)
"""Below those that the kernel gives to clients, so that a server that was down finds its own free."""
_BLOCK: Final = 64
_PROGRAMS: Final = ("slurmctld", "slurmd", "slurmstepd", "munged", "sbatch", "squeue", "scontrol", "scancel")
_ACCOUNTING_PROGRAMS: Final = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacct", "sacctmgr")
_PLUGINS: Final = "usr/lib/*/slurm-wlm/accounting_storage_mysql.so"

PARTITIONS: Final = (
    "PartitionName=batch Nodes=ALL Default=YES MaxTime=2-00:00:00 DefaultTime=00:10:00 State=UP",
    "PartitionName=short Nodes=n1 MaxTime=00:30:00 DefaultTime=00:05:00 State=UP",
    "PartitionName=down Nodes=n1 State=DOWN",
)
"""What there is unless a test wants something else."""


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
class Daemon:
    """One server."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], bool]
    keeper: Keeper
    pid: int = field(default=0, init=False)
    """Its process id, or the last one that it had."""
    _born: int | None = field(default=None, init=False)

    @property
    def alive(self) -> bool:
        """Tell whether it runs, frozen or not."""
        return self._born is not None and process_start(self.pid) == self._born

    def launch(self) -> None:
        """Start it, unless it runs; do not wait for anything."""
        if not self.alive:
            self.pid = self.keeper.start(self.command, self.environment, self.log)
            self._born = process_start(self.pid)

    def start(self) -> None:
        """Start it, unless it runs; return when it answers."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + _DEADLINE_S
        while not self.ready():
            assert self.alive, f"it ended while starting: {' '.join(self.command)}: {self.said}"
            assert time.monotonic() < deadline, f"it does not start: {' '.join(self.command)}: {self.said}"
            time.sleep(0.02)

    def stop(self) -> None:
        """Shut it down in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power failure does."""
        self._end(signal.SIGKILL)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it answer nothing meanwhile, without closing anything."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        self._signal(number)
        deadline = time.monotonic() + _DEADLINE_S
        while self.alive:
            assert time.monotonic() < deadline, f"{number.name} does not end {' '.join(self.command)}"
            time.sleep(0.01)

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


@define(eq=False)
class Slurm:
    """One cluster, which is named ``lab``; made by `running_slurm`."""

    directory: Path
    nodes: Sequence[str]
    """The names of its nodes: n1, n2, ..."""
    environment: Mapping[str, str]
    """What Slurm's commands need: PATH and SLURM_CONF."""
    munged: Daemon
    controller: Daemon
    slurmd: Mapping[str, Daemon]
    """Node -> its server. A job outlives it."""
    slurmdbd: Daemon | None
    database: Daemon | None
    tables: Sequence[Path] = Factory(tuple)

    @property
    def conf(self) -> Path:
        """Its slurm.conf."""
        return self.directory / "slurm.conf"

    @property
    def controller_pid(self) -> int:
        """The process id of slurmctld."""
        return self.controller.pid

    def start_controller(self) -> None:
        """Start slurmctld, unless it runs; return when it answers and no node is away."""
        self.controller.start()
        self.wait_nodes()

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
        for each in (self.munged, self.database, self.slurmdbd):
            if each is not None:
                each.start()
        for node in self.slurmd.values():
            node.launch()
        self.start_controller()

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands; return what it prints, also on its standard error unless it is checked."""
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
        return done.stdout.strip() if check else f"{done.stdout}{done.stderr}".strip()

    def wait_nodes(self) -> None:
        """Wait until every node whose server runs answers to the controller."""
        expected = {name for name, daemon in self.slurmd.items() if daemon.alive}
        deadline = time.monotonic() + _DEADLINE_S
        while not expected <= self._answering():
            assert time.monotonic() < deadline, self.run("sinfo", "-N", "-o", "%N %T %E", check=False)
            time.sleep(0.02)

    def _answering(self) -> set[str]:
        lines = [line.split() for line in self.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines()]
        return {
            line[0] for line in lines if len(line) == 2 and not re.search(r"\*|down|unk|power|boot", line[1])
        }

    def clear(self) -> None:
        """Start what is down and remove every job, as for another test."""
        self.start()
        for node in self.nodes:
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        deadline = time.monotonic() + _DEADLINE_S
        while ids := self.run("squeue", "-h", "-a", "-o", "%A").split():
            self.run("scancel", "--full", "--signal=KILL", *set(ids), check=False)
            self.run("scancel", *set(ids), check=False)
            assert time.monotonic() < deadline, f"jobs do not end: {self.run('squeue', '-a')}"
            time.sleep(0.05)


@contextlib.contextmanager
def running_slurm(
    directory: Path,
    *,
    nodes: int = 4,
    cpus: int = 16,
    accounting: bool = False,
    partitions: Sequence[str] = PARTITIONS,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Slurm]:
    """Run a cluster in a directory of its own, which may exist; skip or fail where there is none.

    *settings* are keys of slurm.conf, such as ``{"MinJobAge": 5}``. With *accounting* there are a database and
    slurmdbd, too, which takes seconds. All processes, those of jobs included, are gone afterwards.
    """
    need_slurm(accounting=accounting)
    directory.mkdir(parents=True, exist_ok=True)
    directory = directory.absolute()
    reserved, ports = _reserve_ports(2 + nodes)
    with contextlib.closing(reserved), contextlib.closing(Keeper()) as keeper:
        making = _Making(directory, keeper, ports, accounting=accounting)
        slurm = making.make([f"n{number + 1}" for number in range(nodes)], cpus, partitions, settings or {})
        making.start(slurm)
        yield slurm


@define(eq=False)
class _Making:
    """How a cluster is laid out and comes up for the first time."""

    base: Path
    keeper: Keeper
    ports: Sequence[int]
    accounting: bool
    environment: dict[str, str] = Factory(dict)

    def make(
        self,
        nodes: Sequence[str],
        cpus: int,
        partitions: Sequence[str],
        settings: Mapping[str, object],
    ) -> Slurm:
        for name in ("run", "log", "state", "spool", "bin"):
            (self.base / name).mkdir(exist_ok=True)
        assert len(os.fsencode(self._socket)) < 100, f"a socket's path is too long: {self._socket}"
        key = self.base / "state" / "munge.key"
        if not key.exists():
            key.touch(mode=0o400)
            key.chmod(0o600)
            key.write_bytes(secrets.token_bytes(128))
            key.chmod(0o400)
        self.environment = {"PATH": os.defpath, "SLURM_CONF": str(self.base / "slurm.conf")}
        self._write_configuration(nodes, cpus, partitions, settings)
        self._write_environment()
        munged = ["munged", "--foreground", "--force", "--num-threads=2", f"--socket={self._socket}"]
        for name, file in (("key", key), ("pid", "run/munged.pid"), ("seed", "state/munged.seed")):
            munged.append(f"--{name}-file={self.base / file}")
        munged.append(f"--log-file={self.base}/log/munged")
        return Slurm(
            directory=self.base,
            nodes=nodes,
            environment=self.environment,
            munged=self._daemon(munged, self._munge_answers),
            controller=self._daemon([self._program("slurmctld"), "-D"], self._controller_answers),
            slurmd={name: self._node(name) for name in nodes},
            slurmdbd=self._daemon(["slurmdbd", "-D"], self._accounting_answers) if self.accounting else None,
            database=self._database() if self.accounting else None,
        )

    @property
    def _socket(self) -> Path:
        return self.base / "run" / "munge"

    def _daemon(self, command: Sequence[str], ready: Callable[[], bool], name: str = "") -> Daemon:
        program = command[0] if "/" in command[0] else str(_SBIN / command[0])
        log = self.base / "log" / f"{name or Path(program).name}.out"
        environment = {**self.environment, "MYSQL_UNIX_PORT": f"{self.base}/run/mysql"}
        return Daemon([program, *command[1:]], environment, log, ready, self.keeper)

    def _program(self, name: str) -> str:
        """Link a program of Slurm under its own name, by which it knows what it is.

        Debian's alternative may lead to one that is built to emulate clusters, and so cannot run jobs.
        """
        link = self.base / "bin" / name
        real = _SBIN / f"{name}-wlm"
        if not link.is_symlink():
            link.symlink_to(real if real.exists() else _SBIN / name)
        return str(link)

    def _node(self, name: str) -> Daemon:
        command = [self._program("slurmd"), "-D", "-N", name, "-d", self._program("slurmstepd")]
        return self._daemon(command, lambda: True, name)

    def _database(self) -> Daemon:
        command = [
            *(
                "mariadbd",
                "--no-defaults",
                f"--user={user_name()}",
                "--skip-networking",
                "--skip-grant-tables",
            ),
            *(f"--datadir={self.base}/state/mysql", f"--socket={self.base}/run/mysql"),
            *(f"--pid-file={self.base}/run/mysql.pid", "--innodb-buffer-pool-size=32M"),
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900", "--key-buffer-size=1M"),
        ]
        return self._daemon(command, self._database_answers)

    # ---------------------------------------------------------------------------- coming up

    def start(self, slurm: Slurm) -> None:
        slurm.munged.start()
        if slurm.database is not None and slurm.slurmdbd is not None:
            self._install_database()
            slurm.database.start()
            slurm.slurmdbd.start()
            if not slurm.run("sacctmgr", "-nP", "list", "cluster", "format=cluster"):
                slurm.run("sacctmgr", "-i", "add", "cluster", "lab")
        slurm.start()

    def _install_database(self) -> None:
        if (self.base / "state" / "mysql" / "mysql").is_dir():
            return
        command = ["mariadb-install-db", "--no-defaults", f"--user={user_name()}", "--skip-test-db"]
        command += [f"--datadir={self.base}/state/mysql", "--auth-root-authentication-method=normal"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def _munge_answers(self) -> bool:
        return self._says("munge", "-S", str(self._socket), "-n")

    def _controller_answers(self) -> bool:
        return self._says("scontrol", "ping")

    def _accounting_answers(self) -> bool:
        return self._says("sacctmgr", "-n", "list", "cluster")

    def _database_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(f"{self.base}/run/mysql")
            return True
        return False

    def _says(self, *command: str) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                command, env=self.environment, capture_output=True, timeout=_DEADLINE_S / 2, check=False
            )
            return done.returncode == 0
        return False

    # ------------------------------------------------------------------------- configuration

    def _write_configuration(
        self,
        nodes: Sequence[str],
        cpus: int,
        partitions: Sequence[str],
        settings: Mapping[str, object],
    ) -> None:
        host = socket.gethostname().partition(".")[0]
        keys = {**self._settings(host), **settings}
        lines = [f"{key}={value}" for key, value in keys.items() if value != ""]
        lines += [
            f"NodeName={name} NodeHostname={host} NodeAddr={_ADDRESS} Port={port} CPUs={cpus} "
            "RealMemory=64000 State=UNKNOWN"
            for name, port in zip(nodes, self.ports[2:], strict=True)
        ]
        (self.base / "slurm.conf").write_text("\n".join([*lines, *partitions, ""]))
        if self.accounting:
            file = self.base / "slurmdbd.conf"
            file.touch(mode=0o600)
            file.write_text(
                _SLURMDBD.format(base=self.base, user=user_name(), address=_ADDRESS, port=self.ports[1])
            )

    def _write_environment(self) -> None:
        """Say what a job's account has as its environment, for which Slurm else logs in as it, which takes a second."""
        cache = self.base / "state" / "env_cache"
        cache.mkdir(exist_ok=True)
        home = os.environ.get("HOME", "/")
        values = {
            "PATH": os.defpath,
            "HOME": home,
            "USER": user_name(),
            "LOGNAME": user_name(),
            "SHELL": "/bin/sh",
        }
        (cache / user_name()).write_text("".join(f"{key}={value}\n" for key, value in values.items()))

    def _settings(self, host: str) -> dict[str, object]:
        base = self.base
        return {
            "ClusterName": "lab",
            "SlurmctldHost": f"{host}({_ADDRESS})",
            "SlurmctldPort": self.ports[0],
            "SlurmUser": user_name(),
            "SlurmdUser": user_name(),
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            # How long a requeued job waits is as long as its old credential lives; 5 s is the least.
            "AuthInfo": f"socket={self._socket},cred_expire=5",
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "StateSaveLocation": f"{base}/state",
            "SlurmdSpoolDir": f"{base}/spool/%n",
            "SlurmctldPidFile": f"{base}/run/slurmctld.pid",
            "SlurmdPidFile": f"{base}/run/%n.pid",
            "SlurmctldLogFile": f"{base}/log/slurmctld",
            "SlurmdLogFile": f"{base}/log/%n",
            "LogTimeFormat": "iso8601_ms",
            # No control groups, no affinity, no MPI, no mail: an ordinary user can run all of it.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "SwitchType": "switch/none",
            "MailProg": "/bin/true",
            "JobAcctGatherType": "jobacct_gather/none",
            "PropagateResourceLimits": "NONE",
            "SlurmdParameters": "config_overrides",  # nodes claim more than the machine has
            "ReturnToService": 2,
            "GetEnvTimeout": 0,  # see `_write_environment`
            "KillWait": 2,
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "bf_interval=5,bf_continue,batch_sched_delay=0,sched_interval=5,"
            "sched_min_interval=10000",
            "PriorityType": "priority/basic",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "MaxJobCount": 50_000,
            "JobCompType": "jobcomp/none",
            "AccountingStorageType": "accounting_storage/none",
        } | (self._accounting_settings() if self.accounting else {})

    def _accounting_settings(self) -> dict[str, object]:
        return {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": _ADDRESS,
            "AccountingStoragePort": self.ports[1],
            "AccountingStoragePass": self._socket,  # the socket is taken from here, not from AuthInfo
            "AccountingStoreFlags": "job_comment",
        }


_SLURMDBD: Final = """\
AuthType=auth/munge
AuthInfo=socket={base}/run/munge
DbdHost=localhost
DbdAddr={address}
DbdPort={port}
CommunicationParameters=NoInAddrAny
SlurmUser={user}
LogFile={base}/log/slurmdbd
PidFile={base}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=unused
StorageLoc=slurm
"""


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
                    probe.bind((_ADDRESS, port))
        except OSError:  # somebody has it
            name.close()
        else:
            return name, range(first, first + count)
    raise OSError(f"no {count} free ports in {_PORTS}")
