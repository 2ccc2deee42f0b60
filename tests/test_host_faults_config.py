"""Every key of a site's file, set wrongly in every way that its type knows; and files that are none.

The keys are found by walking the classes that the file is read into, so that a new one is covered by itself.
"""

from __future__ import annotations

import json
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import attrs
import pytest
from attrs import frozen
from click.testing import CliRunner, Result

from edgecore import config as configuration
from edgecore.cli import cli
from edgecore.config import SiteConfig, read_site
from edgecore.errors import ConfigurationError
from edgecore.models import Between, Option, Text

REQUIRED: dict[type, dict[str, Any]] = {
    SiteConfig: {
        "site": "theta",
        "work_directory": "jobs",
        "store": "theta.sqlite",
        "messaging": {"url": "sqlite:///queue.sqlite"},
        "scheduling": {"driver": "fork"},
    },
    configuration.MessagingTable: {"url": "sqlite:///queue.sqlite"},
    configuration.SchedulingTable: {"driver": "fork"},
    configuration.TransferTable: {"prefix": "file:///data/"},
    configuration.LauncherTable: {"arguments": []},
    Option: {"type": "integer"},
}
"""What a table must hold beside the key that is wrong."""

OPEN = (configuration.MessagingTable, configuration.SchedulingTable, configuration.TransferTable)
"""Tables whose unknown keys are for the driver to judge."""


@frozen
class Wrong:
    """A value that a key must not have."""

    path: str
    document: Any
    told: str = ""
    """Where the problem is told, when that is not where the value stands."""


def wrong_values(kind: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a value of *kind* must not be: where inside of it the problem is, and the value."""
    if kind is Any or (get_origin(kind) is Mapping and get_args(kind)[1] is Any):
        return
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _wrong_annotated(*get_args(kind))
    elif origin in (types.UnionType, typing.Union):
        members = [each for each in get_args(kind) if each is not type(None)]
        yield from wrong_values(members[0]) if len(members) == 1 else [("", {})]
    elif origin is Literal:
        yield from [("", "no such word"), ("", 5)]
    elif origin is tuple:
        yield "", 5
        for place, value in wrong_values(get_args(kind)[0]):
            yield f"[0]{place}", [value]
    elif origin is not None and issubclass(origin, Mapping):
        yield "", 5
        yield "", [1]
        for place, value in wrong_values(get_args(kind)[1]):
            yield f".x{place}", {"x": value}
    elif attrs.has(kind):
        yield "", 5
        for wrong in wrong_in(kind):
            yield f".{wrong.path}", wrong.document
    else:
        yield from (("", value) for value in _WRONG_PLAIN[kind])


_WRONG_PLAIN: dict[Any, list[Any]] = {
    str: [5, True, [], {}],
    int: ["ten", 1.5, True, []],
    float: ["ten", math.nan, True, []],
    bool: [5, "yes", []],
    Path: [5, [], "a\0b"],
    Any: [],
}


def _wrong_annotated(plain: Any, *rules: Any) -> Iterator[tuple[str, Any]]:
    yield from wrong_values(plain)
    for rule in rules:
        if isinstance(rule, Between):
            yield "", rule.minimum - 1
            yield "", rule.maximum + 1 if plain is float else int(rule.maximum) + 1
        elif isinstance(rule, Text):
            refused = [text for text in ("", "a b", "-x", "x\n", "a\0b", "x" * 300) if not rule.accepts(text)]
            assert refused, rule
            yield from (("", text) for text in refused)


def wrong_in(table: type) -> Iterator[Wrong]:
    """Yield every way in which one key of a table can be wrong, and a key that there is not."""
    attrs.resolve_types(table, include_extras=True)
    required = REQUIRED.get(table, {})
    for each in attrs.fields(table):
        if each.name in ("settings", "source") or not each.init:
            continue
        key = "pass" if each.name == "inherit" else each.name
        for place, value in wrong_values(each.type):
            yield Wrong(f"{key}{place}", {**required, key: value})
        if each.default is attrs.NOTHING and each.name in required:
            without = {name: value for name, value in required.items() if name != key}
            yield Wrong(key, without)
        if table not in OPEN:
            yield Wrong(f"{key}_", {**required, f"{key}_": 1})


def written(value: Any) -> str:
    """Write a value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return "nan" if isinstance(value, float) and math.isnan(value) else json.dumps(value)


CASES: dict[str, list[Any]] = {}
for _wrong in wrong_in(SiteConfig):
    CASES.setdefault(_wrong.path, []).append(_wrong.document)


@pytest.mark.parametrize("path", CASES)
def test_a_wrong_key_is_named_with_its_file_its_table_what_was_found_and_what_is_allowed(
    path: str, tmp_path: Path
) -> None:
    file = tmp_path / "site.toml"
    for document in CASES[path]:
        text = "".join(f"{json.dumps(key)} = {written(value)}\n" for key, value in document.items())
        file.write_text(text)
        with pytest.raises(ConfigurationError) as caught:
            read_site(file)
        told = [problem for problem in caught.value.problems if problem.path.startswith(path)]
        assert told, (text, str(caught.value))
        assert str(file) == caught.value.source
        assert str(caught.value).startswith(f"{file}: ")
        for problem in told:
            assert problem.allowed, text
            assert problem.found or problem.allowed.startswith(("unknown key", "is required")), str(problem)


def test_the_walk_finds_keys_of_every_depth_and_kind() -> None:
    assert {
        "site",
        "site_",
        "limits.max_queued",
        "limits.max_queued_",
        "environment.pass[0]",
        "scheduling.options.x.minimum",
        "transfer[0].prefix",
        "launchers.x.arguments[0]",
        "log.level",
        "retention.keep_days",
    } <= set(CASES)
    tables = {each.name for each in attrs.fields(SiteConfig)} - {"source"}
    assert tables <= {path.partition(".")[0].partition("[")[0] for path in CASES}


# ---------------------------------------------------------------------------- edgecore run


def run(file: Path) -> Result:
    return CliRunner().invoke(cli, ["run", str(file)])


def _no_file(file: Path) -> str:
    return f"no {file}"


def _directory(file: Path) -> str:
    file.mkdir()
    return "cannot be read: Is a directory"


def _not_toml(file: Path) -> str:
    file.write_text("site = \n")
    return "line 1"


def _not_text(file: Path) -> str:
    file.write_bytes(b'site = "\xff"\n')
    return "is not TOML"


def _empty(file: Path) -> str:
    file.touch()
    return "site: is required"


def _huge(file: Path) -> str:
    file.write_bytes(b"#" * (2 * 1024 * 1024))
    return "at most 1,048,576 bytes"


def _loop(file: Path) -> str:
    file.symlink_to(file)
    return f"no {file}"


@pytest.mark.parametrize("make", [_no_file, _directory, _not_toml, _not_text, _empty, _huge, _loop])
def test_a_site_file_that_is_none_is_said_in_words_with_exit_code_2(make: Any, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    words = make(file)
    answer = run(file)
    assert (2, True) == (answer.exit_code, words in answer.stderr), answer.stderr
    assert answer.stderr.startswith("error: ")
    assert "Traceback" not in answer.stderr
    assert [] == [each.name for each in tmp_path.iterdir() if each != file]  # nothing was begun


def test_a_site_file_that_may_not_be_read_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site.toml"
    file.write_text('site = "theta"\n')
    file.chmod(0)
    if os.geteuid() == 0:  # whom no mode keeps out

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr(Path, "open", refuse)
    answer = run(file)
    assert (2, True) == (answer.exit_code, "cannot be read: Permission denied" in answer.stderr)
