"""Whatever stands in a document, there is one error for it, soon: definitions, requests, settings, operators' files."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecore import serial
from edgecore.admission import Admission
from edgecore.applications import check_options, read_application
from edgecore.config import MessagingTable, SchedulingTable, SiteConfig, TransferTable, read_site
from edgecore.errors import ConfigurationError, DefinitionError
from edgecore.models import JobDefinition, Parameter, WorkflowDefinition, printable
from edgecore.settings import read_settings, typed_values
from edgecore.toml import read_toml

SITE: Final = SiteConfig(
    site="theta",
    work_directory=Path("/w"),
    store=Path("/s"),
    messaging=MessagingTable(url="sqlite:///q"),
    scheduling=SchedulingTable(driver="fork"),
    transfer=(TransferTable(prefix="file:///data/"),),
)
ADMISSION: Final = Admission(config=SITE, applications=lambda: ["zmumu"])

JOB: Final = {
    "name": "jobname",
    "description": "a job to run",
    "site": "theta",
    "job_id": "mine",
    "argo_job_id": 1507945011064986,
    "queue": "default",
    "project": "physics",
    "wall_time_minutes": 30,
    "num_nodes": 128,
    "processes_per_node": 64,
    "scheduler_config": "scheduler.cfg",
    "application": "zmumu",
    "config_file": "app.cfg",
    "input_url": "file:///data/in",
    "output_url": "file:///data/out",
    "retries": 2,
    "not_after": "2027-03-01T12:00:00Z",
}
WORKFLOW: Final = {
    "name": "flow",
    "user_id": "me",
    "username": "me",
    "email": "me@example.gov",
    "job_status_routing_key": "status.me",
    "subjobs": [JOB, {**JOB, "name": "second", "needs": ["jobname"], "sites": ["theta", "mira"]}],
}
PARAMETERS: Final = {
    "events": Parameter(type="integer", minimum=1, maximum=10**9),
    "ratio": Parameter(type="number", default=0.5, flag="--ratio"),
    "label": Parameter(type="string", pattern="[a-z]+", required=False),
    "loud": Parameter(type="boolean", default=False),
    "mode": Parameter(type="string", choices=("fast", "slow"), default="slow"),
    "files": Parameter(type="path", list=True, required=False),
}
VALUES: Final = {
    "events": 100,
    "ratio": 0.25,
    "label": "abc",
    "loud": True,
    "mode": "fast",
    "files": ["a.txt", "b/c.txt"],
}
APPLICATION: Final = {
    "name": "zmumu",
    "executable": "/soft/generate",
    "arguments": ["--events={events}", "{label}", "{files}", "{{literal}}", "{nodes}"],
    "launcher": "mpi",
    "max_nodes": 512,
    "script_timeout_s": 20.5,
    "parameters": {
        "events": {"type": "integer", "minimum": 1, "maximum": 1_000_000_000},
        "label": {"type": "string", "pattern": "[a-z]+", "required": False},
        "mode": {"type": "string", "choices": ["fast", "slow"], "default": "slow", "flag": "--mode"},
        "files": {"type": "path", "list": True, "default": ["a.txt", "b.txt"]},
    },
}
CONFIGURATION: Final = {
    "site": "theta",
    "work_directory": "~/jobs",
    "store": "theta.sqlite",
    "messaging": {"url": "sqlite:///q", "exchange": "hpc"},
    "scheduling": {
        "driver": "fork",
        "slots": 3,
        "options": {"constraint": {"type": "string", "pattern": "[a-z|&]+"}},
    },
    "transfer": [{"prefix": "file:///data/", "streams": 2}],
    "launchers": {"mpi": {"arguments": ["srun", "-n", "{processes}"]}},
    "environment": {"pass": ["SLURM_CONF"], "set": {"SITE": "theta"}},
    "defaults": {"queue": "default", "wall_time_minutes": 5},
    "limits": {"max_queued": 20, "max_transfer_bytes": 1_000_000},
    "timing": {"grace_s": 2.5},
    "plugins": {"enabled": ["pacing"], "pacing": {"per_minute": 6}},
}


# ------------------------------------------------------------------------------------- readers


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "written.toml"


def read_definition(content: bytes, file: Path) -> None:
    ADMISSION.what_can_be_read(content)
    ADMISSION.read(content, "message 1")


def read_workflow(content: bytes, file: Path) -> None:
    document = serial.parse_json(content, source="message 1")
    serial.structure(WorkflowDefinition, document, source="message 1", error=DefinitionError)


def settings_reader(name: str) -> Callable[[bytes, Path], None]:
    def read(content: bytes, file: Path) -> None:
        typed_values(PARAMETERS, read_settings(content, name), source=name)

    return read


def read_entry(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    serial.to_json(read_application(file))


def read_configuration(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    check_options(read_site(file).scheduling.options, source="again")


def json_text(document: Any) -> str:
    return json.dumps(document)


def toml_text(document: Any) -> str:
    """Write a document as TOML, whatever it holds: each key with its value inline."""
    if not isinstance(document, dict):
        return _inline(document)
    return "".join(f"{json.dumps(key)} = {_inline(value)}\n" for key, value in document.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value)


def lines_text(document: Any) -> str:
    if not isinstance(document, dict):
        return json.dumps(document)
    return "".join(
        f"{key} = {', '.join(map(str, value)) if isinstance(value, list) else value}\n"
        for key, value in document.items()
    )


READERS: Final[Mapping[str, tuple[Callable[[bytes, Path], None], Callable[[Any], str], Any, Any]]] = {
    "definition": (read_definition, json_text, JOB, DefinitionError),
    "request": (read_definition, json_text, {"command": "cancel", "job_id": "mine"}, DefinitionError),
    "workflow": (read_workflow, json_text, WORKFLOW, DefinitionError),
    "settings.cfg": (settings_reader("a.cfg"), lines_text, VALUES, DefinitionError),
    "settings.toml": (settings_reader("a.toml"), toml_text, VALUES, DefinitionError),
    "settings.json": (settings_reader("a.json"), json_text, VALUES, DefinitionError),
    "application": (read_entry, toml_text, APPLICATION, ConfigurationError),
    "site": (read_configuration, toml_text, CONFIGURATION, ConfigurationError),
}
each_reader: Final = pytest.mark.parametrize("kind", READERS)


def check(kind: str, text: str | bytes, file: Path) -> bool:
    """Read *text*; tell whether it was taken. Any other error than the one of its kind is the test's failure."""
    reader, _, _, expected = READERS[kind]
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        reader(content, file)
    except expected as error:
        refusal: Any = error
    else:
        return True
    assert refusal.problems
    assert len(str(refusal)) < 50_000
    assert printable(str(refusal)).encode()
    return False


