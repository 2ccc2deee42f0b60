"""What the driver does with the answers of Slurm's commands, which are scripted here as a real Slurm gave them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from edgecore_slurm import SlurmScheduling, driver

from edgecore.commands import CommandResult
from edgecore.errors import ConfigurationError, SchedulerUnavailable
from edgecore.models import (
    Group,
    Level,
    NativeState,
    Reference,
    Refusal,
    Refused,
    SiteContext,
    Submission,
    Submitted,
)

HEAD: Final = "JOBID|USER|STATE|SUBMIT_TIME|START_TIME|END_TIME|NODELIST|REASON|NAME\n"
TIMES: Final = "2026-11-22T10:30:59|2026-11-22T10:31:00|2026-11-22T10:41:00"
ACCOUNTED: Final = "JobID|User|State|ExitCode|Submit|Start|End|NodeList|JobName\n"
LIMIT: Final = (
    "sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: Batch job submission failed: Job violates "
    "accounting/QOS policy (job submit limit, user's size and/or time limits)\n"
)
CONFIGURATION: Final = (Path(__file__).parent / "recorded" / "config.txt").read_text()
PARTITIONS: Final = (Path(__file__).parent / "recorded" / "partitions.txt").read_text()
SUBMITTED: Final = 1_795_343_459_000_000

Answer = tuple[str, str, int]
"""Output, errors, exit code."""


class Slurm:
    """Answer each command as a test says, and remember what was asked."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.environments: list[Mapping[str, str]] = []
        self.answers: dict[str, Answer | Callable[[Sequence[str]], Answer]] = {}
        for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol"):
            (place / name).touch(0o755)
        monkeypatch.setattr(driver, "run", self.run)
        monkeypatch.setattr(driver, "user_name", lambda: "edge")
        self.site = SiteContext(site="s", work_directory=place, environment={"PATH": str(place), "TZ": "CET"})

    def run(
        self, arguments: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
    ) -> CommandResult:
        self.asked.append(tuple(arguments))
        self.environments.append(environment)
        answer = self.answers.get(arguments[0], ("", "", 0))
        output, errors, code = answer(arguments) if callable(answer) else answer
        return CommandResult(
            arguments=tuple(arguments),
            exit_code=code,
            output=output.encode(),
            errors=errors.encode(),
            duration_s=0.0,
        )

    def opened(self, **settings: Any) -> SlurmScheduling:
        opened = SlurmScheduling(**settings)
        opened.open(site=self.site)
        self.asked.clear()
        return opened

    def lists(self, *jobs: str) -> None:
        """Let squeue show jobs, given as ``ID STATE REASON NAME``."""
        lines = [job.split(" ") for job in jobs]
        text = "".join(f"{i}|edge|{state}|{TIMES}|n1|{reason}|{name}\n" for i, state, reason, name in lines)
        self.answers["squeue"] = (HEAD + text, "", 0)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path, monkeypatch)


def reference(batch_id: str, name: str, tag: str = "") -> Reference:
    _, _, index = batch_id.partition("_")
    return Reference(
        tag=tag or name,
        group_tag=name,
        index=int(index) if index else None,
        batch_id=batch_id,
        directory=Path("/work"),
        submitted=SUBMITTED,
    )


def array(place: Path, size: int, **asked: Any) -> Group:
    members = tuple(
        Submission(tag=f"e{index}", index=index, script=place / "batch.sh", directory=place, comment="c")
        for index in range(size)
    )
    return Group(
        tag="e0", submissions=members, num_nodes=1, processes_per_node=1, wall_time_minutes=1, **asked
    )


# -------------------------------------------------------------------------------------- opening


