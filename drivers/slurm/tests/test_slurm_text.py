"""Arguments, words and recorded output of Slurm: what the driver says and understands, without any command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from attrs import evolve
from edgecore_slurm import tables, text

from edgecore.models import Group, NativeState, Refusal, Submission
from edgecore.testing import ParserContract

RECORDED: Final = Path(__file__).parent / "recorded"
SQUEUE: Final = (RECORDED / "squeue-ended.txt").read_bytes()
SACCT: Final = (RECORDED / "sacct-arrays.txt").read_bytes()
SQUEUE_ALIVE: Final = b"""\
JOBID|USER|STATE|SUBMIT_TIME|START_TIME|END_TIME|NODELIST|REASON|NAME
17|edge|RUNNING|2026-11-22T10:30:59|2026-11-22T10:31:00|2026-11-22T10:41:00|n1|None|ehoejjitbjm01
18_0|edge|PENDING|2026-11-22T10:30:59|2026-11-23T10:30:59|N/A||Resources|ehoejjitbjn01
18_1|edge|PENDING|2026-11-22T10:30:59|N/A|N/A||JobHeldUser|ehoejjitbjn01
18_2|edge|PENDING|2026-11-22T10:30:59|N/A|N/A||PartitionNodeLimit|ehoejjitbjn01
19|jane|NODE_FAIL|2026-11-22T10:30:59|2026-11-22T10:31:00|2026-11-22T10:41:00|n1|NodeDown|x|y
"""
HEAD: Final = "JobID|User|State|ExitCode|Submit|Start|End|NodeList|JobName\n"


def group(*indexes: int | None, **asked: Any) -> Group:
    members = []
    for index in indexes or (None,):
        run = Path(f"/work/job {index}/run/1")
        script = run / "batch.sh"
        members.append(
            Submission(tag=f"e{index}", index=index, script=script, directory=run, comment="site: job")
        )
    return Group(
        tag="e1abc01",
        submissions=tuple(members),
        num_nodes=2,
        processes_per_node=8,
        wall_time_minutes=30,
        **asked,
    )


@pytest.mark.slow
class TestSqueue(ParserContract):
    good: ClassVar = (SQUEUE, SQUEUE_ALIVE)
    head_lines: ClassVar = 1

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        return text.parse_listing(output)


@pytest.mark.slow
class TestSacct(ParserContract):
    good: ClassVar = (SACCT,)
    head_lines: ClassVar = 1

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        return text.parse_accounting(output)


# -------------------------------------------------------------------------------- submitting


def test_a_submission_is_an_argument_list_with_all_that_was_asked_for() -> None:
    asked = group(queue="batch", project="atlas", options={"qos": "high", "licenses": ("a:1", "b:2")})
    expected = [
        *("sbatch", "--parsable", "--job-name=e1abc01", "--chdir=/work/job None/run/1"),
        *("--output=slurm-%j.out", "--nodes=2", "--ntasks-per-node=8", "--time=30", "--comment=site: job"),
        *("--export=NONE", "--partition=batch", "--account=atlas", "--qos=high", "--licenses=a:1,b:2"),
        *("--no-requeue", "/work/batch.sh"),
    ]
    assert expected == text.submit_command(asked, Path("/work/batch.sh"))


def test_only_what_may_start_again_may_be_requeued() -> None:
    command = text.submit_command(group(restartable=True), Path("/work/batch.sh"))
    assert "--requeue" in command
    assert "--no-requeue" not in command


@pytest.mark.parametrize(
    ("value", "expected"), [(True, ["--exclusive"]), (False, []), ("user", ["--exclusive=user"])]
)
def test_a_boolean_option_comes_and_goes(value: Any, expected: list[str]) -> None:
    command = text.submit_command(group(options={"exclusive": value}), Path("/work/batch.sh"))
    assert expected == [argument for argument in command if argument.startswith("--exclusive")]


def test_an_array_has_the_indexes_of_its_members() -> None:
    command = text.submit_command(group(0, 3), Path("/work/group.sh"))
    assert {"--array=0,3", "--output=slurm-%A_%a.out"} <= set(command)


def test_the_script_of_an_array_quotes_the_paths_of_its_members() -> None:
    script = text.dispatch_script(group(0, 3).submissions)
    assert "3) exec /bin/sh '/work/job 3/run/1/batch.sh' ;;" in script


def test_options_that_the_driver_sets_itself_are_told() -> None:
    assert ["array", "job-name"] == text.foreign_options({"job-name": "x", "qos": "y", "array": "1-9"})


@pytest.mark.parametrize(
    ("output", "expected"),
    [("12\n", "12"), ("12;lab\n", "12"), ("Welcome!\n12\n", "12"), ("", None), ("12 jobs\n", None)],
)
def test_an_id_is_read_wherever_it_is_printed(output: str, expected: str | None) -> None:
    assert expected == text.parse_submit(output)


@pytest.mark.parametrize("block", (RECORDED / "refusals.txt").read_text().split("\n\n"))
def test_a_recorded_refusal_is_of_the_kind_that_it_stands_under(block: str) -> None:
    kind, _, errors = block.partition("\n")
    assert kind == str(text.parse_refusal(errors) or "unclear")


def test_notices_of_trying_again_are_no_refusal() -> None:
    waiting = "sbatch: Slurm temporarily unable to accept job, sleeping and retrying\n"
    lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
    assert text.parse_refusal(waiting + lost) is None


@pytest.mark.parametrize(
    ("limit", "kind"),
    [
        ("QOSMaxSubmitJobPerUserLimit", Refusal.TRANSIENT),
        ("AssocMaxSubmitJobLimit", Refusal.TRANSIENT),
        ("QOSMaxNodePerJobLimit", Refusal.PERMANENT),
        ("QOSMaxWallDurationPerJobLimit", Refusal.PERMANENT),
    ],
)
def test_a_limit_that_the_job_alone_breaks_is_not_waited_for(limit: str, kind: Refusal) -> None:
    general = (
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)"
    )
    assert kind is text.parse_refusal(f"sbatch: error: {limit}\n{general}\n")


# --------------------------------------------------------------------------------- observing


def test_every_state_of_the_manual_has_a_meaning() -> None:
    manual = (RECORDED / "states-of-squeue-manual.txt").read_text().split()
    assert len(manual) == 24
    assert set(manual) <= set(tables.STATES)


def test_a_listing_tells_of_jobs_that_wait_and_run() -> None:
    jobs = text.parse_listing(SQUEUE_ALIVE)
    assert jobs is not None
    seen = list(jobs.values())
    running, queued, held, ended = (
        NativeState.RUNNING,
        NativeState.QUEUED,
        NativeState.HELD,
        NativeState.ENDED,
    )
    assert [running, queued, held, queued, ended] == [each.state for each in seen]
    assert [None, 0, 1, 2, None] == [each.index for each in seen]
    assert [False, False, False, True, False] == [each.never_starts for each in seen]
    assert [1795343460_000000, None] == [each.started for each in seen[:2]], "START_TIME may be a prediction"
    assert "x|y" == seen[-1].name


def test_what_a_listing_says_again_is_not_parsed_again() -> None:
    before, after = (text.parse_listing(SQUEUE_ALIVE) for _ in range(2))
    assert before is not None
    assert after is not None
    assert 5 == len(after)
    assert [True] * 5 == [after[key] is seen for key, seen in before.items()]


@pytest.mark.parametrize("time", [b"2026-11-22", b"11/22-10:31:00", b"2026-11-22T10:61:00", b"tomorrow"])
def test_a_time_in_another_shape_costs_its_own_job(time: bytes) -> None:
    first, second, *others = SQUEUE_ALIVE.splitlines(keepends=True)
    job, user, state, _, rest = second.split(b"|", 4)
    jobs = text.parse_listing(b"".join([first, b"|".join((job, user, state, time, rest)), *others]))
    assert jobs is not None
    assert 4 == len(jobs)


def test_recorded_ends_of_squeue_are_understood() -> None:
    jobs = text.parse_listing(SQUEUE)
    assert jobs is not None
    assert {NativeState.ENDED} == {seen.state for seen in jobs.values()}
    assert (0, "") == (jobs["3_0/arr"].exit_code, jobs["3_0/arr"].reason)
    assert (None, "BadConstraints") == (jobs["8/ok.sh"].exit_code, jobs["8/ok.sh"].reason)
    cancelled = jobs["2/bb"]
    assert ("cancelled", None, None) == (cancelled.reason, cancelled.exit_code, cancelled.started)


@pytest.mark.parametrize(
    ("state", "code", "exit_code", "signal", "reason"),
    [
        ("COMPLETED", "0:0", 0, None, ""),
        ("FAILED", "7:0", 7, None, ""),
        ("FAILED", "0:11", None, 11, ""),
        ("FAILED", "0:53", None, None, "JobLaunchFailure"),
        ("CANCELLED by 1001", "0:15", None, None, "cancelled by 1001"),
        ("TIMEOUT", "0:0", None, None, "timeout"),
        ("OUT_OF_MEMORY", "0:125", None, None, "out of memory"),
        ("NODE_FAIL", "0:0", None, None, "node fail"),
    ],
)
def test_accounting_tells_how_a_job_ended(
    state: str, code: str, exit_code: int | None, signal: int | None, reason: str
) -> None:
    line = f"9|edge|{state}|{code}|2026-11-22T10:30:59|2026-11-22T10:31:00|2026-11-22T10:31:05|n1|e1\n"
    jobs = text.parse_accounting((HEAD + line).encode())
    assert jobs is not None
    seen = jobs["9/e1"]
    assert (exit_code, signal, reason) == (seen.exit_code, seen.signal, seen.reason)


@pytest.mark.parametrize(
    ("reason", "never"),
    [
        ("PartitionNodeLimit", True),
        ("QOSMaxWallDurationPerJobLimit", True),
        ("AssocMaxCpuPerJobLimit", True),
        ("QOSMinCpuNotSatisfied", True),
        ("launch_failed_requeued_held", True),
        ("JobHoldMaxRequeue", True),
        ("QOSMaxJobsPerUserLimit", False),
        ("AssocGrpCpuLimit", False),
        ("ReqNodeNotAvail, UnavailableNodes:n5", False),
        ("PartitionConfig", True),
        ("DependencyNeverSatisfied", True),
        ("Job's account not known, so it can't use this partition (batch allows atlas)", True),
        ("Job's QOS not permitted to use this partition (batch allows gold not normal)", True),
        ("Dependency", False),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
            False,
        ),
        ("JobHeldUser", False),
        ("Resources", False),
    ],
)
def test_only_what_waits_for_what_will_not_come_never_starts(reason: str, never: bool) -> None:
    assert never is tables.never_starts(reason)


@pytest.mark.parametrize(
    "reason", ["JobHeldAdmin", "job requeued in held state", "launch failed requeued held"]
)
def test_a_hold_is_told_by_the_reason_of_what_waits(reason: str) -> None:
    jobs = text.parse_listing(SQUEUE_ALIVE.replace(b"Resources", reason.encode()))
    assert jobs is not None
    assert NativeState.HELD is jobs["18_0/ehoejjitbjn01"].state


@pytest.mark.parametrize("output", [b"", b"\n", b"slurm_load_jobs error: Socket timed out\n"])
def test_what_is_no_listing_is_not_an_empty_one(output: bytes) -> None:
    assert text.parse_listing(output) is None


# ------------------------------------------------------------------------------------- acting


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (
            "16_2: Invalid job id specified\nInvalid job id specified for job 9999\n"
            "slurm_suspend error: Invalid job id specified\n",
            {"16_2": "Invalid job id specified", "9999": "Invalid job id specified"},
        ),
        (
            "scancel: error: Kill job error on job id 12_1: Invalid job id specified\n",
            {"12_1": "Invalid job id specified"},
        ),
        (
            "Unexpected message received for job 12_2\nslurm_suspend error: Unexpected message received\n",
            None,
        ),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", None),
    ],
)
def test_a_complaint_about_a_job_is_told_from_a_controller_that_is_away(
    errors: str, expected: dict[str, str] | None
) -> None:
    assert expected == text.parse_complaints(errors)


def test_the_settings_of_the_controller_are_read() -> None:
    settings = text.parse_configuration((RECORDED / "config.txt").read_text())
    assert ("lab", "10001", "300 sec") == tuple(
        settings[name] for name in ("ClusterName", "MaxArraySize", "MinJobAge")
    )


def test_a_group_can_be_cut_in_parts_with_scripts_of_their_own() -> None:
    whole = group(0, 1, 2, 3)
    half = evolve(whole, submissions=whole.submissions[2:])
    assert "--array=2,3" in text.submit_command(half, Path("/work/group.sh"))