@each_reader
def test_what_is_mutated_below_is_valid_before(kind: str, file: Path) -> None:
    _, write, document, _ = READERS[kind]
    assert check(kind, write(document), file)


# ---------------------------------------------------------------------------------- properties

RAW: Final = (
    *(
        "NaN",
        "-Infinity",
        "inf",
        "1e999",
        "-1e999",
        "9" * 5000,
        "-" + "9" * 5000,
        "0x" + "f" * 5000,
        "0.1e-5000",
    ),
    *('"\\ud800"', '"\\u0000"', '"\ud800"', '"\x00"', "[" * 3000, '{"a":' * 3000, "1979-05-27T07:32:00Z"),
    *("'", '"""', "\\", "\ufeff", "\u202e", "=", "#", "//", "True", "0o7", "1_000"),
)
"""What is put into a text as it stands; much of it is neither JSON nor TOML."""
_MARK: Final = re.compile(r'"?<<(\d+)>>"?')

_leaves: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, 10**399, 1e308, -0.0, 5e-324])
    | st.floats()
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(
        ["", ".", "..", "-x", "{events}", "%s", "$(id)", "a\nb", "\ud800", "\0", "x" * 5000, "file:///"]
    )
    | st.integers(0, len(RAW) - 1).map(lambda number: f"<<{number}>>")
)
_json: st.SearchStrategy[Any] = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _mutated(value: Any, path: tuple[Any, ...], how: str, other: Any) -> Any:
    """Return a copy of *value* in which the node at *path* is deleted, doubled, renamed or replaced."""
    if not path:
        return other
    key, *rest = path
    if rest:
        changed: Any = _mutated(value[key], tuple(rest), how, other)
        if isinstance(value, list):
            return [*value[:key], changed, *value[key + 1 :]]
        return {**value, key: changed}
    if isinstance(value, list):
        kept = {"delete": [], "double": [value[key]] * 2}.get(how, [other])
        return [*value[:key], *kept, *value[key + 1 :]]
    if how in ("delete", "rename"):
        name = other if isinstance(other, str) else "renamed"
        return {
            (name if each == key else each): item
            for each, item in value.items()
            if each != key or how == "rename"
        }
    return {**value, key: [value[key], value[key]] if how == "double" else other}


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> str:
    """Write a valid document with one to three nodes changed, and perhaps its text too."""
    _, write, document, _ = READERS[kind]
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(_places(document))))
        how = draw(st.sampled_from(["delete", "double", "rename", "replace", "replace"]))
        document = _mutated(document, path, how, draw(_json))
    text = _MARK.sub(lambda found: RAW[int(found[1]) % len(RAW)], write(document))
    if draw(st.booleans()):
        return text
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, min(begin + 20, len(text))))
    return text[:begin] + draw(st.sampled_from(["", text[begin:end] * 2, *RAW])) + text[end:]


