"""Documents: read strictly by the types, every problem at once, whatever strangers write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecore import serial
from edgecore.errors import ConfigurationError, DefinitionError, Problem
from edgecore.models import (
    Application,
    Between,
    ControlMessage,
    Job,
    JobDefinition,
    JobState,
    Name,
    Plan,
    StatusMessage,
    Text,
    WorkflowDefinition,
)

JOB = """
{"name": "jobname", "description": "a job to run", "site": "site_name",
 "argo_job_id": 1507945011064986, "queue": "batch_queue_name",
 "project": "batch_project_to_charge", "wall_time_minutes": 30, "num_nodes": 128,
 "processes_per_node": 64, "scheduler_config": "file_to_config_scheduler.cfg",
 "application": "unique_application_name", "config_file": "file_to_config_app.cfg",
 "input_url": "protocol://server.name.gov/path/to/input/files",
 "output_url": "protocol://server.name.gov/path/to/place/output/files"}
"""

WORKFLOW = (
    """
{"name": "jobname", "description": "some jobs to run",
 "user_id": "customizable_user_id_for_tracking",
 "group_identifier": "customizable_user_id_for_tracking_groups_of_jobs",
 "username": "username", "email": "username@place.com",
 "input_url": "protocol://server.name.gov/in", "output_url": "protocol://server.name.gov/out",
 "subjobs": ["""
    + f"{JOB},{JOB}]}}"
)


def refused(cls: type, value: object) -> dict[str, str]:
    """Return path -> what is said about it."""
    with pytest.raises(DefinitionError) as caught:
        serial.structure(cls, value, source="a test", error=DefinitionError)
    assert "a test" == caught.value.source
    return {problem.path: str(problem).removeprefix(f"{problem.path}: ") for problem in caught.value.problems}


def unparsed(body: bytes, **more: int) -> str:
    with pytest.raises(DefinitionError) as caught:
        serial.parse_json(body, source="a test", **more)
    (problem,) = caught.value.problems
    return str(problem)


# ------------------------------------------------------------------------- what is documented


def test_the_job_of_the_contract_is_accepted_as_it_stands() -> None:
    document = serial.parse_json(JOB.encode(), source="job")
    job = serial.structure(JobDefinition, document, source="job")
    assert document == {key: getattr(job, key) for key in document}


def test_the_workflow_of_the_contract_is_accepted_as_it_stands() -> None:
    document = serial.parse_json(WORKFLOW.encode(), source="workflow")
    workflow = serial.structure(WorkflowDefinition, document, source="workflow")
    assert ("jobname", "username@place.com", 2) == (workflow.name, workflow.email, len(workflow.subjobs))
    assert 128 == workflow.subjobs[1].num_nodes


@pytest.mark.parametrize("key", ["input_url", "output_url", "config_file", "scheduler_config"])
def test_what_may_be_null_may_be_null(key: str) -> None:
    document = {**json.loads(JOB), key: None}
    assert getattr(serial.structure(JobDefinition, document, source="job"), key) is None


def test_what_is_required_is_little() -> None:
    small = {"name": "a", "application": "b", "site": "c"}
    assert "c" == serial.structure(JobDefinition, small, source="job").site
    for key in small:
        rest = {each: value for each, value in small.items() if each != key}
        assert {key: "is required"} == refused(JobDefinition, rest)


# ----------------------------------------------------------------------------- all at once


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    document = json.loads(WORKFLOW)
    del document["name"]
    document["subjobs"][0]["num_nodes"] = "128"
    document["subjobs"][1]["numnodes"] = 5
    document["subjobs"][1]["needs"] = ["a", "b c"]
    document["subjobs"].append("a job")
    document["job_status_routing_key"] = "balsam_job_status"
    assert {
        "name": "is required",
        "subjobs[0].num_nodes": "found '128'; must be a whole number",
        "subjobs[1].numnodes": "unknown key; did you mean num_nodes?",
        "subjobs[1].needs[1]": "found 'b c'; must be 1 to 100 characters of A-Z a-z 0-9 . _ -",
        "subjobs[2]": "found 'a job'; must be a table of keys and values",
        "job_status_routing_key": "found 'balsam_job_status'; must be a routing key of the form status.NAME",
    } == refused(WorkflowDefinition, document)


def test_an_unknown_key_like_no_other_is_named_alone() -> None:
    assert {"zzz": "unknown key"} == refused(JobDefinition, {**json.loads(JOB), "zzz": 1})


@pytest.mark.parametrize(("wrong", "told"), [(50, 50), (51, 51), (20_000, 51)])
def test_of_very_many_problems_the_first_fifty_are_told(wrong: int, told: int) -> None:
    document = {**json.loads(JOB), **{f"strange_{number}": 1 for number in range(wrong)}}
    with pytest.raises(DefinitionError) as caught:
        serial.structure(JobDefinition, document, source="a test", error=DefinitionError)
    problems = [str(problem) for problem in caught.value.problems]
    assert told == len(problems)
    assert (wrong > 50) == ("and more problems; correct these first" == problems[-1])
    assert all(problem.startswith("strange_") for problem in problems[:50])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("name", "", "found ''; must be 1 to 100 characters"),
        ("name", "x" * 101, "must be 1 to 100 characters"),
        ("name", "a\n", "must be 1 to 100 characters"),
        ("name", "Zµµ", "must be 1 to 100 characters"),
        ("name", None, "found None; must be a string"),
        ("num_nodes", True, "found True; must be a whole number"),
        ("num_nodes", 1.0, "found 1.0; must be a whole number"),
        ("num_nodes", 0, "found 0; must be from 1 to 1,000,000"),
        ("num_nodes", 10**400, "found a huge number; must be from 1 to 1,000,000"),
        ("wall_time_minutes", 1_000_001, "must be from 1 to 1,000,000"),
        ("retries", 101, "must be from 0 to 100"),
        ("job_id", 1.5, "found 1.5; must be a string or a whole number or null"),
        ("job_id", -1, "must be from 0 to 9,007,199,254,740,991"),
        ("job_id", 2**53, "must be from 0 to 9,007,199,254,740,991"),
        ("job_id", "a/b", "must be 1 to 100 characters"),
        ("queue", "-x", "must be a name that the batch system knows"),
        ("queue", "a b", "must be a name that the batch system knows"),
        ("config_file", "/etc/passwd", "must be a relative path"),
        ("config_file", "../x", "must be a relative path"),
        ("config_file", "a/../b", "must be a relative path"),
        ("config_file", "a/./b", "must be a relative path"),
        ("config_file", "a/", "must be a relative path"),
        ("config_file", "a\nb", "must be a relative path"),
        ("input_url", "file", "must be a URL such as scheme://host/path"),
        ("input_url", "scp://user:secret@host/x", "must be a URL such as scheme://host/path, without a user name"),
        ("input_url", "file:///a b", "must be a URL"),
        ("input_url", "file:///a\x7f", "must be a URL"),
        ("description", "a\x00", "must be up to 4,000 characters"),
        ("description", "x" * 4001, "must be up to 4,000 characters"),
        ("needs", "a", "found 'a'; must be a list"),
        ("sites", {"a": 1}, "found dict of 1; must be a list"),
        ("not_after", 5, "found 5; must be a string"),
    ],
)  # fmt: skip
def test_a_value_that_breaks_its_rule_is_named_with_what_is_allowed(
    key: str, value: object, words: str
) -> None:
    said = refused(JobDefinition, {**json.loads(JOB), key: value})
    assert [key] == list(said)
    assert words in said[key]


def test_a_command_that_there_is_not_gets_the_nearest() -> None:
    assert {
        "command": "found 'cancle'; must be one of cancel, hold, release, retry, report; did you mean cancel?"
    } == refused(ControlMessage, {"command": "cancle", "job_id": 1})


def test_what_is_found_is_shown_short_and_without_control_characters() -> None:
    said = refused(JobDefinition, {**json.loads(JOB), "name": "\x1b[31m" + "x" * 10_000})["name"]
    assert len(said) < 200
    assert "\x1b" not in said
    (path,) = refused(JobDefinition, {**json.loads(JOB), "\x1b[2J" + "x" * 10_000: 1})
    assert len(path) <= 80
    assert "\x1b" not in path


def test_the_error_class_is_that_of_the_caller() -> None:
    with pytest.raises(ConfigurationError):
        serial.structure(Application, {}, source="x")


# ------------------------------------------------------------------------------- every kind


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@frozen(kw_only=True)
class Inner:
    size: Annotated[float, Between(0, 1)] = 0.5


@frozen(kw_only=True)
class Kinds:
    colour: Colour = Colour.RED
    mode: Literal["a", "b"] = "a"
    path: Path = Path("/")
    inner: Inner = Inner()
    either: Inner | None = None
    mapping: Mapping[Name, Inner] = {}
    nested: Mapping[str, Mapping[str, Any]] = {}
    again: Mapping[str, Mapping[str, Any]] = {}
    some: tuple[Annotated[str, Text("[a-c]+", "letters")], ...] = ()
    mixed: int | str | tuple[int, ...] | None = None


def test_every_kind_of_field_is_read_and_written_back() -> None:
    document = {
        "colour": "blue",
        "mode": "b",
        "path": "/x",
        "inner": {"size": 1},
        "either": {"size": 0.25},
        "mapping": {"k": {"size": 0.0}},
        "nested": {"a": {"b": [1]}},
        "again": {"a": {}},
        "some": ["abc"],
        "mixed": [1, 2],
    }
    kinds = serial.structure(Kinds, document, source="x")
    assert (Colour.BLUE, Path("/x"), Inner(size=1), (1, 2)) == (
        *(kinds.colour, kinds.path, kinds.inner, kinds.mixed),
    )
    assert document == json.loads(serial.to_json(kinds))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"colour": "green"}, {"colour": "found 'green'; must be one of red, blue"}),
        ({"colour": ["red"]}, {"colour": "found list of 1; must be one of red, blue"}),
        ({"mode": 5}, {"mode": "found 5; must be one of a, b"}),
        ({"path": "x"}, {"path": "found 'x'; must be an absolute path"}),
        ({"inner": None}, {"inner": "found None; must be a table of keys and values"}),
        ({"inner": {"size": math.nan}}, {"inner.size": "found nan; must be a number"}),
        ({"inner": {"size": 2}}, {"inner.size": "found 2; must be from 0 to 1"}),
        ({"either": 5}, {"either": "found 5; must be a table of keys and values"}),
        ({"either": {"siz": 1}}, {"either.siz": "unknown key; did you mean size?"}),
        ({"mapping": []}, {"mapping": "found list of 0; must be a table of keys and values"}),
        ({"mapping": {"k": 5}}, {"mapping.k": "found 5; must be a table of keys and values"}),
        ({"mapping": {"a b": {}}}, {"mapping.a b": "found 'a b'; must be 1 to 100 characters of A-Z a-z 0-9 . _ -"}),
        ({"nested": {"a": 5}}, {"nested.a": "found 5; must be a table of keys and values"}),
        ({"again": {"a": "x"}}, {"again.a": "found 'x'; must be a table of keys and values"}),
        ({"some": ["abc", "d"]}, {"some[1]": "found 'd'; must be letters"}),
        ({"mixed": True}, {"mixed": "found True; must be a whole number or a string or a list or null"}),
        ({"mixed": [1, "x"]}, {"mixed[1]": "found 'x'; must be a whole number"}),
        ([], {"": "found list of 0; must be a table of keys and values"}),
    ],
)  # fmt: skip
def test_every_kind_of_field_is_refused_in_words(document: object, said: dict[str, str]) -> None:
    assert said == refused(Kinds, document)


# -------------------------------------------------------------------------------------- JSON


def test_a_trailing_comma_says_line_and_column_and_what_to_remove() -> None:
    said = unparsed(b'{"name": "a",\n "site": "b",\n}')
    assert "remove the comma after the last item" in said
    assert "line " in said
    assert "column " in said
    # Python 3.13 points at the comma itself, its predecessors at what follows it.
    assert any(place in said for place in ("at line 3, column 1", "at line 2, column 13"))
    assert "remove the comma" in unparsed(b"[1, 2,]")
    assert "remove the comma" in unparsed(b'{"a": [1,\n]}')


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "found nothing at line 1, column 1; not JSON"),
        (b"{", "at line 1, column 2; not JSON"),
        (b"{'a': 1}", "at line 1, column 2; not JSON"),
        (b'{"a": 1} x', "at line 1, column 10; not JSON: Extra data"),
        (b'{"a": "\xff"}', "found byte 0xff at 7; must be UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": 1, "a": 2}', "found 'a'; a key may stand only once in an object"),
        (b'{"a": NaN}', "found 'NaN'; JSON has no such number"),
        (b"[-Infinity]", "found '-Infinity'; JSON has no such number"),
        (b"1e999", "out of range"),
        (b"9" * 500, "at most 400 digits"),
        (b"9" * 100_000, "at most 400 digits"),
        (b"0." + b"9" * 500, "out of range"),
        (b"[" * 60 + b"]" * 60, "at most 50 levels"),
        (b'{"a":' * 51 + b"1" + b"}" * 51, "at most 50 levels"),
        (b"[" * 100_000, ""),
        (b"[" * 100_000 + b"]" * 100_000, "at most 50 levels"),
    ],
)
def test_what_is_not_strict_json_is_refused_in_words(body: bytes, words: str) -> None:
    assert words in unparsed(body)


def test_fifty_levels_are_allowed_and_brackets_in_strings_are_none() -> None:
    assert serial.parse_json(b"[" * 50 + b"]" * 50, source="x")
    assert ["[{" * 100] == serial.parse_json(json.dumps(["[{" * 100]).encode(), source="x")


def test_a_document_may_be_as_long_as_the_limit() -> None:
    assert "x" * 98 == serial.parse_json(b'"' + b"x" * 98 + b'"', source="x", limit_bytes=100)
    assert "found 101 bytes; at most 100 bytes are allowed" == unparsed(
        b'"' + b"x" * 99 + b'"', limit_bytes=100
    )


# -------------------------------------------------------------------- whatever may be written

_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode()))
def test_whatever_bytes_arrive_they_are_json_or_a_definition_error(body: bytes) -> None:
    try:
        value = serial.parse_json(body, source="x")
    except DefinitionError as error:
        (problem,) = error.problems
        assert len(str(problem)) < 400
    else:
        assert json.loads(body) == value


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    cls=st.sampled_from([JobDefinition, WorkflowDefinition, ControlMessage, Application, Plan, Kinds]),
    value=_json,
    data=st.data(),
)
def test_whatever_value_arrives_it_is_read_or_a_definition_error(
    cls: type[Any], value: Any, data: st.DataObject
) -> None:
    names = st.sampled_from([field.name for field in cls.__attrs_attrs__])
    near = data.draw(st.dictionaries(names, _json, max_size=5))
    for document in (value, near, {**json.loads(JOB), **near}):
        try:
            read = serial.structure(cls, document, source="x", error=DefinitionError)
        except DefinitionError as error:
            assert str(error)  # noqa: PT017 - either way there is something to assert
        else:
            assert read == serial.structure(cls, json.loads(serial.to_json(read)), source="x")


def test_a_status_message_is_written_with_every_documented_key() -> None:
    definition = serial.structure(JobDefinition, json.loads(JOB), source="x")
    job = Job(id=1, owner="ada", definition=definition, state=JobState.CREATED, sequence=1)
    from edgecore.store import status_of

    document = json.loads(serial.to_json(status_of(job, "theta")))
    documented = "job_id argo_job_id site name owner state previous_state sequence time message batch_id exit_code attempt"
    assert documented.split() == list(document)
    assert (1, 1507945011064986, "theta", "CREATED", None, "1970-01-01T00:00:00.000000Z") == tuple(
        document[key] for key in ("job_id", "argo_job_id", "site", "state", "previous_state", "time")
    )
    assert serial.structure(StatusMessage, document, source="x").sequence == 1


# -------------------------------------------------------------------------------------- words


@given(st.one_of(_json, st.integers(-(10**500), 10**500), st.tuples(st.text())), st.integers(10, 100))
def test_whatever_is_shown_is_short_and_printable(value: object, width: int) -> None:
    shown = serial.shorten(value, width)
    assert len(shown) <= max(width, len("a huge number"))
    assert shown.isprintable()


def test_a_near_miss_is_suggested_and_a_far_one_is_not() -> None:
    assert "; did you mean num_nodes?" == serial.nearest("num_node", ["name", "num_nodes"])
    assert "" == serial.nearest("zzz", ["name", "num_nodes"])


def test_a_problem_is_a_sentence_with_or_without_its_parts() -> None:
    assert "a.b: found 5; must be 6" == str(Problem("a.b", "5", "must be 6"))
    assert "is required" == str(Problem("", "", "is required"))
