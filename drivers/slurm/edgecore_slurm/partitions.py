"""Compare what a site lets jobs ask for with what Slurm's partitions give.

What does not fit is found here before a job finds it out: Slurm refuses such a job or, unless EnforcePartLimits is
set, takes it and never starts it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from edgecore.models import Demands, Finding, Level

__all__ = ["minutes_of", "over", "parse_partitions", "partition_findings", "partition_of", "takes"]

Partition = Mapping[str, str]

_STATES: Final[Mapping[str, str]] = {
    "DOWN": "it takes jobs and starts none",
    "DRAIN": "it refuses jobs, and starts those that it has",
    "INACTIVE": "it refuses jobs and starts none",
}
"""scontrol(1), "State" of a partition, but UP."""
_TIME: Final = re.compile(r"(?:(\d+)-)?(\d+):(\d+):(\d+)")
_ASK: Final = "ask the cluster's operators, or name another partition in [defaults] queue"


def parse_partitions(output: str) -> Mapping[str, Partition]:
    """Return name -> settings from ``scontrol --oneliner show partition``; lines of another kind are passed over."""
    found = {}
    for line in output.splitlines():
        settings: dict[str, str] = {}
        for word in line.split():
            key, mark, value = word.partition("=")
            if mark:
                settings[key] = value
        if name := settings.get("PartitionName"):
            found[name] = settings
    return found


def partition_of(partitions: Mapping[str, Partition], queue: str | None) -> Sequence[str]:
    """Return the partitions that a job gets which names none; Slurm's default where the site has none."""
    if queue is not None:
        return queue.split(",")
    return [name for name, settings in partitions.items() if settings.get("Default") == "YES"]


def partition_findings(
    partitions: Mapping[str, Partition], demands: Demands, groups: Collection[str], *, enforced: bool
) -> Iterator[Finding]:
    """Yield what is right and wrong with the partitions that jobs get by default.

    *groups* are those of the service's account, none where any will do; *enforced* says whether Slurm refuses
    what is over a limit.
    """
    names = partition_of(partitions, demands.queue)
    if not names:
        words = "[defaults] queue names none, and Slurm has no default: a job that names none is refused"
        yield Finding("partition", Level.WARNING, words, f"set [defaults] queue: {_listed(partitions)}")
    for name in names:
        if name not in partitions:
            words = f"[defaults] queue = {demands.queue}: Slurm shows no partition {name}"
            remedy = f"correct it ({_listed(partitions)}), or ask the cluster's operators"
            yield Finding("partition", Level.FAILURE, words, remedy)
            continue
        trouble = [
            *_state(name, partitions[name]),
            *_who(name, partitions[name], groups),
            *_limits(name, partitions[name], demands, enforced=enforced),
        ]
        yield from trouble or [Finding("partition", Level.OK, f"{name} is up: {_given(partitions[name])}")]


def _listed(partitions: Mapping[str, Partition]) -> str:
    return f"there are {', '.join(partitions)}" if partitions else "there is none"


def _state(name: str, settings: Partition) -> Iterator[Finding]:
    state = settings.get("State", "UP").rstrip("*+")
    if state != "UP":
        words = f"{name} is {state}: {_STATES.get(state, 'which is not known here')}"
        yield Finding(
            f"partition {name}", Level.WARNING, words, f"wait for the end of a maintenance, or {_ASK}"
        )
    if settings.get("TotalNodes") == "0":
        yield Finding(f"partition {name}", Level.WARNING, f"{name} has no nodes", _ASK)


def _who(name: str, settings: Partition, groups: Collection[str]) -> Iterator[Finding]:
    allowed = settings.get("AllowGroups", "ALL")
    if groups and not takes(allowed, groups):
        words = (
            f"{name} takes jobs of the groups {allowed} only; this account is in {', '.join(sorted(groups))}"
        )
        yield Finding(f"partition {name}", Level.WARNING, words, f"have the account put into one, or {_ASK}")
    if groups and settings.get("RootOnly") == "YES":
        yield Finding(f"partition {name}", Level.WARNING, f"{name} takes jobs of root only", _ASK)
    if settings.get("ReqResv") == "YES":
        words = f"{name} takes only jobs that name a reservation"
        remedy = f"offer the option: [scheduling.options.reservation]; or {_ASK}"
        yield Finding(f"partition {name}", Level.WARNING, words, remedy)


def takes(allowed: str, names: Collection[str]) -> bool:
    """Tell whether one of *names* is on a list of Slurm's, such as AllowAccounts."""
    return allowed in ("ALL", "(null)") or not set(allowed.lower().split(",")).isdisjoint(
        map(str.lower, names)
    )


def _limits(name: str, settings: Partition, demands: Demands, *, enforced: bool) -> Iterator[Finding]:
    then = "such a job is refused" if enforced else "such a job waits, and fails after [timing] stuck_after_s"
    subject = f"partition {name}"
    gives = f"{name} gives one job at most"
    yield from over(subject, demands.num_nodes, _most_nodes(settings), f"{gives} {{}} nodes: {then}")
    minutes = minutes_of(settings.get("MaxTime", ""))
    yield from over(subject, demands.wall_time_minutes, minutes, f"{gives} {{}} minutes: {then}")
    least = settings.get("MinNodes", "")
    default = demands.num_nodes.get("[defaults] num_nodes")
    if default is not None and least.isdecimal() and default < int(least):
        words = (
            f"[defaults] num_nodes = {default:,}; {name} takes no job with fewer than {int(least):,} nodes"
        )
        yield Finding(subject, Level.WARNING, words, f"raise [defaults] num_nodes to {least}, or {_ASK}")


def over(subject: str, asked: Mapping[str, int], most: float, words: str) -> Iterator[Finding]:
    """Yield a warning for whatever lets jobs ask for more than *most*, which *words* have a place for."""
    for what, number in asked.items():
        if number > most:
            said = f"{what} = {number:,}; {words.format(f'{most:,.0f}')}"
            yield Finding(
                subject, Level.WARNING, said, f"lower {what} to {most:.0f}, or have the limit raised"
            )


def _most_nodes(settings: Partition) -> float:
    """Return the nodes of the largest job; a partition without nodes is told of elsewhere."""
    found = (settings.get("MaxNodes", ""), settings.get("TotalNodes", ""))
    return min((int(word) for word in found if word.isdecimal() and int(word)), default=math.inf)


def minutes_of(text: str) -> float:
    """Return a limit in minutes, from ``[DAYS-]HH:MM:SS``; infinite for UNLIMITED and what is no time."""
    found = _TIME.fullmatch(text)
    if found is None:
        return math.inf
    days, hours, minutes, seconds = (int(number or 0) for number in found.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def _given(settings: Partition) -> str:
    nodes, minutes = _most_nodes(settings), minutes_of(settings.get("MaxTime", ""))
    some = "any number of" if math.isinf(nodes) else f"at most {nodes:,.0f}"
    return f"{some} nodes and {'any number of' if math.isinf(minutes) else f'{minutes:,.0f}'} minutes for one job"
