"""The scheduling contract finds what careless drivers do wrong, test by test.

Each run is a pytest of its own, in which the contract is given the example driver with one thing done
as one does it in an afternoon.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from packages import build_wheel, unpack_wheel

pytestmark = pytest.mark.slow

CARELESS: Final = '''
import subprocess
from attrs import define, evolve
from edgecore.commands import CommandResult
from edgecore.errors import SchedulerUnavailable
from edgecore.hookspecs import hookimpl
from edgecore.models import NativeState, Observation, Refusal, Refused, Submitted
from edgecore_fake import FakeScheduling, text


@define(eq=False)
class SilenceIsAnEnd(FakeScheduling):
    """Take a job that is not listed for one that has ended."""

    @hookimpl
    def observe(self, references):
        jobs = {seen.batch_id: seen for seen in self._listed().values()}
        ended = Observation(state=NativeState.ENDED, native_state="DONE", batch_id="1", exit_code=0)
        return {r.tag: jobs.get(r.batch_id, evolve(ended, batch_id=r.batch_id or "1")) for r in references}


@define(eq=False)
class FailureIsSilence(FakeScheduling):
    """Take a listing that failed for an empty one."""

    @hookimpl
    def observe(self, references):
        try:
            return FakeScheduling.observe(self, references)
        except SchedulerUnavailable:
            return {}


@define(eq=False)
class IdsAreNames(FakeScheduling):
    """Speak of jobs by id alone."""

    @hookimpl
    def observe(self, references):
        listed = text.parse_listing(self._run(["fstat"]).output) or {}
        jobs = {seen.batch_id: seen for seen in listed.values()}
        return {r.tag: jobs[r.batch_id] for r in references if r.batch_id in jobs}

    @hookimpl
    def cancel(self, references):
        answer = FakeScheduling.cancel(self, references)
        for reference in references:
            self._run(["fdel", str(reference.batch_id)])
        return answer


@define(eq=False)
class ExitCodesDecide(FakeScheduling):
    """Take a submission whose command failed for refused."""

    @hookimpl
    def submit(self, group):
        result = self._run(text.submit_command(group, group.submissions[0].script))
        tag = group.submissions[0].tag
        if result.exit_code != 0:
            return {tag: Refused(kind=Refusal.TRANSIENT, reason=result.complaint() or "?")}
        return {tag: Submitted(batch_id=text.parse_submit(result.text))}


@define(eq=False)
class ExitCodesAreWords(FakeScheduling):
    """Answer with text where a number is promised."""

    @hookimpl
    def observe(self, references):
        seen = FakeScheduling.observe(self, references)
        return {tag: evolve(one, queued=str(one.queued)) for tag, one in seen.items()}


@define(eq=False)
class ManyQuestions(FakeScheduling):
    """Ask about each job by itself."""

    @hookimpl
    def observe(self, references):
        found = {}
        for reference in references[-20:]:
            found.update(FakeScheduling.observe(self, [reference]))
        return found


@define(eq=False)
class Remembers(FakeScheduling):
    """Know only the jobs that it submitted itself."""

    @hookimpl
    def submit(self, group):
        answers = FakeScheduling.submit(self, group)
        self._strange.update(answers)
        return answers

    @hookimpl
    def observe(self, references):
        return FakeScheduling.observe(self, [r for r in references if r.tag in self._strange])


@define(eq=False)
class Inherits(FakeScheduling):
    """Let commands have whatever the service has."""

    def _run(self, arguments):
        subprocess.run(["true"], check=True)
        return FakeScheduling._run(self, arguments)


@define(eq=False)
class RunsCommandsItself(FakeScheduling):
    """Have a command end, then read what it said, and give it up alone."""

    def _run(self, arguments):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**self._environment, "LC_ALL": "C"}
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, env=environment, **pipes)
        with process.stdout, process.stderr:
            try:
                code = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise SchedulerUnavailable("no answer") from None
            said = {"output": process.stdout.read(), "errors": process.stderr.read()}
        return CommandResult(arguments=tuple(arguments), exit_code=code, duration_s=0.0, **said)


@define(eq=False)
class StreamsAreOne(FakeScheduling):
    """Read what a command says, wherever it says it."""

    def _run(self, arguments):
        result = FakeScheduling._run(self, arguments)
        return evolve(result, output=result.errors + result.output)


@define(eq=False)
class AsksForLess(FakeScheduling):
    """Forget some of what a job needs."""

    def _run(self, arguments):
        left = [argument for argument in arguments if argument.partition("=")[0] not in LEFT_OUT]
        return FakeScheduling._run(self, left)


LEFT_OUT = {"--nodes", "--no-requeue"}


@define(eq=False)
class FindsTheLiving(FakeScheduling):
    """Look for names among what waits and runs."""

    @hookimpl
    def find(self, tags):
        listed = self._listed().values()
        found = {tag: [seen for seen in listed if seen.name == tag] for tag in tags}
        return {tag: some for tag, some in found.items() if some}
'''

CONTRACT: Final = """
import pytest
from edgecore.testing import SchedulingContract, hook_faults
from edgecore.testing.fake import FakeBatchSystem, PlainDialect

