"""Turn a registered application and a user's settings into an argument list.

Each entry of ``arguments`` is a template for one argument. ``{name}`` stands for a parameter's value,
alone or inside the argument; ``{nodes}``, ``{processes}`` and ``{processes_per_node}`` stand for the
job's shape; ``{{`` and ``}}`` are braces. The rules, all of them:

1. A placeholder never makes two arguments out of one, except that ``{name}`` as the whole argument
   becomes one argument per value when the parameter is a list, and brings the parameter's ``flag``.
2. ``flag`` is an option that comes and goes with its value: ``--seed 5`` as two arguments, before
   each value of a list; for a boolean the flag alone stands for true and nothing for false.
3. A parameter with a flag that no argument names is appended at the end, in declared order.
4. An argument that holds a parameter without a value is left out as a whole.

So an optional ``--seed`` is written ``--seed={seed}``, or with ``flag = "--seed"``; two entries
``"--seed", "{seed}"`` would leave a bare ``--seed`` behind, and are refused when registered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import evolve, field, frozen

from edgecore import serial
from edgecore.errors import ActionFailed, ConfigurationError, DefinitionError, Problem
from edgecore.models import Application, JobDefinition, Option, Parameter, Plan, Value
from edgecore.settings import (
    Setting,
    TypedValues,
    find_configuration,
    read_settings,
    typed_setting,
    typed_values,
)
from edgecore.toml import read_toml

__all__ = [
    "argument_list",
    "check_application",
    "check_options",
    "launcher_arguments",
    "make_plan",
    "parse_config_script_output",
    "programs_named",
    "read_application",
]

_SHAPE: Final = ("nodes", "processes", "processes_per_node")
_MOST_ARGUMENTS: Final = 10_000
_LONGEST_ARGUMENT_BYTES: Final = 131_071
"""MAX_ARG_STRLEN of Linux, less the closing zero: see execve(2)."""


# -------------------------------------------------------------------------------- registering


def read_application(path: Path) -> Application:
    """Read a catalogue entry from a TOML file and check it.

    Raises ConfigurationError with every problem: file, key, what was found, what is allowed.
    """
    application = serial.structure(Application, read_toml(path), source=str(path))
    check_application(application, source=str(path))
    return application


def check_application(
    application: Application, launchers: Collection[str] | None = None, *, source: str | None = None
) -> None:
    """Refuse an entry that contradicts itself, or names a launcher that the site does not have.

    Raises ConfigurationError with every problem.
    """
    problems = [
        *_place_problems(application),
        *_launcher_problems(application, launchers),
        *_declared_problems("parameters", application.parameters),
        *_template_problems(application),
    ]
    if problems:
        raise ConfigurationError(source or f"application {application.name}", problems)


def programs_named(application: Application) -> Mapping[str, str]:
    """Return the path of every program that an application names, by its key."""
    keys = ("executable", "preprocess", "postprocess", "config_script")
    return {key: path for key in keys if (path := getattr(application, key)) is not None}


def check_options(options: Mapping[str, Option], *, source: str) -> None:
    """Refuse options of the batch system that a site declares in a contradictory way.

    Raises ConfigurationError with every problem.
    """
    problems = list(_declared_problems("scheduling.options", options))
    if problems:
        raise ConfigurationError(source, problems)


def _place_problems(application: Application) -> Iterator[Problem]:
    for key, place in {**programs_named(application), "directory": application.directory}.items():
        if place is not None and not (place.startswith("/") and place.isprintable()):
            yield Problem(key, serial.shorten(place), "must be an absolute path")
    if application.config_script is not None and application.arguments:
        yield Problem("arguments", "", "are not used, since config_script makes them; keep one of the two")
    if application.config_script is not None and application.parameters:
        yield Problem(
            "parameters", "", "are not used, since config_script reads the file; keep one of the two"
        )


def _launcher_problems(application: Application, launchers: Collection[str] | None) -> Iterator[Problem]:
    launcher = application.launcher
    if launcher is not None and launchers is not None and launcher not in launchers:
        known = ", ".join(sorted(launchers)) or "none"
        words = f"no launcher of this site{serial.nearest(launcher, launchers)}; the site has: {known}"
        yield Problem("launcher", launcher, words)


def _declared_problems(table: str, parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    for name, parameter in parameters.items():
        where = f"{table}.{name}"
        if name in _SHAPE:
            yield Problem(where, "", f"the names {', '.join(_SHAPE)} stand for the job's shape")
        faults = list(_limit_problems(where, parameter))
        yield from faults
        if not faults:  # else the values would be judged by broken rules
            yield from _value_problems(where, parameter)


def _limit_problems(where: str, parameter: Parameter) -> Iterator[Problem]:
    low, high, pattern = parameter.minimum, parameter.maximum, parameter.pattern
    numeric, textual = parameter.type in ("integer", "number"), parameter.type in ("string", "path")
    if not numeric and (low is not None or high is not None):
        yield Problem(where, parameter.type, "minimum and maximum are for integer and number")
    if low is not None and high is not None and not low <= high:
        yield Problem(where, f"minimum {low}, maximum {high}", "minimum must not be above maximum")
    if pattern is not None and not textual:
        yield Problem(where, parameter.type, "a pattern is for string and path")
    elif pattern is not None and (fault := _pattern_fault(pattern)):
        yield Problem(f"{where}.pattern", serial.shorten(pattern), f"is not a regular expression: {fault}")
    if parameter.choices and any(rule is not None for rule in (low, high, pattern)):
        yield Problem(where, "", "choices say all; leave out minimum, maximum and pattern")
    if parameter.list and parameter.type == "boolean":
        yield Problem(f"{where}.list", "true", "a boolean has one value")
    if parameter.flag is not None and (not parameter.flag or "\0" in parameter.flag):
        yield Problem(f"{where}.flag", serial.shorten(parameter.flag), "must be an argument, such as --seed")


def _pattern_fault(pattern: str) -> str:
    try:
        re.compile(pattern, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return ""


def _value_problems(where: str, parameter: Parameter) -> Iterator[Problem]:
    problems: list[Problem] = []
    # A choice may begin with a dash or be empty: it is the operator's own word.
    free = r"-?.*" if parameter.type in ("string", "path") else None
    single = evolve(parameter, choices=(), list=False, pattern=free)
    for index, choice in enumerate(parameter.choices):
        typed_setting(single, Setting(choice), f"{where}.choices[{index}]", problems)
    if parameter.default is not None:
        typed_setting(parameter, Setting(parameter.default), f"{where}.default", problems)
    yield from problems


def _template_problems(application: Application) -> Iterator[Problem]:
    used: set[str] = set()
    for index, template in enumerate(application.arguments):
        where = f"arguments[{index}]"
        try:
            pieces = _pieces(template)
        except ValueError as error:
            yield Problem(where, serial.shorten(template), str(error))
            continue
        names = [piece.text for piece in pieces if piece.is_name]
        used.update(names)
        before = application.arguments[index - 1] if index else ""
        for name in names:
            fault = _placeholder_fault(application.parameters, name, alone=len(pieces) == 1, before=before)
            if fault:
                yield Problem(where, serial.shorten(template), fault)
    for name, parameter in application.parameters.items():
        if name not in used and parameter.flag is None and application.config_script is None:
            yield Problem(
                f"parameters.{name}", "", f"is not used: write {{{name}}} in arguments, or give it a flag"
            )


def _placeholder_fault(parameters: Mapping[str, Parameter], name: str, *, alone: bool, before: str) -> str:
    """Say why the placeholder may not stand there; nothing when it may."""
    if name in _SHAPE:
        return ""
    parameter = parameters.get(name)
    if parameter is None:
        return f"{{{name}}} is not a declared parameter{serial.nearest(name, [*parameters, *_SHAPE])}"
    if not alone and (parameter.list or parameter.flag is not None):
        return f"{{{name}}} has a flag or is a list, and must be the whole argument"
    optional = not parameter.required and parameter.default is None and parameter.flag is None
    plain_option = before.startswith("-") and before.strip("-") != "" and not set("={") & set(before)
    if optional and plain_option:
        return (
            f"without a value for {name}, {before} would stand alone: "
            f"write {before}={{{name}}}, or give {name} the flag {before}"
        )
    return ""


# ----------------------------------------------------------------------------------- arguments


@frozen
class _Piece:
    text: str
    is_name: bool


_TOKEN: Final = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<name>[A-Za-z0-9._-]+)\}|(?P<text>[^{}\0]+)")


def _pieces(template: str) -> tuple[_Piece, ...]:
    """Part a template into literal text and names; raise ValueError when it is none."""
    pieces: list[_Piece] = []
    position = 0
    while position < len(template):
        match = _TOKEN.match(template, position)
        if match is None:
            raise ValueError("must be text with {placeholders}; a brace itself is written {{ or }}")
        position = match.end()
        name = match["name"]
        pieces.append(_Piece(name or match["text"] or match["brace"][0], is_name=name is not None))
    return tuple(pieces)


def argument_list(
    application: Application, values: TypedValues, *, num_nodes: int, processes_per_node: int
) -> tuple[str, ...]:
    """Return the arguments of a checked *application*, without executable and launcher."""
    shape = _shape(num_nodes, processes_per_node)
    arguments: list[str] = []
    named: set[str] = set()
    for template in application.arguments:
        pieces = _pieces(template)
        named.update(piece.text for piece in pieces if piece.is_name)
        only = pieces[0] if len(pieces) == 1 else None
        if only is not None and only.is_name and only.text in application.parameters:
            arguments += _whole(application.parameters[only.text], values.get(only.text))
        else:
            arguments += _filled(pieces, {**values, **shape})
    for name, parameter in application.parameters.items():
        if name not in named and parameter.flag is not None:
            arguments += _whole(parameter, values.get(name))
    return tuple(arguments)


def launcher_arguments(
    templates: Sequence[str], *, num_nodes: int, processes_per_node: int
) -> tuple[str, ...]:
    """Fill the job's shape into a launcher's arguments; raise ConfigurationError for other placeholders."""
    shape = _shape(num_nodes, processes_per_node)
    arguments: list[str] = []
    for index, template in enumerate(templates):
        try:
            filled = _filled(_pieces(template), shape)
        except ValueError:
            filled = []
        if not filled:
            allowed = "must be text, in which {nodes}, {processes} and {processes_per_node} are replaced"
            problem = Problem(f"arguments[{index}]", serial.shorten(template), allowed)
            raise ConfigurationError("launcher", [problem])
        arguments += filled
    return tuple(arguments)


def _shape(num_nodes: int, processes_per_node: int) -> TypedValues:
    return dict(zip(_SHAPE, (num_nodes, num_nodes * processes_per_node, processes_per_node), strict=True))


def _filled(pieces: Iterable[_Piece], values: TypedValues) -> list[str]:
    """Make one argument of a template, or none when a value is missing."""
    words: list[str] = []
    for piece in pieces:
        value = values.get(piece.text) if piece.is_name else piece.text
        if value is None:
            return []
        words += map(_word, _several(value))
    return ["".join(words)]


def _whole(parameter: Parameter, value: Value | tuple[Value, ...] | None) -> list[str]:
    """Make the arguments for a placeholder that stands alone, with its flag if there is one."""
    if value is None or (parameter.flag is not None and value is False):
        return []
    if parameter.flag is None:
        return [_word(item) for item in _several(value)]
    if value is True:
        return [parameter.flag]
    return [word for item in _several(value) for word in (parameter.flag, _word(item))]


def _several(value: Value | tuple[Value, ...]) -> tuple[Value, ...]:
    return value if isinstance(value, tuple) else (value,)


def _word(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------------------------------- plan


def make_plan(
    application: Application,
    definition: JobDefinition,
    data: Path,
    options: Mapping[str, Option],
    *,
    arguments: tuple[str, ...] | None = None,
) -> Plan:
    """Read a job's settings files in *data* and make its argument list and batch options.

    *arguments* are what the application's config_script printed, which the caller runs. Both must be
    there or neither: anything else is a ValueError. Raises DefinitionError with every problem of both
    files and of the job's size, caused by what only the operator may read; OSError when the file system fails, which may pass.
    """
    if (application.config_script is None) is not (arguments is None):
        raise ValueError(f"application {application.name}: arguments go with a config_script, and only so")
    problems = list(_size_problems(application, definition))
    place = _Place(data, None if application.directory is None else Path(application.directory))
    chosen = place.values("scheduler_config", definition.scheduler_config, options, problems)
    values: TypedValues = {}
    if arguments is None:
        values = place.values("config_file", definition.config_file, application.parameters, problems)
    if problems:
        raise DefinitionError(f"job {definition.name}", problems) from next(iter(place.concealed), None)
    if arguments is None:
        arguments = argument_list(
            application,
            values,
            num_nodes=definition.num_nodes,
            processes_per_node=definition.processes_per_node,
        )
    return Plan(arguments, chosen)


def _size_problems(application: Application, definition: JobDefinition) -> Iterator[Problem]:
    limits = (
        ("num_nodes", definition.num_nodes, application.max_nodes),
        ("wall_time_minutes", definition.wall_time_minutes, application.max_wall_time_minutes),
    )
    for key, asked, limit in limits:
        if limit is not None and asked > limit:
            yield Problem(key, f"{asked:,}", f"application {application.name} allows at most {limit:,}")


@frozen
class _Place:
    """Where a job's settings files are looked up."""

    data: Path
    directory: Path | None
    concealed: list[DefinitionError] = field(factory=list)
    """What senders are not told in full."""

    def values(
        self, key: str, name: str | None, declared: Mapping[str, Parameter], problems: list[Problem]
    ) -> TypedValues:
        """Return the typed values of the file *name*; add what is wrong with it to *problems*."""
        source = name or f"{key} (the job names none)"
        found = None
        try:
            found = None if name is None else find_configuration(name, self.data, self.directory)
            settings = {} if found is None else read_settings(found.content, source)
            values = typed_values(declared, settings, source=source)
        except DefinitionError as error:
            theirs = found is None or found.path.is_relative_to(self.data)
            self.concealed.extend(() if theirs else (error,))
            for problem in error.problems if theirs else _concealed(error, declared):
                problems.append(evolve(problem, path=": ".join(filter(None, (source, problem.path)))))
            return {}
        problems += self._strays(source, declared, values)
        return values

    def _strays(
        self, source: str, declared: Mapping[str, Parameter], values: TypedValues
    ) -> Iterator[Problem]:
        """Find paths that a link, staged in with the input, would lead out of the job's data."""
        paths = [
            (key, path)
            for key, value in values.items()
            if declared[key].type == "path"
            for path in _several(value)
        ]
        root = os.path.realpath(self.data) if paths else ""
        for key, path in paths:
            if not Path(os.path.realpath(self.data / str(path))).is_relative_to(root):
                allowed = "a link leads out of the job's data directory"
                yield Problem(f"{source}: {key}", serial.shorten(path), allowed)


