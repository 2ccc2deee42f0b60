"""Give tests the private Slurm: one per process of pytest, empty and in order at the start of each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from edgecore.processes import user_name
from testbed.slurm import Slurm, running_slurm

__all__ = ["slurm", "slurm_accounting", "slurm_accounting_server", "slurm_server", "slurm_strict"]

_LIMITS: Final = (
    "add account atlas",
    "add account brief MaxWallDurationPerJob=5",
    "add account narrow",
    "add account serial GrpJobs=1",
    "add account small GrpSubmitJobs=2",
    "add account thin MaxTRESPerJob=node=1",
    f"add user {user_name()} account=atlas,brief,narrow,serial,small,thin DefaultAccount=atlas",
    f"modify user {user_name()} where account=narrow set MaxSubmitJobs=1",
    "add qos gold MaxTRESPerUser=cpu=2",
    f"modify user {user_name()} where account=atlas set qos+=gold",
)


@pytest.fixture(scope="session")
def slurm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of four nodes without accounting; skipped where there is none, but not in continuous integration."""
    with running_slurm(tmp_path_factory.mktemp("slurm")) as server:
        yield server


@pytest.fixture
def slurm(slurm_server: Slurm) -> Slurm:
    """The cluster, whatever a test before has done to it."""
    slurm_server.clear()
    return slurm_server


@pytest.fixture(scope="session")
def slurm_accounting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of four nodes with slurmdbd and its database."""
    with running_slurm(tmp_path_factory.mktemp("slurm"), accounting=True) as server:
        yield server


@pytest.fixture
def slurm_accounting(slurm_accounting_server: Slurm) -> Slurm:
    """The cluster with accounting, whatever a test before has done to it."""
    slurm_accounting_server.clear()
    return slurm_accounting_server


@pytest.fixture(scope="session")
def slurm_strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of two nodes of four processors that enforces limits, preempts, and counts memory.

    Accounts: atlas has none; brief takes jobs of 5 minutes, thin of one node; serial runs one at a time; small takes
    two, narrow one. QOS gold is for two processors at a time. What partition urgent needs, batch gives up.
    """
    with running_slurm(
        tmp_path_factory.mktemp("slurm"),
        nodes=2,
        cpus=4,
        accounting=True,
        accounts=_LIMITS,
        partitions=(
            "PartitionName=batch Nodes=ALL Default=YES MaxTime=2-00:00:00 DefaultTime=10 PriorityTier=1",
            "PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10",
            "PartitionName=short Nodes=n1 MaxTime=30",
            "PartitionName=down Nodes=n1 State=DOWN",
            "PartitionName=gone Nodes=n1 State=INACTIVE",
            "PartitionName=closed Nodes=n1 AllowAccounts=other",
        ),
        settings={
            "AccountingStorageEnforce": "associations,limits,qos",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "MaxArraySize": 51,
            "SelectTypeParameters": "CR_CPU_Memory",
            "DefMemPerCPU": 100,
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherParams": "OverMemoryKill",
            "JobAcctGatherFrequency": "task=1",
        },
    ) as server:
        yield server
