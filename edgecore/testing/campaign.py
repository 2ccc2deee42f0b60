"""Kill a service again and again at random times, and count afterwards.

Jobs are kept in flight, some of which fail; each kill is a SIGKILL at a time that nobody chose. In the end a
service is left alone until all jobs are settled. Each must have run exactly once, ended as its program did,
and every change of its state must have been told.
"""

from __future__ import annotations

import random
import time

from attrs import define, field

from edgecore.models import JobState
from edgecore.states import SETTLED
from edgecore.testing.site import Site

__all__ = ["Campaign"]


@define(eq=False, kw_only=True)
class Campaign:
    """Put one site through *kills* kills with *in_flight* jobs; the same *seed* throws the same dice."""

    site: Site
    kills: int
    in_flight: int
    seed: int
    longest_s: float = 2.0
    """How long a job takes, and a service lives, at most."""
    codes: dict[str, int] = field(init=False, factory=dict)
    """Name of each job that was sent -> the exit code of its program."""

    def run(self) -> None:
        """Kill, let finish, and count. Raises AssertionError when anything was lost or repeated."""
        dice = random.Random(self.seed)  # noqa: S311 - nothing secret
        for _ in range(self.kills):
            self._refill(dice)
            process = self.site.start()
            time.sleep(dice.uniform(0.3, self.longest_s))
            process.kill()
            process.wait()
        with self.site.service():
            self.site.wait_settled(len(self.codes), 120 + 2 * len(self.codes))
            self.site.wait_published()
        self.check()

    def _refill(self, dice: random.Random) -> None:
        active = sum(job.state not in SETTLED for job in self.site.jobs()) if self.codes else 0
        definitions = []
        for _ in range(max(0, self.in_flight - active)):
            name = f"job-{len(self.codes)}"
            code = self.codes[name] = dice.choice((0, 0, 0, 3))
            files = self.site.files(name, seconds=round(dice.uniform(0, self.longest_s), 2), code=code)
            definitions.append(self.site.job(name=name, job_id=name, **files))
        self.site.send(*definitions)

    def check(self) -> None:
        """Check that each job ran once and ended as its program did, and that every status was sent."""
        assert sorted(self.codes) == sorted(job.name for job in self.site.jobs())
        starts = self.site.starts()
        for job in self.site.jobs():
            words = f"{job.id} started {starts.get(job.id)} times: {self.site.diagnosis()}"
            assert starts.get(job.id) == 1, words
            code = self.codes[job.name]
            assert job.state is (JobState.JOB_FAILED if code else JobState.JOB_FINISHED), words
            assert job.attempt is not None
            assert job.attempt.exit_code == code, words
        self.site.check_statuses()
