"""Lay out the directory of a private Slurm: what each file of its configuration says, and why.

An ordinary user can run it: there are no control groups, no affinity, no mail. Nodes claim more than the machine has.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from edgecore.processes import user_name

__all__ = ["ADDRESS", "PARTITIONS", "Layout"]

ADDRESS: Final = "127.0.0.1"
PARTITIONS: Final = (
    "PartitionName=batch Nodes=ALL Default=YES MaxTime=2-00:00:00 DefaultTime=00:10:00 State=UP",
    "PartitionName=short Nodes=n1 MaxTime=00:30:00 DefaultTime=00:05:00 State=UP",
    "PartitionName=down Nodes=n1 State=DOWN",
)
"""What there is unless a test wants something else."""
_LONGEST_SOCKET: Final = 100
"""Bytes of a path that unix(7) lets a socket have, with a margin."""
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


@frozen(kw_only=True)
class Layout:
    """One cluster's directory."""

    base: Path
    spool: Path
    """Where nodes keep the scripts of jobs, which any account must be able to enter."""
    nodes: Sequence[str]
    cpus: int
    partitions: Sequence[str]
    settings: Mapping[str, object]
    """Keys of slurm.conf that a test wants otherwise; an empty value leaves a key out."""
    ports: Sequence[int]
    """Of slurmctld, slurmdbd, and each node."""
    accounting: bool

    @property
    def socket(self) -> Path:
        """Where munged listens."""
        return self.base / "run" / "munge"

    @property
    def conf(self) -> Path:
        """The slurm.conf."""
        return self.base / "slurm.conf"

    @property
    def munge_key(self) -> Path:
        """The secret of this cluster."""
        return self.base / "state" / "munge.key"

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands and servers need."""
        return {"PATH": os.defpath, "SLURM_CONF": str(self.conf)}

    def write(self) -> None:
        """Make directories and files; what is there already stays."""
        for name in ("run", "log", "bin", "state/env_cache", "state/mysql"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        length = len(os.fsencode(self.socket))
        assert length < _LONGEST_SOCKET, f"too long for a socket: {self.socket}; use a shorter directory"
        if not self.munge_key.exists():
            _write_secret(self.munge_key, secrets.token_bytes(128))
        self._write_environment()
        host = socket.gethostname().partition(".")[0]
        keys = {**self._settings(host), **(self._accounting() if self.accounting else {}), **self.settings}
        lines = [f"{key}={value}" for key, value in keys.items() if value != ""]
        lines += [
            f"NodeName={name} NodeHostname={host} NodeAddr={ADDRESS} Port={port} CPUs={self.cpus} "
            "RealMemory=64000 State=UNKNOWN"
            for name, port in zip(self.nodes, self.ports[2:], strict=True)
        ]
        self.conf.write_text("\n".join([*lines, *self.partitions, ""]))
        if self.accounting:
            words = _SLURMDBD.format(base=self.base, user=user_name(), address=ADDRESS, port=self.ports[1])
            _write_secret(self.base / "slurmdbd.conf", words.encode())

    def _write_environment(self) -> None:
        """Say what environment an account has, for which Slurm would log in as it, which takes a second per job."""
        user = user_name()
        values = {
            "PATH": os.defpath,
            "HOME": str(Path.home()),
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/sh",
        }
        file = self.base / "state" / "env_cache" / user
        file.write_text("".join(f"{key}={value}\n" for key, value in values.items()))

    def _settings(self, host: str) -> dict[str, object]:
        base, user = self.base, user_name()
        return {
            "ClusterName": "lab",
            "SlurmctldHost": f"{host}({ADDRESS})",
            "SlurmctldPort": self.ports[0],
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            # What is requeued waits until its old credential has expired; less than 5 s is not taken.
            "AuthInfo": f"socket={self.socket},cred_expire=5",
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "StateSaveLocation": f"{base}/state",
            "SlurmdSpoolDir": f"{self.spool}/%n",
            "SlurmctldPidFile": f"{base}/run/slurmctld.pid",
            "SlurmdPidFile": f"{base}/run/%n.pid",
            "SlurmctldLogFile": f"{base}/log/slurmctld",
            "SlurmdLogFile": f"{base}/log/%n",
            "LogTimeFormat": "iso8601_ms",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "SwitchType": "switch/none",
            "MailProg": "/bin/true",
            "JobAcctGatherType": "jobacct_gather/none",
            "PropagateResourceLimits": "NONE",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": 2,
            "GetEnvTimeout": 0,  # see `_write_environment`
            "KillWait": 2,
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "bf_interval=1,bf_continue,batch_sched_delay=0,sched_interval=1,"
            "sched_min_interval=10000",
            "PriorityType": "priority/basic",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "MaxJobCount": 50_000,
            "JobCompType": "jobcomp/none",
            "AccountingStorageType": "accounting_storage/none",
        }

    def _accounting(self) -> dict[str, object]:
        return {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": ADDRESS,
            "AccountingStoragePort": self.ports[1],
            "AccountingStoragePass": self.socket,  # from here, not from AuthInfo, comes munge's socket
            "AccountingStoreFlags": "job_comment",
        }


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