def test_a_site_without_slurm_is_told_what_to_set(tmp_path: Path) -> None:
    site = SiteContext(site="s", work_directory=tmp_path, environment={"PATH": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="no sbatch on"):
        SlurmScheduling().open(site=site)


def test_opening_tells_the_version_and_asks_no_controller(slurm: Slurm) -> None:
    slurm.answers["sbatch"] = ("slurm-wlm 22.05.8\n", "", 0)
    assert "slurm-wlm 22.05.8" == SlurmScheduling().open(site=slurm.site).version
    assert [("sbatch", "--version")] == slurm.asked


# ----------------------------------------------------------------------------------- submitting


def test_an_array_that_is_over_a_limit_is_halved_until_it_fits(slurm: Slurm, tmp_path: Path) -> None:
    room = 5

    def sbatch(arguments: Sequence[str]) -> Answer:
        nonlocal room
        (option,) = (one for one in arguments if one.startswith("--array="))
        size = option.count(",") + 1
        if size > room:
            return "", LIMIT, 1
        room -= size
        return f"{100 + room}\n", "", 0

    opened = slurm.opened()
    slurm.answers["sbatch"] = sbatch
    answers = opened.submit(group=array(tmp_path, 8))
    assert {f"e{index}" for index in range(8)} == set(answers)
    taken = [tag for tag, answer in answers.items() if isinstance(answer, Submitted)]
    assert ["e0", "e1", "e2", "e3", "e4"] == sorted(taken)
    refusals = {answer.kind for answer in answers.values() if isinstance(answer, Refused)}
    assert {Refusal.TRANSIENT} == refusals
    assert room == 0


def test_the_half_of_an_array_that_got_no_answer_is_left_out_of_the_answer(
    slurm: Slurm, tmp_path: Path
) -> None:
    answers = iter(
        [("", LIMIT, 1), ("7\n", "", 0), ("", "sbatch: error: Socket timed out on send/recv operation", 1)]
    )
    opened = slurm.opened()
    slurm.answers["sbatch"] = lambda _: next(answers)
    answered = opened.submit(group=array(tmp_path, 2))
    assert {"e0": Submitted(batch_id="7_0")} == answered


def test_an_option_that_the_driver_sets_itself_is_refused_and_nothing_is_asked(
    slurm: Slurm, tmp_path: Path
) -> None:
    answers = slurm.opened().submit(group=array(tmp_path, 1, options={"array": "0-9999"}))
    (answer,) = answers.values()
    assert isinstance(answer, Refused)
    assert Refusal.PERMANENT is answer.kind
    assert "array" in answer.reason
    assert [] == slurm.asked


def test_listings_are_made_in_utc_and_submissions_in_the_time_of_the_site(
    slurm: Slurm, tmp_path: Path
) -> None:
    slurm.answers["sbatch"] = ("7\n", "", 0)
    slurm.lists()
    opened = slurm.opened()
    slurm.environments.clear()
    opened.submit(group=array(tmp_path, 1))
    opened.find(tags=["e0"])
    assert ["CET", "UTC", "UTC"] == [environment["TZ"] for environment in slurm.environments]


# ------------------------------------------------------------------------------------ observing


def test_accounting_is_not_asked_about_what_the_listing_tells_in_full(slurm: Slurm) -> None:
    slurm.lists("1 RUNNING None e1", "2 COMPLETED None e2", "3 TIMEOUT TimeLimit e3")
    found = slurm.opened().observe(references=[reference(str(n), f"e{n}") for n in (1, 2, 3)])
    assert ["squeue"] == [command[0] for command in slurm.asked]
    assert 0 == found["e2"].exit_code
    assert "timeout" == found["e3"].reason


def test_accounting_tells_the_exit_code_of_what_failed_and_the_listing_the_reason(slurm: Slurm) -> None:
    slurm.lists("1 FAILED BadConstraints e1", "2 FAILED NonZeroExitCode e2")
    lines = f"1|edge|FAILED|1:0|{TIMES}|n1|e1\n2|edge|FAILED|7:0|{TIMES}|n1|e2\n"
    slurm.answers["sacct"] = (ACCOUNTED + lines, "", 0)
    found = slurm.opened().observe(references=[reference("1", "e1"), reference("2", "e2")])
    assert (1, "BadConstraints") == (found["e1"].exit_code, found["e1"].reason)
    assert (7, "") == (found["e2"].exit_code, found["e2"].reason)


def test_the_accounting_of_an_earlier_execution_does_not_count(slurm: Slurm) -> None:
    slurm.lists("1 FAILED NonZeroExitCode e1")
    earlier = TIMES.replace("10:30:59", "10:20:59")
    slurm.answers["sacct"] = (ACCOUNTED + f"1|edge|NODE_FAIL|0:0|{earlier}|n1|e1\n", "", 0)
    assert "FAILED" == slurm.opened().observe(references=[reference("1", "e1")])["e1"].native_state


def test_accounting_that_does_not_answer_is_told_once(slurm: Slurm, caplog: pytest.LogCaptureFixture) -> None:
    slurm.lists()
    opened = slurm.opened()
    caplog.set_level("INFO")
    for answer in (("", "Slurm accounting storage is disabled\n", 1), (ACCOUNTED, "", 0)):
        slurm.answers["sacct"] = answer
        for _ in range(2):
            assert {} == opened.observe(references=[reference("1", "e1")])
    assert ["going on without accounting", "accounting answers again"] == [
        record.getMessage().partition(":")[0] for record in caplog.records
    ]


def test_a_site_without_accounting_never_runs_sacct(slurm: Slurm) -> None:
    slurm.lists("1 FAILED NonZeroExitCode e1")
    opened = slurm.opened(accounting=False)
    seen = opened.observe(references=[reference("1", "e1"), reference("2", "e2")])
    assert [NativeState.ENDED] == [one.state for one in seen.values()]
    assert {"squeue"} == {command[0] for command in slurm.asked}


# --------------------------------------------------------------------------------------- acting


def test_cancel_names_only_what_a_listing_shows_to_be_ours_and_alive(slurm: Slurm) -> None:
    slurm.lists("1 RUNNING None e1", "2_0 PENDING Priority e2", "3 COMPLETED None e3", "4 RUNNING None other")
    references = [
        reference(batch_id, name) for batch_id, name in (("1", "e1"), ("2_0", "e2"), ("3", "e3"), ("4", "e4"))
    ]
    answer = slurm.opened().cancel(references=references)
    assert ("scancel", "1", "2_0") == slurm.asked[-1], "with --name, it takes 2_0 for the whole array"
    assert ("e1", "e2", "e3", "e4") == answer.accepted


def test_what_runs_is_not_held_though_slurm_would_take_that(slurm: Slurm) -> None:
    slurm.lists("1 RUNNING None e1", "2 PENDING Priority e2")
    answer = slurm.opened().hold(references=[reference("1", "e1"), reference("2", "e2")])
    assert (("e2",), {"e1"}) == (answer.accepted, set(answer.refused))
    assert ("scontrol", "hold", "2") == slurm.asked[-1]


def test_a_job_that_started_between_the_look_and_the_hold_is_refused(slurm: Slurm) -> None:
    slurm.lists("2 PENDING Priority e2")
    said = "Job is no longer pending execution for job 2\nslurm_suspend error: Job is no longer pending execution\n"
    slurm.answers["scontrol"] = ("", said, 1)
    assert {"e2"} == set(slurm.opened().hold(references=[reference("2", "e2")]).refused)


@pytest.mark.parametrize(
    ("command", "hook", "said"),
    [
        (
            "scontrol",
            "hold",
            "Unexpected message received for job 2\nslurm_suspend error: Unexpected message received",
        ),
        (
            "scancel",
            "cancel",
            "scancel: error: Kill job error on job id 2: Unable to contact slurm controller",
        ),
    ],
)
def test_a_controller_that_goes_away_between_look_and_request_is_unavailable(
    slurm: Slurm, command: str, hook: str, said: str
) -> None:
    slurm.lists("2 PENDING Priority e2")
    slurm.answers[command] = ("", said, 1)
    with pytest.raises(SchedulerUnavailable):
        getattr(slurm.opened(), hook)(references=[reference("2", "e2")])


# ------------------------------------------------------------------------------------ diagnosing


def levels(opened: SlurmScheduling) -> dict[str, Level]:
    return {finding.subject: finding.level for finding in opened.diagnose()}


def test_a_slurm_in_good_order_is_all_right(slurm: Slurm) -> None:
    slurm.answers["scontrol"] = lambda asked: (PARTITIONS if "partition" in asked else CONFIGURATION, "", 0)
    parts = ("commands", "controller", "arrays", "partition", "account", "accounting")
    assert dict.fromkeys(parts, Level.OK) == levels(slurm.opened())


def test_a_controller_that_does_not_answer_is_a_failure(slurm: Slurm) -> None:
    away = "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)\n"
    slurm.answers["scontrol"] = ("", away, 1)
    assert {"commands": Level.OK, "controller": Level.FAILURE} == levels(slurm.opened())


def test_a_command_that_is_missing_is_a_failure(slurm: Slurm) -> None:
    (slurm.site.work_directory / "scancel").unlink()
    (finding,) = slurm.opened().diagnose()
    assert (Level.FAILURE, "not found: scancel") == (finding.level, finding.message)


def test_arrays_larger_than_the_cluster_takes_and_accounting_that_is_off_are_warned_of(slurm: Slurm) -> None:
    slurm.answers["scontrol"] = (CONFIGURATION.replace("= 10001", "= 1000"), "", 0)
    slurm.answers["sacct"] = ("", "Slurm accounting storage is disabled\n", 1)
    found = levels(slurm.opened())
    assert (Level.WARNING, Level.WARNING) == (found["arrays"], found["accounting"])


def test_without_accounting_a_cluster_that_forgets_fast_is_warned_of(slurm: Slurm) -> None:
    opened = slurm.opened(accounting=False)
    for age, level in (("300", Level.OK), ("30", Level.WARNING)):
        slurm.answers["scontrol"] = (CONFIGURATION.replace("= 300 sec", f"= {age} sec"), "", 0)
        assert level is levels(opened)["accounting"]
