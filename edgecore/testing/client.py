"""Ask a scheduling driver in this process, as a service does, with scripts of the test's own."""

from __future__ import annotations

import os
import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field

from edgecore import batch
from edgecore.drivers import SchedulingRelay, open_scheduling
from edgecore.models import Group, NativeState, Observation, Reference, SiteContext, Submission, Submitted
from edgecore.testing.batch_system import BatchSystem
from edgecore.testing.checks import TypeChecked
from edgecore.testing.site import DEADLINE_S, wait_for

__all__ = ["MARK", "Client", "references_of", "started_processes"]

MARK: Final = "EDGECORE_CONTRACT"
"""A variable of the environment that is handed to the driver's commands."""
_ids: Final = count(time.time_ns() // 1000)


@define(eq=False)
class Client:
    """A driver, opened, and the directory in which its jobs have their scripts."""

    driver: str
    system: BatchSystem
    base: Path
    mark: str = field(factory=lambda: uuid.uuid4().hex)
    relay: SchedulingRelay = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.base.mkdir(exist_ok=True)
        self.relay = self.open()

    def open(self) -> SchedulingRelay:
        """Open another driver object, as a service that starts does; it replaces the one before."""
        environment = {"PATH": os.defpath, **self.system.environment, MARK: self.mark}
        site = SiteContext(site="testsite", work_directory=self.base, environment=environment)
        self.relay = open_scheduling(self.driver, self.system.settings, site, layers=(TypeChecked(),))
        return self.relay

    # ------------------------------------------------------------------------------ submitting

    def group(self, number: int = 1, text: str = "exit 0", **more: Any) -> Group:
        """Make a group of *number* submissions whose script is *text*, in their own run directories."""
        tags = [batch.attempt_tag(next(_ids), 1) for _ in range(number)]
        submissions = tuple(
            self._submission(tag, text, index if number > 1 else None) for index, tag in enumerate(tags)
        )
        wishes = {"num_nodes": 1, "processes_per_node": 1, "wall_time_minutes": 10, **more}
        return Group(tag=tags[0], submissions=submissions, **wishes)

    def _submission(self, tag: str, text: str, index: int | None) -> Submission:
        directory = self.base / tag
        directory.mkdir()
        script = directory / "batch.sh"
        script.write_text(f"#!/bin/sh\ncd {shlex.quote(str(directory))} || exit 1\n{text}\n")
        comment = f"edgecore site=some.site-1 job={tag} attempt=1"
        return Submission(tag=tag, index=index, script=script, directory=directory, comment=comment)

    def submit(self, number: int = 1, text: str = "exit 0", **more: Any) -> list[Reference]:
        """Submit a group that must be taken."""
        group = self.group(number, text, **more)
        answers = self.relay.submit(group=group)
        references = []
        for reference in references_of(group):
            answer = answers[reference.tag]
            assert isinstance(answer, Submitted), answer
            references.append(evolve(reference, batch_id=answer.batch_id))
        return references

    # --------------------------------------------------------------------------------- looking

    def see(self, reference: Reference) -> Observation | None:
        """Observe one job; None where it is not listed."""
        return self.relay.observe(references=[reference]).get(reference.tag)

    def wait_state(self, state: NativeState, *references: Reference) -> Mapping[str, Observation]:
        """Wait until all *references* are seen in *state*."""
        seen: Mapping[str, Observation] = {}

        def reached() -> bool:
            nonlocal seen
            seen = self.relay.observe(references=references)
            return all(each.tag in seen and seen[each.tag].state is state for each in references)

        wait_for(reached, DEADLINE_S, lambda: f"{state}, seen {seen}")
        return seen

    def wait_executions(self, number: int) -> None:
        """Wait until so many scripts in all have ended that started."""
        wait_for(lambda: self._executions() >= number, DEADLINE_S, self.system.jobs)

    def _executions(self) -> int:
        return sum(job.executions for job in self.system.jobs())


def references_of(group: Group) -> list[Reference]:
    """Return what a service knows of a group whose submission had no clear outcome."""
    return [
        Reference(
            tag=each.tag,
            group_tag=group.tag,
            index=each.index,
            batch_id=None,
            directory=each.directory,
            submitted=time.time_ns() // 1000,
        )
        for each in group.submissions
    ]


_listening: list[list[Mapping[str, str] | None]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and _listening:
        _listening[-1].append(arguments[3])


@contextmanager
def started_processes() -> Iterator[Sequence[Mapping[str, str] | None]]:
    """Note the environment of each process that this one starts; None: it inherits ours."""
    if not hasattr(sys, "_edgecore_hears"):  # a hook cannot be taken away again
        sys.addaudithook(_hear)
        sys._edgecore_hears = True  # type: ignore[attr-defined]  # noqa: SLF001
    heard: list[Mapping[str, str] | None] = []
    _listening.append(heard)
    try:
        yield heard
    finally:
        _listening.remove(heard)
