"""Admission: a definition is taken as a whole or refused with every reason, whatever strangers send."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecore.admission import Admission
from edgecore.config import Defaults, Limits, MessagingTable, SchedulingTable, SiteConfig, TransferTable
from edgecore.errors import DefinitionError
from edgecore.models import ControlMessage, JobDefinition

ADMISSION = Admission(
    config=SiteConfig(
        site="theta",
        work_directory=Path("/work"),
        store=Path("/store.sqlite"),
        messaging=MessagingTable(url="sqlite:///queue.sqlite"),
        scheduling=SchedulingTable(driver="fork"),
        transfer=(TransferTable(prefix="file:///data/"),),
        defaults=Defaults(queue="batch", wall_time_minutes=30),
        limits=Limits(max_nodes=100, max_wall_time_minutes=60),
    ),
    applications=lambda: {"zmumu", "merge"},
)


def body(**more: Any) -> bytes:
    return json.dumps({"name": "job", "site": "theta", "application": "zmumu", **more}).encode()


def refused(content: bytes) -> dict[str, str]:
    """Return path -> all that is said about it."""
    with pytest.raises(DefinitionError) as caught:
        ADMISSION.read(content, "message 1")
    assert "message 1" == caught.value.source
    return {problem.path: str(problem) for problem in caught.value.problems}


def test_a_definition_gets_the_sites_defaults_for_what_it_leaves_out() -> None:
    read = ADMISSION.read(body(num_nodes=2), "x")
    assert isinstance(read, JobDefinition)
    assert ("batch", 30, 2) == (read.queue, read.wall_time_minutes, read.num_nodes)


def test_a_definitions_own_word_wins_over_the_default_also_when_it_says_nothing() -> None:
    read = ADMISSION.read(body(queue=None, wall_time_minutes=5), "x")
    assert isinstance(read, JobDefinition)
    assert (None, 5) == (read.queue, read.wall_time_minutes)


def test_the_catalogue_is_asked_once_for_all_that_is_decided_now() -> None:
    asked: list[tuple[str, ...]] = [("merge",), ("zmumu",)]
    admission = evolve(ADMISSION, applications=lambda: asked.pop())
    now = admission.now()
    assert [now.read(body(), "x")] * 2 == [now.read(body(), "x") for _ in range(2)]
    with pytest.raises(DefinitionError, match="this site offers merge"):
        admission.now().read(body(), "x")


def test_a_request_about_a_job_is_told_from_a_definition() -> None:
    expected = ControlMessage(command="cancel", job_id="mine")
    assert expected == ADMISSION.read(b'{"command": "cancel", "job_id": "mine"}', "x")
    again = ControlMessage(command="retry", job_id=7, from_start=True)
    assert again == ADMISSION.read(b'{"command": "retry", "job_id": 7, "from_start": true}', "x")
    assert "command" in refused(b'{"command": "cancle", "job_id": "mine"}')
    assert "argument" in refused(b'{"command": "cancel", "job_id": 1, "argument": 1}')


def test_all_that_the_schema_and_the_site_refuse_is_said_at_once() -> None:
    said = refused(
        body(
            site="mira",
            application="zmumumu",
            num_nodes=101,
            wall_time_minutes=61,
            input_url="file:///etc/passwd",
            output_url="scp://host/x",
            not_after="tomorrow",
            numnodes=3,
            retries=-1,
        )
    )
    for path, words in {
        "site": "this site is theta",
        "application": "this site offers merge, zmumu; did you mean zmumu?",
        "num_nodes": "at most 100",
        "wall_time_minutes": "at most 60",
        "input_url": "this site allows URLs below file:///data/",
        "output_url": "this site allows URLs below file:///data/",
        "not_after": "ISO 8601",
        "numnodes": "unknown key; did you mean num_nodes?",
        "retries": "must be from 0 to 100",
    }.items():
        assert words in said[path]


@pytest.mark.parametrize("when", ["", "2026-13-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_cannot_be_is_refused(when: str) -> None:
    assert "ISO 8601" in refused(body(not_after=when))["not_after"]


def test_a_time_with_and_without_a_zone_is_taken() -> None:
    for when in ("2027-01-01", "2027-01-01T12:00:00+01:00", "2027-01-01T12:00:00Z"):
        assert isinstance(ADMISSION.read(body(not_after=when), "x"), JobDefinition)


def test_half_a_character_is_refused_in_words() -> None:
    assert "input_url" in refused(body(input_url="file:///data/\ud800"))
    assert "name" in refused(body(name="\ud800"))
    assert "application" in refused(body(application="\udfff"))


def test_a_workflow_is_told_where_it_belongs() -> None:
    assert "a workflow is for Argo" in refused(b'{"name": "w", "subjobs": []}')["subjobs"]


def test_what_is_no_object_is_refused() -> None:
    for content in (b"[]", b"5", b"null", b'"x"'):
        assert "must be a JSON object" in refused(content)[""]


_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["theta", "zmumu", "file:///data/x", "2027-01-01", "file:///data/\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_keys = st.sampled_from(
    [
        *("name", "application", "site", "job_id", "argo_job_id", "queue", "wall_time_minutes", "num_nodes"),
        *("input_url", "output_url", "not_after", "needs", "sites", "command", "subjobs", "retries", "other"),
    ]
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    st.binary(max_size=60)
    | st.dictionaries(_keys, _values).map(lambda document: json.dumps(document).encode())
    | st.dictionaries(_keys, _values).map(lambda document: body(**document))
)
def test_whatever_arrives_is_taken_or_refused_and_a_refusal_can_always_be_told(content: bytes) -> None:
    with contextlib.suppress(DefinitionError):
        ADMISSION.read(content, "x")
    assert "theta" == ADMISSION.what_can_be_read(content).site


def test_what_belongs_into_a_workflow_is_refused_in_a_job_of_its_own() -> None:
    said = refused(body(needs=["before"], sites=["theta", "mira"]))
    assert {"needs", "sites"} == set(said)
    assert "belongs into a workflow" in said["needs"]


def test_a_hostile_url_is_judged_in_time_that_grows_with_its_length() -> None:
    begun = time.process_time()
    said = refused(body(input_url="file://" + "/" * 200_000 + " "))
    assert {"input_url"} == set(said)
    assert time.process_time() - begun < 1
