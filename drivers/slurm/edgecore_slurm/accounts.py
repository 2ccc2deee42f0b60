"""Look whether Slurm's accounting lets the service's account submit under the project that jobs name.

Only where Slurm enforces associations does a wrong account show at all: elsewhere it takes any name, and nobody can
tell a right one from a wrong one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Final

from attrs import frozen

from edgecore.commands import CommandResult
from edgecore.errors import SchedulerUnavailable
from edgecore.models import Demands, Finding, Level
from edgecore_slurm.partitions import Partition, minutes_of, over, takes

__all__ = ["Association", "account_findings", "parse_associations"]

_ENFORCING: Final = frozenset({"all", "associations", "limits", "qos", "safe", "wckeys"})
"""slurm.conf(5), AccountingStorageEnforce: each of them implies associations."""
_SUBJECT: Final = "account"


@frozen(kw_only=True)
class Association:
    """Who may submit where: one line of ``sacctmgr show assoc``."""

    account: str
    partition: str
    """Empty for all."""
    max_minutes: float
    max_nodes: float


def parse_associations(output: str) -> Sequence[Association]:
    """Read ``sacctmgr -n -P show assoc format=Account,Partition,MaxWall,MaxTRES``; other lines are passed over."""
    fields = (line.split("|") for line in output.splitlines())
    return [
        Association(
            account=each[0], partition=each[1], max_minutes=minutes_of(each[2]), max_nodes=_nodes(each[3])
        )
        for each in fields
        if len(each) == 4 and each[0]
    ]


def _nodes(tres: str) -> float:
    found = re.search(r"(?:^|,)node=(\d+)", tres)
    return int(found[1]) if found else math.inf


def account_findings(
    run: Callable[[Sequence[str]], CommandResult],
    settings: Mapping[str, str],
    partitions: Mapping[str, Partition],
    demands: Demands,
    *,
    user: str,
) -> Iterator[Finding]:
    """Yield whether *user* may submit under the account of a job that names none to *partitions*, its own by default."""
    enforced = {word.strip().lower() for word in settings.get("AccountingStorageEnforce", "").split(",")}
    if not enforced & _ENFORCING:
        given = "" if demands.project is None else f"; whether {demands.project} is right cannot be seen"
        yield Finding(_SUBJECT, Level.OK, f"Slurm enforces no accounts here: it takes any name{given}")
        return
    try:
        own = _asked(run, "assoc", user, "Account,Partition,MaxWall,MaxTRES", settings.get("ClusterName"))
        default = _asked(run, "user", user, "DefaultAccount")
    except SchedulerUnavailable as error:
        words = f"Slurm enforces accounts, and it cannot be seen which {user} may use: {error}"
        remedy = f"have sacctmgr and slurmdbd put right, or ask the cluster's operators: sacctmgr show assoc user={user}"
        yield Finding(_SUBJECT, Level.WARNING, words, remedy)
        return
    first = default.strip().partition("\n")[0]
    yield from _judged(parse_associations(own), demands.project or first, partitions, demands, user, enforced)


def _asked(
    run: Callable[[Sequence[str]], CommandResult],
    what: str,
    user: str,
    columns: str,
    cluster: str | None = None,
) -> str:
    """Ask the accounting. Raises SchedulerUnavailable."""
    only = [f"cluster={cluster}"] if cluster else []
    result = run(["sacctmgr", "-n", "-P", "show", what, f"user={user}", *only, f"format={columns}"])
    if result.exit_code != 0:
        raise SchedulerUnavailable(result.complaint())
    return result.text


def _judged(
    associations: Sequence[Association],
    account: str,
    partitions: Mapping[str, Partition],
    demands: Demands,
    user: str,
    enforced: Set[str],
) -> Iterator[Finding]:
    add = f"have it added: sacctmgr add user {user} account={account or 'ACCOUNT'}"
    accounts = sorted({each.account for each in associations})
    if not accounts:
        yield Finding(
            _SUBJECT, Level.FAILURE, f"Slurm knows no account for {user}: every job is refused", add
        )
        return
    if account not in accounts:
        given = f"[defaults] project = {account}" if account else "no project by default"
        words = f"{given}; {user} may use {', '.join(accounts)}"
        yield Finding(_SUBJECT, Level.FAILURE, words, f"correct [defaults] project, or {add}")
        return
    ours = [each for each in associations if each.account == account]
    trouble = [
        finding for name in partitions for finding in _in_partition(name, partitions[name], ours, account)
    ]
    if enforced & {"all", "limits", "safe"}:
        trouble += _limits(ours, account, partitions, demands)
    yield from trouble or [Finding(_SUBJECT, Level.OK, f"{user} may use {account}{_others(accounts)}")]


def _others(accounts: Sequence[str]) -> str:
    return f", of {', '.join(accounts)}" if len(accounts) > 1 else ""


def _in_partition(
    name: str, settings: Partition, ours: Sequence[Association], account: str
) -> Iterator[Finding]:
    remedy = "have that changed, or set another [defaults] project or queue"
    if not any(each.partition in ("", name) for each in ours):
        places = ", ".join(sorted(each.partition for each in ours))
        words = f"{account} may be used in the partition {places} only, and jobs go to {name}"
        yield Finding(_SUBJECT, Level.FAILURE, words, remedy)
    if not takes(settings.get("AllowAccounts", "ALL"), [account]):
        words = f"the partition {name} takes jobs of {settings['AllowAccounts']} only, and not of {account}"
        yield Finding(_SUBJECT, Level.FAILURE, words, remedy)
    if "DenyAccounts" in settings and takes(settings["DenyAccounts"], [account]):
        yield Finding(_SUBJECT, Level.FAILURE, f"the partition {name} takes no jobs of {account}", remedy)


def _limits(
    ours: Sequence[Association], account: str, partitions: Mapping[str, Partition], demands: Demands
) -> Iterator[Finding]:
    """Compare with the association that counts: that of the partition, else the one for all."""
    counting = [each for each in ours if each.partition in partitions]
    for each in counting or [each for each in ours if not each.partition]:
        gives = f"{account} gives one job at most"
        yield from over(_SUBJECT, demands.num_nodes, each.max_nodes, f"{gives} {{}} nodes")
        yield from over(_SUBJECT, demands.wall_time_minutes, each.max_minutes, f"{gives} {{}} minutes")