QUICK: Final = settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
THOROUGH: Final = settings(QUICK, max_examples=400)


@each_reader
@QUICK
@given(data=st.data())
def test_any_change_of_a_valid_document_is_read_or_refused(
    kind: str, file: Path, data: st.DataObject
) -> None:
    check(kind, data.draw(mutated(kind)), file)


@pytest.mark.slow
@each_reader
@THOROUGH
@given(data=st.data())
def test_any_of_very_many_changes_of_a_valid_document_is_read_or_refused(
    kind: str, file: Path, data: st.DataObject
) -> None:
    check(kind, data.draw(mutated(kind)), file)


@pytest.mark.slow
@each_reader
@THOROUGH
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_are_read_or_refused(kind: str, file: Path, content: bytes) -> None:
    check(kind, content, file)


# ------------------------------------------------------------------------- by size, depth, text

MONSTERS: Final[Mapping[str, bytes]] = {
    "nothing": b"",
    "a mark of byte order alone": b"\xef\xbb\xbf",
    "two marks of byte order": b"\xef\xbb\xbf" * 2 + b"{}",
    "UTF-16": "{}".encode("utf-16"),
    "UTF-32": "{}".encode("utf-32"),
    "Latin-1": b'{"name": "\xe9"}',
    "half a character": b'{"name": "\xed\xa0\x80"}',
    "a character that is too long": b'{"name": "\xc0\xaf"}',
    "NULs": b"\0" * 1000,
    "NULs in a string": b'name = "\0"',
    "escaped NUL": b'{"name": "\\u0000"}',
    "escaped half a character": b'{"name": "\\ud800", "\\udfff": 1}',
    "100,000 brackets": b"[" * 100_000,
    "100,000 brackets, closed": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100,000 inline tables": b"a = " + b"{a = " * 100_000,
    "100,000 inline arrays": b"a = " + b"[" * 100_000,
    "51 levels": b'{"a":' * 51 + b"1" + b"}" * 51,
    "a long dotted key": b"a." * 100_000 + b"a = 1",
    "a long dotted table": b"[" + b"a." * 100_000 + b"a]",
    "a huge whole number": b'{"num_nodes": ' + b"9" * 100_000 + b"}",
    "a huge whole number in TOML": b"num_nodes = " + b"9" * 100_000,
    "a huge number in base 16": b"num_nodes = 0x" + b"f" * 100_000,
    "a huge exponent": b'{"num_nodes": 1e999}',
    "a huge exponent in TOML": b"num_nodes = 1e999",
    "no number": b'{"num_nodes": NaN, "retries": -Infinity}',
    "no number in TOML": b"num_nodes = nan\nretries = -inf",
    "a date that cannot be": b"num_nodes = 2027-13-41",
    "a time": b"num_nodes = 2027-01-01T00:00:00Z",
    "a key twice": b'{"name": "a", "name": "b"}',
    "a key twice in TOML": b'name = "a"\nname = "b"',
    "a key twice, once escaped": b'{"name": "a", "n\\u0061me": "b"}',
    "a long string": b'{"name": "' + b"x" * 1_000_000 + b'"}',
    "a long string in TOML": b'name = "' + b"x" * 1_000_000 + b'"',
    "a long key": b'{"' + b"x" * 1_000_000 + b'": 1}',
    "a long string that does not end": b'{"name": "' + b"\\\\" * 500_000,
    "a long line": b"name = " + b"x" * 1_000_000,
    "many keys": b"{" + b",".join(b'"%d": 1' % i for i in range(80_000)) + b"}",
    "many lines": b"".join(b"k%d = 1\n" % i for i in range(80_000)),
    "many wrong items": b'{"needs": [' + b"0," * 500_000 + b'0], "subjobs": [0]}',
    "many empty sub-jobs": b'{"name": "x", "subjobs": [' + b"{}," * 300_000 + b"{}]}",
    "many wrong sub-jobs": b'{"name": "x", "subjobs": [' + b"0," * 500_000 + b"0]}",
    "many files": b'files = "a", ' + b'"b", ' * 200_000,
    "10 MB in a string": b'{"name": "' + b"x" * 10_000_000 + b'"}',
    "10 MB of brackets": b"[" * 10_000_000,
    "10 MB of white space": b" " * 10_000_000,
    "10 MB of lines": b"a = 1\n" * 1_700_000,
}
_OF_LEGAL_SIZE: Final = 1024 * 1024


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, id=name, marks=[pytest.mark.slow] if len(content) > 300_000 else [])
        for name, content in MONSTERS.items()
    ],
)
def test_no_monster_takes_long_or_much_memory(content: bytes, file: Path) -> None:
    large = len(content) > _OF_LEGAL_SIZE
    for kind in READERS:
        if large:
            tracemalloc.start()
        begun = time.process_time()
        try:
            taken = check(kind, content, file)
            took_s = time.process_time() - begun
            most = tracemalloc.get_traced_memory()[1] if large else 0
        finally:
            tracemalloc.stop()
        assert not taken, kind
        assert took_s < 3, (kind, took_s)
        assert most < 3_000_000, (kind, most)  # what is too large is not even decoded


