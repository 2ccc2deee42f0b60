"""Run the commands of the fake batch system, and answer the hooks of the role with what they print.

The driver keeps nothing: a new one, in a new process, gives the same answers about old jobs.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Annotated

from attrs import define, field

from edgecore.commands import CommandNotFound, CommandResult, run
from edgecore.errors import ConfigurationError, Problem, SchedulerUnavailable
from edgecore.hookspecs import Scheduling, hookimpl
from edgecore.models import (
    Answer,
    Between,
    Closed,
    Group,
    NativeState,
    Observation,
    Reference,
    Refused,
    SchedulingProfile,
    SiteContext,
    SubmissionAnswer,
    Submitted,
)
from edgecore.processes import user_name
from edgecore_fake import text

__all__ = ["FakeScheduling"]

log = logging.getLogger(__name__)

_LONG_BEFORE_US = 3600 * 1_000_000
"""A job that was queued so long before ours, whatever the clocks say, is another one."""
_AT_ONCE = 500
"""How many jobs one command names."""


@define(eq=False)
class FakeScheduling(Scheduling):
    """Submit to the fake batch system. The fields are the keys of ``[scheduling]``."""

    commands_directory: str = ""
    """Where the commands are; by default they are found on the PATH of ``[environment]``."""
    timeout_s: Annotated[float, Between(0.1, 3600)] = 60.0
    """Seconds after which a command that gives no answer is killed."""
    poll_interval_s: Annotated[float, Between(0.01, 86_400)] = 30.0
    """Seconds between two listings."""
    accounting: bool = True
    """Whether to ask the accounting about what the listing shows no more."""

    _environment: Mapping[str, str] = field(init=False, factory=dict, repr=False)
    _strange: set[str] = field(init=False, factory=set, repr=False)

    @hookimpl
    def open(self, site: SiteContext) -> SchedulingProfile:
        """Look for the commands; nothing is asked of the batch system yet."""
        path = site.environment.get("PATH", os.defpath)
        path = f"{self.commands_directory}:{path}" if self.commands_directory else path
        self._environment = {**site.environment, "PATH": path}
        if shutil.which("fsub", path=path) is None:
            allowed = "set commands_directory, or PATH in [environment] set"
            raise ConfigurationError(
                "scheduling driver fake", [Problem("commands_directory", f"no fsub on {path}", allowed)]
            )
        return SchedulingProfile(
            batch_id_text="$FAKE_JOB_ID", max_group=1000, poll_interval_s=self.poll_interval_s
        )

    @hookimpl
    def submit(self, group: Group) -> Mapping[str, SubmissionAnswer]:
        """Queue a job, or an array of jobs."""
        first = group.submissions[0]
        script = first.script
        if first.index is not None:
            script = first.directory / "group.sh"
            script.write_text(text.dispatch_script(group.submissions))
        result = self._run(text.submit_command(group, script))
        number = text.parse_submit(result.text)
        if number is not None:  # whatever the exit code
            ids = {s.tag: number if s.index is None else f"{number}_{s.index}" for s in group.submissions}
            return {tag: Submitted(batch_id=batch_id) for tag, batch_id in ids.items()}
        refusal = text.parse_refusal(result.complaint())
        if refusal is None:
            raise SchedulerUnavailable(f"no clear answer: {result.complaint()}")
        refused = Refused(kind=refusal, reason=result.complaint())
        return {submission.tag: refused for submission in group.submissions}

    @hookimpl
    def observe(self, references: Sequence[Reference]) -> Mapping[str, Observation]:
        """Ask for one listing, and for the accounting of what is not in it."""
        found = _matching(self._listed(), references)
        missing = [reference for reference in references if reference.tag not in found]
        if missing:
            found |= _matching(self._ended(min(r.submitted for r in missing)), missing)
        return found

    @hookimpl
    def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        """Look for names in the listing, and in the accounting of all times."""
        listed = self._listed()
        found: dict[str, list[Observation]] = {}
        for seen in {**self._ended(since=0), **listed}.values():
            found.setdefault(seen.name, []).append(seen)
        return {tag: found[tag] for tag in tags if tag in found}

    @hookimpl
    def cancel(self, references: Sequence[Reference]) -> Answer:
        """End jobs; one that has ended, or is not ours any more, is none to end."""
        self._act("fdel", references)
        return Answer(accepted=tuple(reference.tag for reference in references))

    @hookimpl
    def hold(self, references: Sequence[Reference]) -> Answer:
        """Hold jobs that wait; refused for what runs."""
        complaints = self._act("fhold", references)
        refused = {tag: words for tag, words in complaints.items() if words.endswith(" RUN")}
        return Answer(accepted=tuple(r.tag for r in references if r.tag not in refused), refused=refused)

    @hookimpl
    def release(self, references: Sequence[Reference]) -> Answer:
        """Release held jobs; what is not held needs none."""
        self._act("frls", references)
        return Answer(accepted=tuple(reference.tag for reference in references))

    @hookimpl
    def close(self) -> Closed:
        """Give back nothing: there is no connection."""
        return Closed()

    # ------------------------------------------------------------------------- the commands

    def _run(self, arguments: Sequence[str]) -> CommandResult:
        """Run a command to its end. Raises SchedulerUnavailable when it has none."""
        try:
            result = run(arguments, timeout_s=self.timeout_s, environment=self._environment)
        except CommandNotFound as error:
            raise SchedulerUnavailable(f"fake: {error}") from error
        if result.timed_out:
            raise SchedulerUnavailable(f"fake: {result.complaint()}")
        return result

    def _listed(self) -> dict[str, Observation]:
        """Return what waits and runs. Raises SchedulerUnavailable: an empty output is no empty list."""
        return self._jobs(self._run(["fstat", f"--user={user_name()}"]))

    def _ended(self, since: int) -> dict[str, Observation]:
        """Return what ended, as far as the accounting knows, which may be late, off or away."""
        if not self.accounting:
            return {}
        try:
            jobs = self._jobs(
                self._run(["facct", f"--user={user_name()}", f"--since={since // 1_000_000 - 3600}"])
            )
        except SchedulerUnavailable as error:
            log.info("going on without accounting: %s", error)
            return {}
        return {key: seen for key, seen in jobs.items() if seen.state is NativeState.ENDED}

    def _jobs(self, result: CommandResult) -> dict[str, Observation]:
        jobs = text.parse_listing(result.output)
        if result.exit_code != 0 or jobs is None:
            raise SchedulerUnavailable(f"fake: no listing: {result.complaint()}")
        for seen in jobs.values():
            if seen.state is NativeState.UNKNOWN and seen.native_state not in self._strange:
                self._strange.add(seen.native_state)
                log.warning("job %s is in a state that is not known: %r", seen.batch_id, seen.native_state)
        return {key: seen for key, seen in jobs.items() if seen.owner == user_name()}

    def _act(self, command: str, references: Sequence[Reference]) -> Mapping[str, str]:
        """Ask something of jobs by id and name; answers tag -> why it was not done."""
        by_id = {reference.batch_id: reference for reference in references if reference.batch_id is not None}
        named = [text.job_key(batch_id, reference.group_tag) for batch_id, reference in by_id.items()]
        complaints: dict[str, str] = {}
        for first in range(0, len(named), _AT_ONCE):
            result = self._run([command, *named[first : first + _AT_ONCE]])
            said = text.parse_complaints(result.errors.decode("utf-8", "replace"))
            if result.exit_code != 0 and not said:
                raise SchedulerUnavailable(f"fake: {result.complaint()}")
            complaints |= {
                by_id[batch_id].tag: words for batch_id, words in said.items() if batch_id in by_id
            }
        return complaints


def _matching(jobs: Mapping[str, Observation], references: Sequence[Reference]) -> dict[str, Observation]:
    """Return which of *jobs* are those of *references*: same id and name, and not much older."""
    found = {}
    for reference in references:
        seen = jobs.get(text.job_key(reference.batch_id or "", reference.group_tag))
        if seen is not None and (seen.queued or 0) + _LONG_BEFORE_US > reference.submitted:
            found[reference.tag] = seen
    return found
