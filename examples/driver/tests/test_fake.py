"""The example driver: its parsers over what the commands print, and the contract on the fake batch system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edgecore_fake import text

from edgecore.models import Group, NativeState, Refusal, Submission
from edgecore.testing import BatchSystem, SchedulingContract
from edgecore.testing.fake import FakeBatchSystem, PlainDialect

LISTING = b"""\
ID|NAME|OWNER|STATE|QUEUED|STARTED|NODES|REASON
12|e1abc01|edge|RUN|1700000000|1700000060|node1|
13_7|e1abd01|edge|WAIT|1700000001|||waits for nodes
14|e1abe01|edge|HOLD|1700000002|||held by an administrator
15|e1abf01|edge|WAIT|1700000003|||never: asks for more than there is
"""
ACCOUNTING = b"""\
ID|NAME|OWNER|STATE|QUEUED|STARTED|ENDED|EXIT|SIGNAL|NODES
2|e1aaa01|edge|DONE|1600000000|1600000060|1600000120|0||node1
3|e1aab01|edge|FAIL|1600000000|1600000060|1600000120|3||node1
4|e1aac01|edge|CANCELLED by root|1600000000|1600000060|1600000120||9|node1
"""


class TestFake(SchedulingContract):
    """The contract in full: every hook, and the nineteen faults end to end."""

    driver = "fake"
    accepted = {"queue": "long", "project": "atlas", "options": {"constraint": "fast"}}  # noqa: RUF012

    @pytest.fixture
    def batch_system(self, tmp_path: Path) -> Iterator[BatchSystem]:
        settings = {"timeout_s": 3.0, "poll_interval_s": 0.1}
        with FakeBatchSystem(tmp_path / "fake", PlainDialect, settings=settings, kill_grace_s=0.2) as system:
            yield system


# -------------------------------------------------------------------------------- submitting


def group(*submissions: Submission) -> Group:
    return Group(
        tag="e1abc01",
        submissions=submissions,
        num_nodes=2,
        processes_per_node=8,
        wall_time_minutes=30,
        queue="long",
        options={"constraint": "fast"},
    )


def submission(index: int | None) -> Submission:
    run = Path(f"/work/job {index}/run/1")
    return Submission(
        tag=f"e{index}", index=index, script=run / "batch.sh", directory=run, comment="site: job"
    )


def test_a_submission_is_an_argument_list_with_all_that_was_asked_for() -> None:
    command = text.submit_command(group(submission(None)), Path("/work/batch.sh"))
    expected = ["fsub", "--name=e1abc01", "--directory=/work/job None/run/1", "--nodes=2", "--processes=8"]
    expected += ["--minutes=30", "--comment=site: job", "--queue=long", "--option=constraint=fast"]
    assert [*expected, "--no-requeue", "/work/batch.sh"] == command


def test_an_array_has_the_indexes_of_its_members() -> None:
    command = text.submit_command(group(submission(0), submission(3)), Path("/work/group.sh"))
    assert "--array=0,3" in command


def test_the_script_of_an_array_quotes_the_paths_of_its_members() -> None:
    script = text.dispatch_script([submission(0), submission(3)])
    assert "3) exec /bin/sh '/work/job 3/run/1/batch.sh' ;;" in script


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("submitted 12\n", "12"),
        ("Welcome to the cluster!\nsubmitted 12\n", "12"),
        ("", None),
        ("submitted \n", None),
        ("not submitted 12 jobs\n", None),
    ],
)
def test_an_id_is_read_wherever_it_is_printed(output: str, expected: str | None) -> None:
    assert expected == text.parse_submit(output)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ("fsub: refused: no such queue or account", Refusal.PERMANENT),
        ("fsub: refused: too many jobs in the queue at present", Refusal.TRANSIENT),
        ("fsub: the server does not answer", None),
    ],
)
def test_only_known_words_are_a_refusal(errors: str, expected: Refusal | None) -> None:
    assert expected == text.parse_refusal(errors)


# --------------------------------------------------------------------------------- observing


def test_a_listing_tells_of_jobs_that_wait_and_run() -> None:
    jobs = text.parse_listing(LISTING)
    assert jobs is not None
    expected = [NativeState.RUNNING, NativeState.QUEUED, NativeState.HELD, NativeState.QUEUED]
    assert expected == [seen.state for seen in jobs.values()]
    assert [None, 7, None, None] == [seen.index for seen in jobs.values()]
    assert [False, False, False, True] == [seen.never_starts for seen in jobs.values()]
    assert 1_700_000_060_000_000 == jobs["12/e1abc01"].started
    assert "held by an administrator" == jobs["14/e1abe01"].reason


def test_accounting_tells_how_jobs_ended() -> None:
    jobs = text.parse_listing(ACCOUNTING)
    assert jobs is not None
    assert {NativeState.ENDED} == {seen.state for seen in jobs.values()}
    assert [0, 3, None] == [seen.exit_code for seen in jobs.values()]
    assert [None, None, 9] == [seen.signal for seen in jobs.values()]
    assert ["", "", "cancelled by root"] == [seen.reason for seen in jobs.values()]


@pytest.mark.parametrize("output", [b"", b"\n", b"fstat: one moment please\n"])
def test_what_is_no_listing_is_not_an_empty_one(output: bytes) -> None:
    assert text.parse_listing(output) is None


def test_a_word_that_no_manual_has_is_unknown() -> None:
    jobs = text.parse_listing(LISTING.replace(b"|RUN|", b"|QUANTUM_FLUX|"))
    assert jobs is not None
    assert (NativeState.UNKNOWN, "QUANTUM_FLUX") == (
        jobs["12/e1abc01"].state,
        jobs["12/e1abc01"].native_state,
    )


def test_complaints_are_told_by_job() -> None:
    errors = "fhold: 12: no such job\nfhold: 13_7: its state is RUN\n"
    assert {"12": "no such job", "13_7": "its state is RUN"} == text.parse_complaints(errors)
    assert {} == text.parse_complaints("fhold: the server does not answer\n")