def _concealed(error: DefinitionError, declared: Collection[str]) -> Iterator[Problem]:
    """Say what is wrong with a file of the application's directory, and nothing of what stands in it.

    A sender may name any file there, also one that is no configuration file.
    """
    known = [problem for problem in error.problems if problem.path.rpartition(", ")[2] in declared]
    yield from (evolve(problem, found="") for problem in known)
    if len(known) < len(error.problems):
        yield Problem(
            "", "", "is no configuration file for this application; the site's operator finds why in the log"
        )


def parse_config_script_output(output: bytes, name: str) -> tuple[str, ...]:
    """Return the arguments that the config_script *name* printed as a JSON array of strings.

    The script is the operator's, so its words may begin with a dash. Raises ActionFailed.
    """
    try:
        printed = serial.parse_json(output, source=name)
    except DefinitionError as error:
        raise ActionFailed(f"config_script {error}; it must print a JSON array of strings") from error
    if not isinstance(printed, list) or not all(isinstance(word, str) for word in printed):
        raise ActionFailed(
            f"config_script {name}: found {serial.shorten(printed)}; it must print a JSON array of strings"
        )
    if len(printed) > _MOST_ARGUMENTS:
        raise ActionFailed(
            f"config_script {name}: found {len(printed):,} arguments; at most {_MOST_ARGUMENTS:,} are allowed"
        )
    for word in printed:
        encoded = word.encode("utf-8", "replace")  # a lone surrogate becomes a question mark
        if "\0" in word or len(encoded) > _LONGEST_ARGUMENT_BYTES or encoded.decode() != word:
            raise ActionFailed(
                f"config_script {name}: found {serial.shorten(word)}; an argument is UTF-8 text "
                f"without NUL, of at most {_LONGEST_ARGUMENT_BYTES:,} bytes"
            )
    return tuple(printed)