hook_faults.DEADLINE_S = 4.0  # what a careless driver leaves behind stays: a long wait finds no more

class TestCareless(SchedulingContract):
    driver = "{driver}"

    @pytest.fixture
    def batch_system(self, tmp_path):
        with FakeBatchSystem(tmp_path / "fake", PlainDialect, settings={{"timeout_s": 2.0}}) as system:
            yield system
"""

FOUND: Final = [
    ("SilenceIsAnEnd", "test_jobs_that_nobody_knows_are_not_listed"),
    ("SilenceIsAnEnd", "test_a_running_job_that_some_listings_leave_out_stays_as_it_was"),
    ("FailureIsSilence", "test_a_batch_system_that_is_down_is_unavailable_and_nothing_else"),
    ("IdsAreNames", "test_an_id_that_now_is_somebody_elses_is_left_alone"),
    ("IdsAreNames", "test_an_id_that_now_is_somebody_elses_is_neither_observed_nor_cancelled"),
    ("ExitCodesDecide", "test_an_id_that_was_printed_counts_whatever_the_exit_code"),
    ("ExitCodesDecide", "test_a_submission_without_an_answer_is_found_by_its_tag"),
    ("ExitCodesAreWords", "test_a_job_is_seen_waiting_then_running_then_ended"),
    ("ManyQuestions", "test_one_look_at_many_jobs_takes_few_commands"),
    ("Remembers", "test_a_new_driver_object_knows_what_the_old_one_submitted"),
    ("Inherits", "test_commands_get_the_environment_that_is_handed_over_and_nothing_else"),
    (
        "IdsAreNames",
        "test_a_job_of_our_own_under_another_name_is_neither_cancelled_nor_held_nor_released",
    ),
    ("RunsCommandsItself", "test_a_listing_that_is_longer_than_a_pipe_holds_is_read_whole"),
    ("RunsCommandsItself", "test_a_command_that_hangs_is_given_up_and_leaves_no_process"),
    ("RunsCommandsItself", "test_what_commands_say_beside_their_answer_hides_no_answer"),
    ("StreamsAreOne", "test_what_commands_say_beside_their_answer_hides_no_answer"),
    ("AsksForLess", "test_the_batch_system_is_asked_for_what_the_group_asks_for"),
    ("FindsTheLiving", "test_what_ended_is_found_as_long_as_it_is_observed"),
]


@pytest.mark.parametrize(("driver", "test"), FOUND)
def test_a_careless_driver_is_found(driver: str, test: str, tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    wheel = build_wheel(
        tmp_path,
        "careless",
        "1",
        CARELESS,
        entry_points={"edgecore.scheduling": {driver.lower(): f"careless:{driver}"}},
    )
    unpack_wheel(wheel, tmp_path / "packages")
    (tmp_path / "test_careless.py").write_text(CONTRACT.format(driver=driver.lower()))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--basetemp", "run"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    result = subprocess.run(
        [*command, "-k", test, "test_careless.py"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(tmp_path / "packages")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1, result.stdout[-3000:] + result.stderr
    assert f"FAILED test_careless.py::TestCareless::{test}" in result.stdout, result.stdout[-3000:]
