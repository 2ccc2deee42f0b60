"""What a site lets jobs ask for is compared with what a Slurm gives; its words were recorded from a real one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from edgecore_slurm.accounts import account_findings, parse_associations
from edgecore_slurm.examining import examine
from edgecore_slurm.partitions import minutes_of, parse_partitions, partition_findings
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecore.commands import CommandResult
from edgecore.errors import SchedulerUnavailable
from edgecore.models import Demands, Finding, Level

RECORDED: Final = Path(__file__).parent / "recorded"
PARTITIONS: Final = parse_partitions((RECORDED / "partitions.txt").read_text())
ASSOCIATIONS: Final = (RECORDED / "associations.txt").read_text()
WORDS: Final = st.text(alphabet="PartionName=UP,|:-09 \n\0\u2028é", max_size=80)
QUICK: Final = settings(max_examples=50, deadline=None)
ENFORCING: Final = {"AccountingStorageEnforce": "associations,limits,qos", "ClusterName": "lab"}


def said(findings: Any) -> list[tuple[Level, str]]:
    found: list[Finding] = list(findings)
    assert all(one.remedy for one in found if one.level is not Level.OK)
    return [(one.level, one.message) for one in found]


def partition(queue: str | None, groups: tuple[str, ...] = (), **asked: Any) -> list[tuple[Level, str]]:
    demands = Demands(queue=queue, **asked)
    return said(partition_findings(PARTITIONS, demands, groups, enforced=False))


# --------------------------------------------------------------------------------- partitions


def test_the_partitions_of_a_real_slurm_are_read_with_all_their_settings() -> None:
    assert ["batch", "short", "down", "limited", "denied", "drained", "inactive", "hidden", "empty"] == list(
        PARTITIONS
    )
    limited = PARTITIONS["limited"]
    assert ("physics,ops", "2", "00:30:00") == (
        limited["AllowGroups"],
        limited["MaxNodes"],
        limited["MaxTime"],
    )
    assert "cpu=64,mem=250G,node=4,billing=64" == limited["TRES"]


@QUICK
@given(WORDS)
def test_whatever_scontrol_prints_is_read_or_passed_over(output: str) -> None:
    for each in parse_partitions(output).values():
        assert each["PartitionName"]


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        (None, "batch is up: at most 8 nodes and 2,880 minutes for one job"),
        ("denied", "denied is up: at most 4 nodes and any number of minutes for one job"),
    ],
)
def test_a_partition_that_is_up_says_what_it_gives(queue: str | None, words: str) -> None:
    assert [(Level.OK, words)] == partition(queue, num_nodes={"[limits] max_nodes": 4})


@pytest.mark.parametrize(
    ("queue", "level", "words"),
    [
        ("batsch", Level.FAILURE, "Slurm shows no partition batsch"),
        ("down", Level.WARNING, "down is DOWN: it takes jobs and starts none"),
        ("drained", Level.WARNING, "drained is DRAIN: it refuses jobs"),
        ("inactive", Level.WARNING, "inactive is INACTIVE: it refuses jobs and starts none"),
        ("empty", Level.WARNING, "empty has no nodes"),
        (
            "limited",
            Level.WARNING,
            "limited takes jobs of the groups physics,ops only; this account is in edge",
        ),
    ],
)
def test_a_partition_that_is_not_there_or_takes_no_jobs_of_ours_is_told(
    queue: str, level: Level, words: str
) -> None:
    ((found, message),) = partition(queue, ("edge",))
    assert (level, True) == (found, words in message), message


def test_a_group_that_the_partition_takes_is_enough_and_root_needs_none() -> None:
    for groups in (("edge", "ops"), ()):
        ((level, _),) = partition("limited", groups)
        assert Level.OK is level


def test_without_any_default_partition_jobs_must_name_one() -> None:
    others = {name: settings for name, settings in PARTITIONS.items() if name != "batch"}
    ((level, words),) = said(partition_findings(others, Demands(), (), enforced=True))
    assert (Level.WARNING, True) == (level, "Slurm has no default" in words)


def test_what_a_site_and_its_applications_allow_beyond_a_partition_is_warned_of() -> None:
    nodes = {"[defaults] num_nodes": 1, "[limits] max_nodes": 128, "max_nodes of application zmumu": 2}
    minutes = {"[limits] max_wall_time_minutes": 31}
    found = partition("limited", num_nodes=nodes, wall_time_minutes=minutes)
    assert [
        "[limits] max_nodes = 128; limited gives one job at most 2 nodes: such a job waits, and fails after "
        "[timing] stuck_after_s",
        "[limits] max_wall_time_minutes = 31; limited gives one job at most 30 minutes: such a job waits, and fails "
        "after [timing] stuck_after_s",
        "[defaults] num_nodes = 1; limited takes no job with fewer than 2 nodes",
    ] == [words for _, words in found]
    assert {Level.WARNING} == {level for level, _ in found}


def test_where_slurm_enforces_its_limits_the_job_is_refused() -> None:
    demands = Demands(num_nodes={"[limits] max_nodes": 9})
    ((_, words),) = said(partition_findings(PARTITIONS, demands, (), enforced=True))
    assert words.endswith("batch gives one job at most 8 nodes: such a job is refused")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("00:30:00", 30), ("2-00:00:00", 2880), ("00:00:30", 0.5), ("UNLIMITED", math.inf), ("", math.inf)],
)
def test_a_time_of_slurm_is_read_in_minutes(text: str, minutes: float) -> None:
    assert minutes == minutes_of(text)


# ----------------------------------------------------------------------------------- accounts


class Accounting:
    """Answer sacctmgr as it was recorded."""

    def __init__(self, associations: str = ASSOCIATIONS, default: str = "atlas\n", errors: str = "") -> None:
        self.answers = {"assoc": associations, "user": default}
        self.errors = errors
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, arguments: Sequence[str]) -> CommandResult:
        self.asked.append(tuple(arguments))
        return CommandResult(
            arguments=tuple(arguments),
            exit_code=int(bool(self.errors)),
            output=self.answers[arguments[4]].encode(),
            errors=self.errors.encode(),
            duration_s=0.0,
        )


def account(
    project: str | None, queue: str = "batch", accounting: Accounting | None = None, **more: Any
) -> list[tuple[Level, str]]:
    settings = more.pop("settings", ENFORCING)
    ours = {queue: PARTITIONS[queue]}
    demands = Demands(project=project, **more)
    return said(account_findings(accounting or Accounting(), settings, ours, demands, user="edge"))


def test_an_account_that_may_be_used_is_said_beside_the_others() -> None:
    assert [(Level.OK, "edge may use atlas, of atlas, cms, root")] == account("atlas")
    assert [(Level.OK, "edge may use atlas, of atlas, cms, root")] == account(None)  # its default


@pytest.mark.parametrize(
    ("project", "queue", "accounting", "words"),
    [
        ("lhcb", "batch", Accounting(), "[defaults] project = lhcb; edge may use atlas, cms, root"),
        (None, "batch", Accounting(default=""), "no project by default; edge may use atlas, cms, root"),
        ("atlas", "batch", Accounting(""), "Slurm knows no account for edge: every job is refused"),
        ("cms", "short", Accounting(), "cms may be used in the partition batch only, and jobs go to short"),
        ("root", "limited", Accounting(), "limited takes jobs of atlas,cms only, and not of root"),
        ("cms", "denied", Accounting("cms|||\n"), "the partition denied takes no jobs of cms"),
    ],
)
def test_an_account_that_slurm_refuses_is_a_failure(
    project: str | None, queue: str, accounting: Accounting, words: str
) -> None:
    ((level, message),) = account(project, queue, accounting)
    assert (Level.FAILURE, True) == (level, words in message), message


def test_limits_of_the_association_that_counts_are_compared_where_slurm_enforces_them() -> None:
    asked: dict[str, Any] = {
        "num_nodes": {"[limits] max_nodes": 4},
        "wall_time_minutes": {"[defaults] wall_time_minutes": 61},
    }
    assert [
        (Level.WARNING, "[limits] max_nodes = 4; cms gives one job at most 3 nodes"),
        (Level.WARNING, "[defaults] wall_time_minutes = 61; cms gives one job at most 60 minutes"),
    ] == account("cms", **asked)
    ((level, _),) = account(
        "cms", settings={**ENFORCING, "AccountingStorageEnforce": "associations"}, **asked
    )
    assert Level.OK is level


@pytest.mark.parametrize(
    "enforced", [{}, {"AccountingStorageEnforce": "none"}, {"AccountingStorageEnforce": ""}]
)
def test_where_slurm_enforces_no_accounts_nothing_is_claimed_and_nothing_asked(
    enforced: dict[str, str],
) -> None:
    accounting = Accounting()
    ((level, words),) = account("lhcb", accounting=accounting, settings=enforced)
    assert (Level.OK, True) == (level, words.endswith("whether lhcb is right cannot be seen"))
    assert [] == accounting.asked


def test_accounts_that_cannot_be_seen_are_a_warning_in_the_words_of_sacctmgr() -> None:
    errors = "sacctmgr: error: slurm_persist_conn_open: No response to persist_init\n"
    ((level, words),) = account("atlas", accounting=Accounting(errors=errors))
    assert (Level.WARNING, True) == (level, "No response to persist_init" in words)


@QUICK
@given(WORDS)
def test_whatever_sacctmgr_prints_is_read_or_passed_over(output: str) -> None:
    assert all(each.account for each in parse_associations(output))


# --------------------------------------------------------------------------------- the whole


def examined(version: str, **answers: str) -> dict[str, Finding]:
    """Examine a Slurm whose commands say that they are of *version*."""

    def run(arguments: Sequence[str]) -> CommandResult:
        words = " ".join(arguments)
        found = next((text for part, text in answers.items() if part in words), None)
        if found is None:
            raise SchedulerUnavailable(f"slurm: {arguments[0]} gave no answer within 12 s")
        return CommandResult(
            arguments=tuple(arguments), exit_code=0, output=found.encode(), errors=b"", duration_s=0.0
        )

    answers = {
        "version": version,
        "config": (RECORDED / "config.txt").read_text(),
        "sacct ": "JobID",
        **answers,
    }
    found = examine(
        run,
        lambda name: f"/usr/bin/{name}",
        accounting=True,
        max_array=1000,
        poll_interval_s=30.0,
        demands=Demands(),
        user="edge",
        groups=frozenset(),
    )
    return {one.subject: one for one in found}


@pytest.mark.parametrize(
    ("version", "level", "words"),
    [
        ("slurm-wlm 22.05.8\n", Level.OK, "commands 22.05.8, controller 22.05.8"),
        ("slurm 21.08.1-2\n", Level.OK, "commands 21.08.1-2, controller 22.05.8"),
        ("slurm 23.02.6\n", Level.WARNING, "commands 23.02.6, controller 22.05.8: the commands are newer"),
    ],
)
def test_commands_that_are_newer_than_the_controller_are_warned_of(
    version: str, level: Level, words: str
) -> None:
    found = examined(version)["versions"]
    assert (level, words) == (found.level, found.message)


def test_a_release_with_which_the_driver_was_not_tested_says_so() -> None:
    config = (RECORDED / "config.txt").read_text().replace("22.05.8", "24.11.0")
    assert (
        "this driver was tested with 22.05 only"
        in examined("slurm 24.11.0", config=config)["versions"].message
    )


def test_partitions_that_are_not_told_are_a_warning_and_the_rest_is_examined() -> None:
    found = examined("slurm-wlm 22.05.8")
    assert (Level.WARNING, Level.OK) == (found["partition"].level, found["accounting"].level)
    assert "scontrol gave no answer within 12 s" in found["partition"].message
