"""A retry that comes while an old job's directory is being removed: it finds the whole directory, or none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import define, evolve
from scripted import Edge

from edgecore.batch import job_directory
from edgecore.cleaning import Cleaning
from edgecore.config import Retention
from edgecore.models import Job
from edgecore.models import JobState as S
from edgecore.reader import Reader
from edgecore.store import Store


@define(eq=False)
class Interrupted:
    """A reader that lets something happen after it has told what is to be cleaned."""

    reader: Reader
    meanwhile: Callable[[], None]

    def to_clean(self, before: int, limit: int, *, failed: bool) -> tuple[int, ...]:
        found = self.reader.to_clean(before, limit, failed=failed)
        if found:
            self.meanwhile()
        return found

    def job(self, job_id: int) -> Job | None:
        return self.reader.job(job_id)


def failed_job(edge: Edge) -> Job:
    edge.config = evolve(edge.config, retention=Retention(keep_days=0, keep_failed_days=0))
    edge.start()
    edge.send(application="fails")
    return edge.wait("job", S.JOB_FAILED)


def clean(edge: Edge, meanwhile: Callable[[], None] = lambda: None) -> int:
    engine = edge.balsam._engine
    assert engine is not None
    store: Store = engine.store
    cleaning = Cleaning(config=edge.config, store=store, change=engine.change)
    with Reader(edge.config.store) as reader:
        return cleaning.clean(Interrupted(reader, meanwhile))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_job_that_is_retried_while_it_is_about_to_be_cleaned_keeps_its_directory(edge: Edge) -> None:
    job = failed_job(edge)
    edge.scheduling.open_gate.clear()

    def retry() -> None:
        edge.ask("retry")
        edge.wait("job", S.SUBMITTING, times=2)

    assert 0 == clean(edge, retry)
    directory = job_directory(edge.config.work_directory, job.id)
    assert (directory / "run/1").is_dir()
    edge.scheduling.open_gate.set()
    edge.wait("job", S.JOB_FAILED, times=2)
    assert {job.id: 2} == edge.site.starts()
    assert 1 == clean(edge)
    assert not directory.exists()


def test_a_job_that_is_retried_after_its_directory_was_set_aside_begins_anew(edge: Edge) -> None:
    job = failed_job(edge)
    assert 1 == clean(edge)
    assert not job_directory(edge.config.work_directory, job.id).exists()
    edge.ask("retry")
    edge.wait("job", S.JOB_FAILED, times=2)
    assert "from its input on: its directory was removed" in "".join(edge.messages())
    assert job_directory(edge.config.work_directory, job.id).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("urls", "told"),
    [
        (["input_url"], "retried by an operator"),
        ([], "retried by an operator, from its input on: it has no directory"),
    ],
    ids=["with input", "without"],
)
def test_a_job_that_failed_before_it_had_a_directory_is_not_told_that_it_was_removed(
    edge: Edge, urls: list[str], told: str
) -> None:
    edge.start()
    edge.send(not_after="2020-01-01T00:00:00Z", **dict.fromkeys(urls, f"file://{edge.site.base}/data"))
    edge.wait("job", S.JOB_FAILED)
    edge.ask("retry")
    edge.wait("job", S.JOB_FAILED, times=2)
    assert told in edge.messages()


def test_what_a_killed_service_had_set_aside_is_removed_by_the_next(edge: Edge) -> None:
    job = failed_job(edge)
    aside = edge.config.work_directory / ".removed"
    aside.mkdir()
    job_directory(edge.config.work_directory, job.id).rename(aside / str(job.id))
    clean(edge)
    assert [] == list(aside.iterdir())
