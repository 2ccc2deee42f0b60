"""How listeners are told, and what becomes of one that fails."""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any

import pytest
from attrs import Factory, define

from edgecore.errors import ConfigurationError, Veto
from edgecore.hookspecs import hookimpl
from edgecore.models import Job, JobDefinition, JobState
from edgecore.relays import Listeners

JOB = Job(
    id=1,
    owner="o",
    definition=JobDefinition(name="n", application="a", site="s"),
    state=JobState.CREATED,
)


@define(eq=False)
class Fails:
    fault: BaseException

    @hookimpl
    def job_changing(self) -> None:
        raise self.fault

    @hookimpl
    def job_changed(self) -> None:
        raise self.fault


@define(eq=False)
class Hears:
    heard: list[object] = Factory(list)

    @hookimpl
    def job_changing(self, after: Job) -> None:
        self.heard.append(("changing", after.id))

    @hookimpl
    def job_changed(self, job: Job) -> None:
        self.heard.append(("changed", job.id))

    @hookimpl
    def alarm_raised(self, subject: str, message: str) -> None:
        self.heard.append((subject, message))

    @hookimpl
    def alarm_cleared(self, subject: str) -> None:
        self.heard.append(subject)

    @hookimpl
    def service_started(self, site: str) -> None:
        self.heard.append(f"+{site}")

    @hookimpl
    def service_stopped(self, site: str) -> None:
        self.heard.append(f"-{site}")


class Wraps:
    """A layer, which hears nothing."""

    @hookimpl(wrapper=True)
    def submit(self) -> Generator[None, Any, Any]:
        return (yield)


class TestListeners:
    def test_a_listener_hears_every_event(self) -> None:
        hears = Hears()
        listeners = Listeners((hears,))
        listeners.service_started(site="s")
        listeners.job_changing(before=JOB, after=JOB)
        listeners.job_changed(job=JOB)
        listeners.alarm_raised(subject="a", message="m")
        listeners.alarm_cleared(subject="a", message="m")
        listeners.service_stopped(site="s")
        assert hears.heard == ["+s", ("changing", 1), ("changed", 1), ("a", "m"), "a", "-s"]

    @pytest.mark.parametrize("fault", [ValueError("boom"), SystemExit("boom")])
    def test_a_listener_that_fails_is_logged_and_the_others_hear(
        self, caplog: pytest.LogCaptureFixture, fault: BaseException
    ) -> None:
        first, last = Hears(), Hears()
        listeners = Listeners((first, Fails(fault), last))
        with caplog.at_level(logging.ERROR):
            listeners.job_changing(before=JOB, after=JOB)
            listeners.job_changed(job=JOB)
        assert first.heard == last.heard == [("changing", 1), ("changed", 1)]
        assert [record.getMessage() for record in caplog.records] == [
            f"listener {__name__}.Fails failed in job_changing; the service goes on",
            f"listener {__name__}.Fails failed in job_changed; the service goes on",
        ]
        assert all(record.exc_info and record.exc_info[1] is fault for record in caplog.records)

    def test_a_veto_passes_with_the_name_of_who_forbids_after_all_were_asked(self) -> None:
        last = Hears()
        listeners = Listeners((Fails(Veto("not on Sundays")), last))
        with pytest.raises(Veto, match=rf"^{__name__}\.Fails: not on Sundays$"):
            listeners.job_changing(before=JOB, after=JOB)
        assert last.heard == [("changing", 1)]

    def test_a_veto_against_what_has_happened_is_only_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        Listeners((Fails(Veto("too late")),)).job_changed(job=JOB)
        assert "failed in job_changed" in caplog.text

    def test_without_listeners_there_is_nobody_to_tell(self) -> None:
        assert not Listeners()
        assert not Listeners((Wraps(),))
        assert Listeners((Hears(),))

    def test_a_listener_with_a_wrong_hook_is_refused(self) -> None:
        class Wrong:
            @hookimpl
            def job_changed(self, jobs: Job) -> None: ...

        with pytest.raises(ConfigurationError, match=r"Wrong: job_changed: takes \(self, jobs\)"):
            Listeners((Wrong(),))
