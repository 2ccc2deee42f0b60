"""The catalogue: entries that operators register, and the argument lists that come of them."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecore.applications import (
    argument_list,
    check_application,
    check_options,
    launcher_arguments,
    make_plan,
    parse_config_script_output,
    read_application,
)
from edgecore.errors import ActionFailed, ConfigurationError, DefinitionError
from edgecore.models import Application, JobDefinition, Option, Parameter, Plan, Value
from edgecore.serial import shorten
from edgecore.settings import Setting, read_settings, typed_values

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For properties: the machine that tests may be busy with other things."""

ZMUMU = """
name = "zmumu"
executable = "/soft/atlas/bin/generate"
arguments = ["--events", "{events}", "--seed", "{seed}", "--output", "{output}"]
launcher = "mpi"
preprocess = "/soft/atlas/bin/fetch-card"
postprocess = "/soft/atlas/bin/check-output"
restartable = false
max_nodes = 512
max_wall_time_minutes = 360
[parameters.events]
type = "integer"
minimum = 1
maximum = 1_000_000_000
[parameters.seed]
type = "integer"
default = 1
[parameters.output]
type = "path"
"""


def entry(*arguments: str, **parameters: Parameter) -> Application:
    return Application(name="app", executable="/bin/app", arguments=arguments, parameters=parameters)


def optional(kind: Any = "integer", **rules: Any) -> Parameter:
    return Parameter(type=kind, required=False, **rules)


def arguments_of(application: Application, **values: Value | tuple[Value, ...]) -> tuple[str, ...]:
    return argument_list(application, values, num_nodes=4, processes_per_node=16)


def complaints(application: Application, launchers: tuple[str, ...] | None = None) -> str:
    with pytest.raises(ConfigurationError) as raised:
        check_application(application, launchers)
    return str(raised.value)


def job(**keys: Any) -> JobDefinition:
    return JobDefinition(**{"name": "j", "application": "app", "site": "here", **keys})


# ------------------------------------------------------------------------------ registering


def test_the_entry_of_the_contract_is_read(tmp_path: Path) -> None:
    path = tmp_path / "zmumu.toml"
    path.write_text(ZMUMU)
    application = read_application(path)
    assert application.name == "zmumu"
    assert application.max_nodes == 512
    assert application.parameters["events"] == Parameter(type="integer", minimum=1, maximum=1_000_000_000)
    assert application.parameters["seed"].default == 1
    check_application(application, {"mpi"})


