"""Run Slurm's commands, and answer the hooks of the role with what they print.

The driver keeps nothing: a new one, in a new process, gives the same answers about old jobs. One squeue is a look
at everything; sacct is asked for what squeue leaves out, and does not have to be there.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, TypeVar

from attrs import define, evolve, field

from edgecore.commands import CommandNotFound, CommandResult, run
from edgecore.errors import ConfigurationError, Problem, SchedulerUnavailable
from edgecore.hookspecs import Scheduling, hookimpl
from edgecore.models import (
    Answer,
    Between,
    Closed,
    Demands,
    Finding,
    Group,
    NativeState,
    Observation,
    Reference,
    Refusal,
    Refused,
    SchedulingProfile,
    SiteContext,
    SubmissionAnswer,
    Submitted,
)
from edgecore.processes import group_names, user_name
from edgecore_slurm import text
from edgecore_slurm.examining import examine

__all__ = ["SlurmScheduling"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_LONG_BEFORE_US = 3600 * 1_000_000
"""A job that was queued so long before ours, whatever the clocks say, is another one."""
_AT_ONCE = 500
"""How many jobs one command names."""
_VERSION_TIMEOUT_S = 5.0
_EXAMINED_S = 12.0
"""More than Slurm's commands wait for a controller that is away."""
_BATCH_ID = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"


