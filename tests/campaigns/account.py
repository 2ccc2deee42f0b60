"""Give an account of a campaign, as a table or as JSON: ``python -m campaigns account DIRECTORY [--json]``.

The verdict is good where no rule is broken and the faults were felt: a campaign in which slurmctld lost nothing proves
nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from attrs import asdict, frozen

from campaigns.evidence import Evidence, gather
from campaigns.rules import RULES, Loss, losses, names_by_birth
from edgecore.models import JobState
from edgecore.reader import HistoryEntry
from edgecore.states import AT_BATCH_SYSTEM

__all__ = ["Account", "account_of", "as_json", "as_table"]

_SHOWN: Final = 20
"""How many breaches of one rule are printed."""


@frozen(kw_only=True)
class Account:
    """What a campaign came to."""

    counts: Mapping[str, int]
    """What there was, in words -> how many."""
    states: Mapping[str, int]
    """State -> how many jobs ended in it."""
    losses: Sequence[Loss]
    broken: Mapping[str, Sequence[str]]
    """Rule -> what breaks it."""

    @property
    def good(self) -> bool:
        """Tell whether all promises were kept."""
        return not any(self.broken.values())


def account_of(base: Path) -> Account:
    """Read a campaign's directory and judge it."""
    evidence = gather(base)
    return Account(
        counts=_counts(evidence),
        states=dict(sorted(Counter(str(each.job.state) for each in evidence.kept).items())),
        losses=losses(evidence),
        broken={rule: list(check(evidence)) for rule, check in RULES.items()},
    )


def _counts(evidence: Evidence) -> Mapping[str, int]:
    moves = [pair for kept in evidence.kept for pair in pairwise(kept.history)]
    after = [after for before, after in moves if before.state is JobState.SUBMITTING]
    notes = [note for kept in evidence.kept for note in kept.notes.values()]
    first = {(each.name, each.sequence) for each in evidence.statuses}
    return {
        **evidence.faults,
        "slurmctld starts": len(evidence.cluster.starts),
        "job numbers that Slurm gave out again": len(evidence.cluster.reissued()),
        "jobs that Slurm took and nobody was told": _taken_untold(evidence),
        "definitions asked for": len(evidence.asked),
        "of these to be cancelled": len(evidence.cancelled),
        "attempts": sum(len(each.attempts) for each in evidence.kept),
        "submissions that were answered": sum(each.number is not None for each in evidence.submissions),
        "submissions without an answer whose job was found": sum(map(_is_adopted, after)),
        "attempts that were revoked and made anew": sum("never started" in each.message for _, each in moves),
        "executions": len(evidence.executions),
        "executions with an end": sum(each.ended is not None for each in evidence.executions),
        "late starts that found their token revoked": sum(note.count("found revoked") for note in notes),
        "second starts by Slurm that abstained": sum(note.count("found running") for note in notes),
        "status messages": len(first),
        "of these came twice": len(evidence.statuses) - len(first),
        "strangers' jobs": len(evidence.asked_strangers),
    }


def _is_adopted(entry: HistoryEntry) -> bool:
    """Tell whether an attempt got to Slurm other than by the answer to its submission."""
    at_slurm = entry.state in AT_BATCH_SYSTEM or entry.state is JobState.EXECUTION_FINISHED
    return at_slurm and not entry.message.startswith("batch id ")


def _taken_untold(evidence: Evidence) -> int:
    """Count the jobs whose sbatch was killed before it could say what it had done."""
    return sum(map(len, evidence.cluster.births.values())) - len(names_by_birth(evidence))


def as_json(account: Account) -> str:
    """Return the account for programs."""
    return json.dumps({"good": account.good, **asdict(account)}, indent=1)


def as_table(account: Account) -> str:
    """Return the account for people."""
    return "\n".join(_lines(account))


def _lines(account: Account) -> Iterator[str]:
    width = max(map(len, (*account.counts, *account.broken)))
    yield "What happened"
    for words, count in account.counts.items():
        yield f"  {words:<{width}}  {count:>6}"
    yield "Jobs by state"
    for state, count in account.states.items():
        yield f"  {state:<{width}}  {count:>6}"
    yield "Executions without an end, and how Slurm lost them"
    for loss in account.losses:
        yield f"  {loss.job} (attempt {loss.attempt}, batch id {loss.batch_id}): {loss.state}: {loss.proof or '?'}"
    yield "What must hold"
    for rule, breaches in account.broken.items():
        yield f"  {rule:<{width}}  {'broken' if breaches else 'kept':>6}"
        yield from (f"      {each}" for each in breaches[:_SHOWN])
        if len(breaches) > _SHOWN:
            yield f"      and {len(breaches) - _SHOWN} more"
    yield f"Verdict: {'each job exactly once' if account.good else 'BROKEN'}"