def test_every_kind_of_rule_can_stand_in_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "full.toml"
    path.write_text("""
        name = "full"
        executable = "/bin/app"
        arguments = ["--x={x}", "{files}"]
        [parameters]
        x = {type = "number", minimum = -1.5, maximum = 2, default = 0.5}
        mode = {type = "string", choices = ["fast", "slow"], default = "slow", flag = "--mode"}
        files = {type = "path", list = true, default = ["a.txt", "b.txt"]}
        verbose = {type = "boolean", flag = "-v", required = false}
        label = {type = "string", pattern = "[a-z]+", required = false, flag = "--label"}
    """)
    application = read_application(path)
    assert application.parameters["files"].default == ("a.txt", "b.txt")
    plan = make_plan(application, job(), tmp_path, {})
    assert plan.arguments == ("--x=0.5", "a.txt", "b.txt", "--mode", "slow")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = 1\nname = \n", ["entry.toml", "not TOML", "line 2"]),
        ("name = 'x'", ["executable", "required"]),
        ("name = 'x y'\nexecutable = 3\nexecutible = 4", ["name", "'x y'", "executable", "3", "did you mean executable"]),
        ("name = 'x'\nexecutable = '/x'\n[parameters.a]\ntype = 'int'", ["parameters.a.type", "int", "integer"]),
        ("name = 'x'\nexecutable = '/x'\narguments = ['{evens}']\n[parameters.events]\ntype = 'integer'",
         ["entry.toml", "arguments[0]", "evens", "did you mean events", "parameters.events: is not used"]),
        ("a=" + "[" * 5000, ["very deep nesting"]),
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused_with_all_that_is_wrong(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "entry.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        read_application(path)
    for word in words:
        assert word in str(raised.value)


def test_an_entry_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.toml: cannot be read: No such file"):
        read_application(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigurationError, match=r"latin\.toml: is not TOML"):
        read_application(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("application", "words"),
    [
        (entry("{a}"), "arguments[0]: found '{a}'; {a} is not a declared parameter"),
        (entry(a=Parameter(type="integer")), "parameters.a: is not used"),
        (entry("{a", a=optional(flag="-a")), "a brace itself is written {{ or }}"),
        (entry("a}"), "a brace itself is written"),
        (entry("{}"), "a brace itself is written"),
        (entry("{a b}"), "a brace itself is written"),
        (entry("a\0b"), "must be text"),
        (entry("x{a}", a=Parameter(type="path", list=True)), "must be the whole argument"),
        (entry("x{a}", a=Parameter(type="boolean", flag="-a")), "must be the whole argument"),
        (entry("--a", "{a}", a=optional()), "write --a={a}, or give a the flag --a"),
        (entry("--a", "x{a}", a=optional()), "write --a={a}"),
        (entry("{nodes}", nodes=Parameter(type="integer")), "stand for the job's shape"),
        (entry("{a}", a=Parameter(type="string", pattern="(")), "parameters.a.pattern"),
        (entry("{a}", a=Parameter(type="integer", pattern="1")), "a pattern is for string and path"),
        (entry("{a}", a=Parameter(type="string", minimum=1)), "minimum and maximum are for integer and number"),
        (entry("{a}", a=Parameter(type="integer", minimum=2, maximum=1)), "minimum must not be above maximum"),
        (entry("{a}", a=Parameter(type="integer", minimum=2, default=1)), "parameters.a.default: found 1; must be"),
        (entry("{a}", a=Parameter(type="integer", default="1")), "parameters.a.default: found '1'"),
        (entry("{a}", a=Parameter(type="integer", default=True)), "parameters.a.default: found True"),
        (entry("{a}", a=Parameter(type="integer", default=(1,))), "parameters.a.default: found tuple of 1"),
        (entry("{a}", a=Parameter(type="path", default="/etc/passwd")), "parameters.a.default"),
        (entry("{a}", a=Parameter(type="path", list=True, default="x")), "must be a list"),
        (entry("{a}", a=Parameter(type="path", list=True, default=())), "leave the key out for none"),
        (entry("{a}", a=Parameter(type="path", list=True, default=("x", "../y"))), "parameters.a.default[1]"),
        (entry("{a}", a=Parameter(type="string", choices=("x", 1))), "parameters.a.choices[1]: found 1"),
        (entry("{a}", a=Parameter(type="string", choices=("x",), default="y")), "found 'y'; must be one of 'x'"),
        (entry("{a}", a=Parameter(type="integer", choices=(1,), minimum=0)), "choices say all"),
        (entry("{a}", a=Parameter(type="boolean", list=True)), "a boolean has one value"),
        (entry("{a}", a=Parameter(type="boolean", flag="")), "parameters.a.flag"),
        (evolve(entry(), executable="bin/app"), "executable: found 'bin/app'; must be an absolute path"),
        (evolve(entry(), preprocess="x"), "preprocess"),
        (evolve(entry(), postprocess="~/x"), "postprocess"),
        (evolve(entry(), config_script="./x"), "config_script"),
        (evolve(entry(), directory="."), "directory"),
        (evolve(entry("x"), config_script="/x"), "since config_script makes them"),
        (evolve(entry(a=optional()), config_script="/x"), "since config_script reads the file"),
    ],
)  # fmt: skip
def test_an_entry_that_contradicts_itself_is_refused(application: Application, words: str) -> None:
    assert words in complaints(application)


def test_all_contradictions_are_named_at_once() -> None:
    bad = evolve(entry("{b}", a=Parameter(type="string", pattern="(")), executable="x", launcher="mpj")
    words = complaints(bad, ("mpi", "none"))
    for word in (
        "application app",
        "executable",
        "mpj",
        "did you mean mpi",
        "mpi, none",
        "a.pattern",
        "{b}",
        "not used",
    ):
        assert word in words


def test_a_launcher_is_only_judged_when_the_sites_launchers_are_known() -> None:
    application = evolve(entry(), launcher="mpi")
    check_application(application)
    check_application(application, ("mpi",))
    assert "the site has: none" in complaints(application, ())


@pytest.mark.parametrize("before", ["-", "--", "--a=1", "-{b}", "file"])
def test_an_optional_argument_may_follow_what_takes_no_value(before: str) -> None:
    check_application(
        entry(before, "{a}", a=optional(), b=optional(flag=None) if "{b}" in before else optional(flag="-b"))
    )


def test_choices_are_the_operators_words_and_may_begin_with_a_dash() -> None:
    application = entry("{a}", a=Parameter(type="string", choices=("-O2", "", "-O3"), default="-O2"))
    check_application(application)
    assert typed_values(application.parameters, {"a": Setting("-O3")}, source="f") == {"a": "-O3"}


def test_contradictory_options_of_a_site_are_refused() -> None:
    check_options({"constraint": Option(type="string", pattern="[a-z|&]+")}, source="site.toml")
    with pytest.raises(ConfigurationError, match=r"site\.toml: scheduling\.options\.constraint\.pattern"):
        check_options({"constraint": Option(type="string", pattern="[")}, source="site.toml")


# -------------------------------------------------------------------------------- arguments


def test_values_stand_alone_or_inside_an_argument() -> None:
    application = entry(
        "--seed={seed}", "{x}", "{seed}-{x}", seed=Parameter(type="integer"), x=Parameter(type="number")
    )
    check_application(application)
    assert arguments_of(application, seed=3, x=-0.5) == ("--seed=3", "-0.5", "3--0.5")


def test_doubled_braces_are_braces() -> None:
    application = entry("{{{a}}}", "{{a}}", "{{", "", a=Parameter(type="integer"))
    check_application(application)
    assert arguments_of(application, a=1) == ("{1}", "{a}", "{", "")


def test_the_shape_of_the_job_can_be_given_to_the_application() -> None:
    application = entry("{nodes}", "{processes}", "-n={processes_per_node}")
    check_application(application)
    assert arguments_of(application) == ("4", "64", "-n=16")


def test_an_argument_without_its_value_is_left_out_as_a_whole() -> None:
    application = entry("go", "--seed={seed}", "{a}:{b}", "end", seed=optional(), a=optional(), b=optional())
    check_application(application)
    assert arguments_of(application) == ("go", "end")
    assert arguments_of(application, a=1) == ("go", "end")
    assert arguments_of(application, a=1, b=2, seed=0) == ("go", "--seed=0", "1:2", "end")


def test_a_flag_comes_and_goes_with_its_value() -> None:
    application = entry("{seed}", "in", seed=optional(flag="--seed"), label=optional("string", flag="-l"))
    check_application(application)
    assert arguments_of(application) == ("in",)
    assert arguments_of(application, seed=0, label="x") == ("--seed", "0", "in", "-l", "x")


def test_a_boolean_flag_stands_for_true() -> None:
    application = entry("{v}", "in", "{w}", v=Parameter(type="boolean", flag="-v"), w=Parameter(type="boolean"),
                        x=Parameter(type="boolean", flag="-x"))  # fmt: skip
    check_application(application)
    assert arguments_of(application, v=True, w=True, x=True) == ("-v", "in", "true", "-x")
    assert arguments_of(application, v=False, w=False, x=False) == ("in", "false")


def test_each_value_of_a_list_is_an_argument_of_its_own() -> None:
    application = entry("{files}", "end", files=Parameter(type="path", list=True),
                        include=optional("path", list=True, flag="-I"))  # fmt: skip
    check_application(application)
    assert arguments_of(application, files=("a b", "c")) == ("a b", "c", "end")
    assert arguments_of(application, files=("a",), include=("x", "y")) == ("a", "end", "-I", "x", "-I", "y")


def test_a_launcher_gets_the_shape_of_the_job_and_nothing_else() -> None:
    templates = ["srun", "-n", "{processes}", "--ntasks-per-node={processes_per_node}", "{{}}"]
    filled = launcher_arguments(templates, num_nodes=2, processes_per_node=8)
    assert filled == ("srun", "-n", "16", "--ntasks-per-node=8", "{}")
    for bad in ("{events}", "{", "}"):
        with pytest.raises(ConfigurationError, match=r"launcher: arguments\[1\]"):
            launcher_arguments(["srun", bad], num_nodes=1, processes_per_node=1)


SHELL = [
    "; rm -rf ~",
    "$(id)",
    "`id`",
    "a|b",
    "a && b",
    "> /etc/passwd",
    "*",
    "~root",
    "'",
    '"',
    "a b",
    "%s",
    "{x}",
    "#!",
]


@pytest.mark.parametrize("value", SHELL)
def test_what_means_something_to_a_shell_is_only_text_here(value: str) -> None:
    application = entry("--label", "{label}", "--x={label}", label=Parameter(type="string"))
    values = typed_values(application.parameters, {"label": Setting(value)}, source="f")
    assert arguments_of(application, **dict(values)) == ("--label", value, f"--x={value}")


PARAMETERS: Mapping[str, Parameter] = {
    "i": optional(), "n": optional("number"), "s": optional("string"), "p": optional("path"),
    "b": optional("boolean"), "ss": optional("string", list=True), "c": optional("string", choices=("-c", "d")),
    "m": optional("string", pattern=".*"), "d": optional("string", pattern="-[a-z]+", list=True),
}  # fmt: skip
EVERY = entry(*(f"{{{name}}}" for name in PARAMETERS), **PARAMETERS)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text("-./ab\n\ud800", max_size=6)
)
RAW = SCALARS | st.lists(SCALARS, max_size=4) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)
SETTING = st.builds(Setting, RAW) | st.builds(
    Setting, st.text() | st.text("-,'\" ab1.", max_size=8), st.just(1), st.just(True)
)