class Endless(dict[str, Any]):
    """A document that holds itself, as no text can say."""


def test_a_document_that_holds_itself_is_refused() -> None:
    document = Endless(JOB)
    for key in ("name", "needs", "sites", "job_id", "wall_time_minutes", "config_file", "not_after"):
        document[key] = document
    circle: list[Any] = []
    circle.append(circle)
    document["sites"] = circle
    for cls in (JobDefinition, WorkflowDefinition):
        with pytest.raises(DefinitionError):
            serial.structure(
                cls, {**document, "subjobs": [document, circle]}, source="x", error=DefinitionError
            )


@pytest.mark.parametrize(
    "path", ["/proc/self/mem", "/dev/zero", "/", "/dev/null/x", "a\0b", "x" * 300, "/\ud800"]
)
def test_an_operators_file_that_is_no_file_is_a_configuration_error(path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read|at most|UTF-8"):
        read_toml(Path(path))


def test_of_a_list_no_more_is_judged_than_can_be_told() -> None:
    looked: list[object] = []

    class Counted(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            for item in super().__iter__():
                looked.append(item)
                yield item

    document = {"name": "x", "subjobs": Counted([0] * 1000)}
    with pytest.raises(DefinitionError, match="and more problems"):
        serial.structure(WorkflowDefinition, document, source="x", error=DefinitionError)
    assert 51 == len(looked)
