"""Look for trouble with Slurm, changing nothing: commands, versions, controller, partitions, accounts, accounting."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from edgecore.commands import CommandResult
from edgecore.errors import SchedulerUnavailable
from edgecore.models import Demands, Finding, Level
from edgecore_slurm.accounts import account_findings
from edgecore_slurm.partitions import parse_partitions, partition_findings, partition_of
from edgecore_slurm.text import parse_configuration

__all__ = ["examine"]

_COMMANDS: Final = ("sbatch", "squeue", "scancel", "scontrol")
_TESTED: Final = "22.05"
"""The release of Slurm with which this driver was tested."""


def examine(
    run: Callable[[Sequence[str]], CommandResult],
    which: Callable[[str], str | None],
    *,
    accounting: bool,
    max_array: int,
    poll_interval_s: float,
    demands: Demands,
    user: str,
    groups: Collection[str],
) -> Iterator[Finding]:
    """Yield what is right and wrong; *run* may raise SchedulerUnavailable.

    *groups* are those of *user*; none where Slurm lets it in everywhere.
    """
    missing = [name for name in (*_COMMANDS, *(("sacct",) if accounting else ())) if which(name) is None]
    if missing:
        words = f"not found: {', '.join(missing)}"
        remedy = "install Slurm's commands, or set commands_directory"
        yield Finding("commands", Level.FAILURE, words, remedy)
        return
    yield Finding("commands", Level.OK, f"found, such as {which('sbatch')}")
    settings = _settings(run)
    if isinstance(settings, str):
        remedy = "see that slurmctld runs, that munge runs here, and that SLURM_CONF is in [environment] if it is needed"
        yield Finding("controller", Level.FAILURE, settings, remedy)
        return
    cluster, version = settings.get("ClusterName", "?"), settings.get("SLURM_VERSION", "?")
    yield Finding("controller", Level.OK, f"of cluster {cluster} answers, Slurm {version}")
    yield from _version_findings(run, version)
    yield from _array_findings(settings, max_array)
    yield from _place_findings(run, settings, demands, user, groups)
    yield from _accounting_findings(run, settings, accounting, poll_interval_s)


def _settings(run: Callable[[Sequence[str]], CommandResult]) -> Mapping[str, str] | str:
    """Return the controller's settings, or why there are none."""
    try:
        result = run(["scontrol", "show", "config"])
    except SchedulerUnavailable as error:
        return str(error)
    settings = parse_configuration(result.text)
    return settings if result.exit_code == 0 and settings else result.complaint()


def _version_findings(run: Callable[[Sequence[str]], CommandResult], controller: str) -> Iterator[Finding]:
    """Compare the commands with the controller, which serves those of its own release and of a few before it."""
    try:
        said = run(["sbatch", "--version"]).text
    except SchedulerUnavailable as error:
        said = str(error)
    commands = re.search(r"\d+\.\d+\S*", said)
    if commands is None:
        return  # what cannot run was told of by the query
    words = f"commands {commands[0]}, controller {controller}"
    if _release(commands[0]) > _release(controller) > (0, 0):
        remedy = "use the cluster's own commands, by commands_directory or PATH: newer ones are not answered reliably"
        yield Finding("versions", Level.WARNING, f"{words}: the commands are newer", remedy)
    else:
        tested = "" if controller.startswith(_TESTED) else f"; this driver was tested with {_TESTED} only"
        yield Finding("versions", Level.OK, f"{words}{tested}")


def _release(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _place_findings(
    run: Callable[[Sequence[str]], CommandResult],
    settings: Mapping[str, str],
    demands: Demands,
    user: str,
    groups: Collection[str],
) -> Iterator[Finding]:
    """Yield whether jobs get into their partition, under their account, with what they may ask for."""
    try:
        result = run(["scontrol", "--all", "--oneliner", "show", "partition"])
        words = result.complaint() if result.exit_code != 0 else ""
    except SchedulerUnavailable as error:
        words = str(error)
    if words:
        yield Finding("partition", Level.WARNING, f"not seen: {words}", "try: scontrol show partition")
        return
    partitions = parse_partitions(result.text)
    enforced = settings.get("EnforcePartLimits", "NO") != "NO"
    yield from partition_findings(partitions, demands, groups, enforced=enforced)
    ours = {name: partitions[name] for name in partition_of(partitions, demands.queue) if name in partitions}
    yield from account_findings(run, settings, ours, demands, user=user)


def _array_findings(settings: Mapping[str, str], max_array: int) -> Iterator[Finding]:
    size = settings.get("MaxArraySize", "")
    if size.isdecimal() and max_array >= int(size):
        words = f"max_array = {max_array}, and the cluster's MaxArraySize is {size}"
        yield Finding("arrays", Level.WARNING, words, f"set max_array to {max(1, int(size) - 1)}")
    elif size.isdecimal():
        yield Finding("arrays", Level.OK, f"up to {max_array} members; the cluster's MaxArraySize is {size}")


def _accounting_findings(
    run: Callable[[Sequence[str]], CommandResult],
    settings: Mapping[str, str],
    accounting: bool,
    poll_interval_s: float,
) -> Iterator[Finding]:
    """Yield whether what squeue forgets is remembered somewhere."""
    words = _without_accounting(run) if accounting else "accounting = false"
    if not words:
        yield Finding("accounting", Level.OK, f"sacct answers, {settings.get('AccountingStorageType', '?')}")
        return
    age = settings.get("MinJobAge", "").partition(" ")[0]
    if age.isdecimal() and int(age) < 2 * poll_interval_s:
        short = f"{words}, and squeue forgets what ended after {age} s (MinJobAge)"
        yield Finding("accounting", Level.WARNING, short, "lower poll_interval_s, or have slurmdbd set up")
    elif accounting:
        yield Finding(
            "accounting",
            Level.WARNING,
            words,
            "see that slurmdbd runs; where there is none, set accounting = false",
        )
    else:
        yield Finding("accounting", Level.OK, f"not asked; squeue remembers for {age} s what ended")


def _without_accounting(run: Callable[[Sequence[str]], CommandResult]) -> str:
    """Return why sacct does not answer; empty where it does."""
    try:
        result = run(["sacct", "-X", "-n", "-P", "-S", "now", "-o", "JobID"])
    except SchedulerUnavailable as error:
        return str(error)
    return "" if result.exit_code == 0 else result.complaint()