@calm
@given(st.sampled_from([*PARAMETERS]), SETTING)
def test_no_argument_begins_with_a_dash_unless_it_is_a_number_or_the_operator_said_so(
    key: str, setting: Setting
) -> None:
    try:
        values = typed_values(PARAMETERS, {key: setting}, source="f")
    except DefinitionError:
        return  # the right answer to the other values
    for argument in arguments_of(EVERY, **dict(values)):
        assert argument.isprintable()
        if argument.startswith("-"):
            numeric = key in "in" and re.fullmatch(r"-\d+(\.\d+)?(e[+-]\d+)?", argument)
            assert numeric or argument == "-c" or (key == "d" and re.fullmatch("-[a-z]+", argument))


@calm
@given(st.text(string.printable + "äß€", max_size=30))
def test_a_template_is_refused_when_registered_or_filled_later(template: str) -> None:
    application = entry(template, "{a}", a=Parameter(type="integer"))
    try:
        check_application(application)
    except ConfigurationError:
        return
    first, last = arguments_of(application, a=7)
    assert first == template.replace("{{", "\0").replace("}}", "\1").replace("{a}", "7").replace(
        "\0", "{"
    ).replace("\1", "}")
    assert last == "7"


# ------------------------------------------------------------------------------------- plan


@pytest.fixture
def zmumu(tmp_path: Path) -> Application:
    path = tmp_path / "zmumu.toml"
    path.write_text(ZMUMU)
    return read_application(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


OPTIONS = {"constraint": Option(type="string", pattern="[a-z|&]+")}


def test_settings_files_become_a_plan(zmumu: Application, data: Path) -> None:
    (data / "app.cfg").write_text("# ten thousand\nevents = 10000\noutput = out/events.dat\n")
    (data / "batch.json").write_text('{"constraint": "knl&quad"}')
    plan = make_plan(zmumu, job(config_file="app.cfg", scheduler_config="batch.json"), data, OPTIONS)
    expected = ("--events", "10000", "--seed", "1", "--output", "out/events.dat")
    assert plan == Plan(expected, {"constraint": "knl&quad"})


def test_options_have_defaults_when_a_job_names_no_file(data: Path) -> None:
    options = {"licence": Option(type="string", default="g4"), "qos": Option(type="string")}
    assert make_plan(entry("x"), job(), data, options) == Plan(("x",), {"licence": "g4"})


def test_everything_wrong_with_a_job_is_said_at_once(zmumu: Application, data: Path) -> None:
    (data / "app.cfg").write_text("\nevents = 0\nevetns = 5\n")
    (data / "batch.toml").write_text('constraint = "Not Allowed"\n')
    wanted = job(config_file="app.cfg", scheduler_config="batch.toml", num_nodes=513, wall_time_minutes=361)
    with pytest.raises(DefinitionError) as raised:
        make_plan(zmumu, wanted, data, OPTIONS)
    words = str(raised.value)
    for word in (
        "job j: num_nodes: found 513; application zmumu allows at most 512",
        "wall_time_minutes: found 361; application zmumu allows at most 360",
        "app.cfg: line 2, events: found '0'; must be a whole number in decimal digits, at least 1, at most 1,000,000,000",
        "app.cfg: line 3, evetns: unknown key; did you mean events?",
        "app.cfg: output: is required",
        "batch.toml: line 1, constraint: found 'Not Allowed'",
    ):
        assert word in words


def test_a_missing_settings_file_is_named_with_both_places(zmumu: Application, data: Path) -> None:
    application = evolve(zmumu, directory="/soft/atlas/cards")
    with pytest.raises(
        DefinitionError, match=rf"app\.cfg: there is no such file in {data} or in /soft/atlas/cards"
    ):
        make_plan(application, job(config_file="app.cfg"), data, {})


def test_a_required_value_is_missed_without_any_file(zmumu: Application, data: Path) -> None:
    with pytest.raises(
        DefinitionError, match=r"config_file \(the job names none\): events: is required: a whole number"
    ):
        make_plan(zmumu, job(), data, {})


def test_a_file_for_an_application_that_takes_nothing_is_refused(data: Path) -> None:
    (data / "app.cfg").write_text("a = 1")
    with pytest.raises(DefinitionError, match="line 1, a: unknown key; no key is declared here"):
        make_plan(entry(), job(config_file="app.cfg"), data, {})


def test_a_path_may_not_leave_the_data_through_a_staged_link(data: Path, tmp_path: Path) -> None:
    application = entry("{a}", a=Parameter(type="path", list=True))
    (data / "inside").mkdir()
    (data / "good").symlink_to("inside")
    (data / "bad").symlink_to(tmp_path)
    (data / "loop").symlink_to("loop")
    (data / "app.cfg").write_text("a = good/x, new/y, inside, loop/z")
    wanted = job(config_file="app.cfg")
    assert make_plan(application, wanted, data, {}).arguments == ("good/x", "new/y", "inside", "loop/z")
    (data / "app.cfg").write_text("a = good/x, bad/y, bad")
    with pytest.raises(DefinitionError) as raised:
        make_plan(application, wanted, data, {})
    assert [problem.found for problem in raised.value.problems] == ["'bad/y'", "'bad'"]
    assert "leads out of the job's data directory" in str(raised.value)


# ---------------------------------------------------------------------------- config_script


def test_a_config_script_makes_the_arguments_and_options_are_still_read(data: Path) -> None:
    application = evolve(entry(), config_script="/soft/make", max_nodes=2)
    (data / "batch.cfg").write_text("constraint = knl")
    (data / "app.cfg").write_bytes(b"\xff anything at all")
    wanted = job(config_file="app.cfg", scheduler_config="batch.cfg")
    plan = make_plan(application, wanted, data, OPTIONS, arguments=("--raw", "1"))
    assert plan == Plan(("--raw", "1"), {"constraint": "knl"})
    with pytest.raises(DefinitionError, match="num_nodes"):
        make_plan(application, job(num_nodes=3), data, OPTIONS, arguments=())


def test_arguments_go_with_a_config_script_and_only_so(data: Path) -> None:
    with pytest.raises(ValueError, match="go with a config_script"):
        make_plan(evolve(entry(), config_script="/soft/make"), job(), data, {})
    with pytest.raises(ValueError, match="go with a config_script"):
        make_plan(entry(), job(), data, {}, arguments=())


@calm
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_the_words_of_a_config_script_arrive_as_printed(words: list[str]) -> None:
    assert parse_config_script_output(json.dumps(words).encode(), "make") == tuple(words)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (b"", "not JSON"),
        (b"--x 1", "line 1, column"),
        (b"{}", "a JSON array of strings"),
        (b"[1]", "a JSON array of strings"),
        (b'["a",]', "remove the comma"),
        (b'["a\\u0000b"]', "without NUL"),
        (b'["\\ud800"]', "UTF-8 text"),
        (b'["' + b"a" * 131_072 + b'"]', "at most 131,071 bytes"),
        (b"[" + b'"",' * 10_000 + b'""]', "at most 10,000"),
        (b'["' + b"a" * 1_048_576 + b'"]', "1,048,576 bytes"),
        (b'["\xff"]', "UTF-8"),
    ],
    ids=lambda value: shorten(value, 30),
)
def test_what_else_a_config_script_prints_is_refused(output: bytes, words: str) -> None:
    with pytest.raises(ActionFailed, match=r"config_script make: ") as raised:
        parse_config_script_output(output, "make")
    assert words in str(raised.value)


@calm
@given(st.binary(max_size=60))
def test_whatever_a_config_script_prints_there_are_words_or_a_refusal(output: bytes) -> None:
    try:
        words = parse_config_script_output(output, "make")
    except ActionFailed:
        return
    assert all(isinstance(word, str) for word in words)


@calm
@given(
    st.binary(max_size=200) | st.text("is=\"', #\n[]-5", max_size=60).map(str.encode),
    st.sampled_from(["a.cfg", "a.toml", "a.json"]),
)
def test_whatever_a_file_holds_there_are_arguments_or_a_refusal(content: bytes, name: str) -> None:
    try:
        values = typed_values(PARAMETERS, read_settings(content, name), source=name)
    except DefinitionError as error:
        assert str(error).startswith(f"{name}: ")  # noqa: PT017
        return
    assert all(isinstance(argument, str) for argument in arguments_of(EVERY, **dict(values)))