@define(eq=False)
class SlurmScheduling(Scheduling):
    """Submit to Slurm. The fields are the keys of ``[scheduling]``."""

    commands_directory: str = ""
    """Where Slurm's commands are; by default they are found on the PATH of ``[environment]``."""
    timeout_s: Annotated[float, Between(0.1, 3600)] = 60.0
    """Seconds after which a command that gives no answer is killed; more than Slurm's own MessageTimeout."""
    poll_interval_s: Annotated[float, Between(0.01, 86_400)] = 30.0
    """Seconds between two listings."""
    max_array: Annotated[int, Between(1, 100_000)] = 1000
    """Most members of a job array; less than the cluster's MaxArraySize, which is 1001 by default."""
    accounting: bool = True
    """Whether to ask sacct about what squeue shows no more, and how failed jobs ended."""
    accounting_days: Annotated[int, Between(1, 3650)] = 30
    """How far back sacct is asked; the database may refuse longer times (MaxQueryTimeRange)."""

    _environment: Mapping[str, str] = field(init=False, factory=dict, repr=False)
    _demands: Demands = field(init=False, factory=Demands, repr=False)
    _strange: set[str] = field(init=False, factory=set, repr=False)
    _unaccounted: bool = field(init=False, default=False, repr=False)

    @hookimpl
    def open(self, site: SiteContext) -> SchedulingProfile:
        """Look for the commands; the controller is asked nothing yet."""
        path = site.environment.get("PATH", os.defpath)
        path = f"{self.commands_directory}:{path}" if self.commands_directory else path
        self._environment, self._demands = {**site.environment, "PATH": path}, site.demands
        if shutil.which("sbatch", path=path) is None:
            allowed = "install Slurm's commands, or set commands_directory, or PATH in [environment] set"
            raise ConfigurationError(
                "scheduling driver slurm", [Problem("commands_directory", f"no sbatch on {path}", allowed)]
            )
        return SchedulingProfile(
            batch_id_text=_BATCH_ID,
            max_group=self.max_array,
            poll_interval_s=self.poll_interval_s,
            version=self._version(),
        )

    @hookimpl
    def submit(self, group: Group) -> Mapping[str, SubmissionAnswer]:
        """Queue a job, or an array of jobs; halve an array that is over a limit as a whole."""
        foreign = text.foreign_options(group.options)
        if foreign:
            words = f"options that are not a user's to set: {', '.join(foreign)}; remove them from [scheduling.options]"
            return _all_refused(group, Refused(kind=Refusal.PERMANENT, reason=words))
        return self._submitted(group)

    @hookimpl
    def observe(self, references: Sequence[Reference]) -> Mapping[str, Observation]:
        """Ask for one listing, and for the accounting of what it leaves out."""
        found = _matching(self._listed(), references)
        asked = [r for r in references if r.tag not in found or _says_little(found[r.tag])]
        if asked:
            since_s = min(r.submitted for r in asked) // 1_000_000 - 3600
            for tag, seen in _matching(self._ended(since_s), asked).items():
                found[tag] = _both(found[tag], seen) if tag in found else seen
        return found

    @hookimpl
    def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        """Look for names in the listing, and in the accounting of the last days."""
        listed = self._listed()
        ended: dict[str, Observation] = {}
        for names in _chunks(tags):
            ended |= self._ended(0, names)
        found: dict[str, list[Observation]] = defaultdict(list)
        for seen in {**ended, **listed}.values():
            found[seen.name].append(seen)
        return {tag: found[tag] for tag in tags if tag in found}

    @hookimpl
    def cancel(self, references: Sequence[Reference]) -> Answer:
        """End what a listing shows to be ours; what it does not show is none to end.

        scancel could be told the name, too, but then takes members of an array that waits for the whole array.
        """
        ids = [seen.batch_id for seen in self._alive(references).values()]
        for some in _chunks(ids):
            self._act(["scancel", *some])
        return Answer(accepted=tuple(reference.tag for reference in references))

    @hookimpl
    def hold(self, references: Sequence[Reference]) -> Answer:
        """Hold jobs that wait; refused for what runs, which Slurm would hold when it is queued again."""
        alive = self._alive(references)
        refused = {
            tag: f"job {seen.batch_id} is {seen.native_state}; only a job that waits can be held"
            for tag, seen in alive.items()
            if seen.state is NativeState.RUNNING
        }
        ids = {seen.batch_id: tag for tag, seen in alive.items() if tag not in refused}
        for some in _chunks(ids):
            complaints = self._act(["scontrol", "hold", ",".join(some)])
            refused |= {ids[one]: why for one, why in complaints.items() if "pending" in why and one in ids}
        return Answer(accepted=tuple(r.tag for r in references if r.tag not in refused), refused=refused)

    @hookimpl
    def release(self, references: Sequence[Reference]) -> Answer:
        """Release held jobs; what is not held needs none."""
        alive = self._alive(references).values()
        for some in _chunks(seen.batch_id for seen in alive if seen.state is not NativeState.RUNNING):
            self._act(["scontrol", "release", ",".join(some)])
        return Answer(accepted=tuple(reference.tag for reference in references))

    @hookimpl
    def diagnose(self) -> Sequence[Finding]:
        """Ask whether the commands are there, the controller answers, and what is set up how."""
        return tuple(
            examine(
                self._examined,
                lambda name: shutil.which(name, path=self._environment["PATH"]),
                accounting=self.accounting,
                max_array=self.max_array,
                poll_interval_s=self.poll_interval_s,
                demands=self._demands,
                user=user_name(),
                groups=frozenset() if os.geteuid() == 0 else group_names(),
            )
        )

    @hookimpl
    def close(self) -> Closed:
        """Give back nothing: there is no connection."""
        return Closed()

    # --------------------------------------------------------------------------- submitting

    def _submitted(self, group: Group) -> Mapping[str, SubmissionAnswer]:
        first = group.submissions[0]
        script = first.script
        if first.index is not None:
            script = first.directory / "group.sh"
            script.write_text(text.dispatch_script(group.submissions))
        result = self._run(text.submit_command(group, script), self._environment)
        number = text.parse_submit(result.text)
        if number is not None:  # whatever the exit code
            ids = {s.tag: number if s.index is None else f"{number}_{s.index}" for s in group.submissions}
            return {tag: Submitted(batch_id=batch_id) for tag, batch_id in ids.items()}
        complaint = result.complaint()
        kind = text.parse_refusal(result.errors.decode("utf-8", "replace"))
        if kind is None:
            raise SchedulerUnavailable(f"slurm: no clear answer: {complaint}")
        if kind is Refusal.TRANSIENT and len(group.submissions) > 1:
            return self._halves(group)
        return _all_refused(group, Refused(kind=kind, reason=complaint))

    def _halves(self, group: Group) -> Mapping[str, SubmissionAnswer]:
        """Submit what fits below a limit, for which an array counts as many jobs."""
        middle = len(group.submissions) // 2
        front, back = (
            evolve(group, submissions=some)
            for some in (group.submissions[:middle], group.submissions[middle:])
        )
        answers = dict(self._submitted(front))
        refusal = next((answer for answer in answers.values() if isinstance(answer, Refused)), None)
        if refusal is not None:
            return {**_all_refused(back, refusal), **answers}
        try:
            return {**answers, **self._submitted(back)}
        except SchedulerUnavailable as error:  # of these, the outcome is not known
            log.warning("half of the array %s has no answer: %s", group.tag, error)
            return answers

    # ------------------------------------------------------------------------- the commands

    def _run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> CommandResult:
        """Run a command to its end, with times in UTC. Raises SchedulerUnavailable when it has none."""
        try:
            return self._answered(
                run(
                    arguments,
                    timeout_s=timeout_s or self.timeout_s,
                    environment=environment or {**self._environment, "TZ": "UTC"},
                )
            )
        except CommandNotFound as error:
            raise SchedulerUnavailable(f"slurm: {error}") from error

    def _examined(self, arguments: Sequence[str]) -> CommandResult:
        """Run a command that tells how things are; several of them must fit into the time of an examination."""
        return self._run(arguments, timeout_s=min(self.timeout_s, _EXAMINED_S))

    def _answered(self, result: CommandResult) -> CommandResult:
        if result.timed_out:
            raise SchedulerUnavailable(f"slurm: {result.complaint()}")
        return result

    def _version(self) -> str:
        """Return what sbatch says of itself, which it knows without the controller."""
        try:
            result = run(["sbatch", "--version"], timeout_s=_VERSION_TIMEOUT_S, environment=self._environment)
        except CommandNotFound:
            return ""
        return result.text.strip() if result.exit_code == 0 else ""

    def _listed(self) -> dict[str, Observation]:
        result = self._run(text.listing_command(user_name()))
        return self._jobs(result, text.parse_listing(result.output))

    def _ended(self, since_s: int, names: Sequence[str] = ()) -> dict[str, Observation]:
        """Return what ended, as far as the accounting knows, which may be late, off or away."""
        if not self.accounting:
            return {}
        since_s = max(since_s, int(time.time()) - self.accounting_days * 86_400)
        try:
            result = self._run(text.accounting_command(user_name(), since_s, names))
            jobs = self._jobs(result, text.parse_accounting(result.output))
        except SchedulerUnavailable as error:
            if not self._unaccounted:
                log.warning("going on without accounting: %s", error)
            self._unaccounted = True
            return {}
        if self._unaccounted:
            log.info("accounting answers again")
        self._unaccounted = False
        return {key: seen for key, seen in jobs.items() if seen.state is NativeState.ENDED}

    def _jobs(self, result: CommandResult, jobs: Mapping[str, Observation] | None) -> dict[str, Observation]:
        if result.exit_code != 0 or jobs is None:
            raise SchedulerUnavailable(f"slurm: no listing: {result.complaint()}")
        for seen in jobs.values():
            if seen.state is NativeState.UNKNOWN and seen.native_state not in self._strange:
                self._strange.add(seen.native_state)
                log.warning("job %s is in a state that tells nothing: %r", seen.batch_id, seen.native_state)
        us = user_name()
        return {key: seen for key, seen in jobs.items() if seen.owner == us}

    def _alive(self, references: Sequence[Reference]) -> dict[str, Observation]:
        """Return what is still ours and has not ended: scancel and scontrol take ids alone."""
        known = [reference for reference in references if reference.batch_id is not None]
        found = _matching(self._listed(), known)
        return {tag: seen for tag, seen in found.items() if seen.state is not NativeState.ENDED}

    def _act(self, arguments: Sequence[str]) -> Mapping[str, str]:
        """Ask something of jobs; answers id -> why it was not done. Raises SchedulerUnavailable."""
        result = self._run(arguments)
        if result.exit_code == 0:
            return {}
        complaints = text.parse_complaints(result.errors.decode("utf-8", "replace"))
        if not complaints:
            raise SchedulerUnavailable(f"slurm: {result.complaint()}")
        return complaints


def _all_refused(group: Group, refused: Refused) -> dict[str, SubmissionAnswer]:
    return {submission.tag: refused for submission in group.submissions}


def _chunks(things: Iterable[_T]) -> Iterator[list[_T]]:
    every = list(things)
    return (every[first : first + _AT_ONCE] for first in range(0, len(every), _AT_ONCE))


def _matching(jobs: Mapping[str, Observation], references: Sequence[Reference]) -> dict[str, Observation]:
    """Return which of *jobs* are those of *references*: same id and name, and not much older."""
    found = {}
    for reference in references:
        seen = jobs.get(text.job_key(reference.batch_id or "", reference.group_tag))
        if seen is not None and (seen.queued or 0) + _LONG_BEFORE_US > reference.submitted:
            found[reference.tag] = seen
    return found


def _says_little(seen: Observation) -> bool:
    """Tell whether the accounting may know more of an end: the exit code, or who cancelled it."""
    return seen.native_state in ("FAILED", "CANCELLED")


def _both(listed: Observation, accounted: Observation) -> Observation:
    """Return what both say of one end; what is accounted may be the end of an earlier execution."""
    if (accounted.queued or 0) < (listed.queued or 0):
        return listed
    return evolve(accounted, reason=accounted.reason or listed.reason)
