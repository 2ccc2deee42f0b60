"""Settings files: found safely, read in three forms, typed as declared, refused all at once."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecore.errors import DefinitionError
from edgecore.models import Parameter, Value
from edgecore.serial import shorten
from edgecore.settings import Setting, TypedValues, find_configuration, read_settings, typed_values

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For properties: the machine that tests may be busy with other things."""


def read(text: str | bytes, name: str = "app.cfg") -> dict[str, tuple[object, int | None]]:
    content = text.encode() if isinstance(text, str) else text
    return {key: (setting.value, setting.line) for key, setting in read_settings(content, name).items()}


def refusal(text: str | bytes, name: str = "app.cfg") -> str:
    with pytest.raises(DefinitionError) as raised:
        read(text, name)
    return str(raised.value)


def judge(text: str, name: str, parameters: Mapping[str, Parameter]) -> TypedValues:
    return typed_values(parameters, read_settings(text.encode(), name), source=name)


def brief(value: object) -> str:
    """Name a case; some are a megabyte long."""
    return shorten(value, 30)


def written(text: str, kind: Any, **rules: Any) -> Value | tuple[Value, ...]:
    """Return what `a = text` comes to for a parameter of this kind."""
    return judge(f"a = {text}", "app.cfg", {"a": Parameter(type=kind, **rules)})["a"]


def native(value: object, kind: Any, **rules: Any) -> Value | tuple[Value, ...]:
    """Return what a value of a TOML or JSON file comes to for a parameter of this kind."""
    return typed_values({"a": Parameter(type=kind, **rules)}, {"a": Setting(value)}, source="a.toml")["a"]


# ---------------------------------------------------------------------------------- reading


def test_lines_of_key_and_value_are_read_with_comments_and_blank_lines() -> None:
    text = "# a comment\n\n; another\r\n  events = 10 \r\nlabel=a = b\n\tempty =\n"
    assert read(text) == {"events": ("10", 4), "label": ("a = b", 5), "empty": ("", 6)}


def test_toml_and_json_are_read_by_their_ending_and_know_their_lines() -> None:
    assert read('# x\nevents = 10\n"x" = ["a",\n"b"]', "A.TOML") == {"events": (10, 2), "x": (["a", "b"], 3)}
    assert read('{"events": 10,\n "x": null}', "a.json") == {"events": (10, 1), "x": (None, 2)}
    assert read("events = 10", "a.ini") == {"events": ("10", 1)}


def test_no_line_is_named_where_two_could_be_meant() -> None:
    assert read('a = 1\nb = """\na = 2"""', "a.toml")["a"] == (1, None)
    assert read('{"a": 1,\n"b": {"a": 2}}', "a.json")["a"] == (1, None)


@pytest.mark.parametrize("name", ["a.cfg", "a.toml", "a.json"])
def test_a_byte_order_mark_is_no_part_of_the_first_key(name: str) -> None:
    text = '{"a": 1}' if name == "a.json" else "a = 1"
    assert list(read(b"\xef\xbb\xbf" + text.encode(), name)) == ["a"]


def test_every_bad_line_is_named_at_once() -> None:
    words = refusal("[section]\nevents\n= 5\na = 1\nb = 2\na = 3\n")
    assert words == (
        "app.cfg: line 1: found '[section]'; there are no sections in this file; remove the header; "
        "line 2: found 'events'; a line must be key = value; "
        "line 3: found '= 5'; a line must be key = value; "
        "line 6, a: found '3'; a key may stand only once; it stands in line 4 already"
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.cfg", b"a = 1\nb = \xff\n", "a.cfg: line 2: found byte 0xff; the file must be UTF-8 text"),
        ("a.toml", b"\xff", "line 1"),
        ("a.json", b"\xff", "line 1"),
        ("a.cfg", b"#" * (1 << 20) + b"\n", "at most 1,048,576 bytes"),
        ("a.toml", b"a = 1\nb = \n", "a.toml: line 2: is not TOML"),
        ("a.toml", b"a = 1\na = 2", "not TOML: Cannot overwrite a value"),
        ("a.toml", b"a = " + b"[" * 9000, "very deep nesting"),
        ("a.toml", b"a = " + b"9" * 5000, "not TOML"),
        ("a.toml", b"a.b.c.d.e.f = 1", "a dotted key has at most 5 parts"),
        ("a.json", b'{"a": 1,}', "remove the comma after the last item"),
        ("a.json", b'{"a": 1, "a": 2}', "a key may stand only once"),
        ("a.json", b'{"a": NaN}', "JSON has no such number"),
        ("a.json", b"[]", "must be an object of keys and values"),
        ("a.json", b"[" * 100_000, "nesting"),
        ("a.json", b"", "not JSON"),
    ],
    ids=brief,
)
def test_a_file_that_cannot_be_read_is_refused_with_the_place(name: str, text: bytes, words: str) -> None:
    assert words in refusal(text, name)


DOTS = "a." * 9
HOSTILE_TOML = {
    "key": f"{DOTS}a = 1",
    "spaced": "a . b . c . d . e . f = 1",
    "quoted": '"a b"."a.b".\'c\'."".d.e.f = 1',
    "header": f"[{DOTS}a]",
    "inline": f"x = {{{DOTS}a = 1}}",
    "after a string": f'x = {{k = "\\"", {DOTS}a = 1}}',
    "after a literal": f"x = {{k = '\\', {DOTS}a = 1}}",
    "after four quotes": f'x = {{k = """a"""", {DOTS}a = 1}}',
    "after five quotes": f"x = {{k = '''a''''', {DOTS}a = 1}}",
    "after a comment": f"# it's\n{DOTS}a = 1",
    "after a string of lines": f'x = """\n\\""" # \n"""\n{DOTS}a = 1',
}


@pytest.mark.parametrize("text", HOSTILE_TOML.values(), ids=HOSTILE_TOML)
def test_a_long_dotted_key_is_refused_before_the_parser_spends_hours_on_it(text: str) -> None:
    assert "a dotted key has at most 5 parts" in refusal(text, "a.toml")


@pytest.mark.parametrize(
    "text",
    ['a = "1.2.3.4.5.6.7"', "a = '1.2.3.4.5.6.7'", 'a = """\n1.2.3.4.5.6.7\n"""', "a = 1 # 1.2.3.4.5.6.7"],
)
def test_dots_in_strings_and_comments_are_nobodys_business(text: str) -> None:
    assert list(read(text, "a.toml")) == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "a." * 500_000 + "a = 1"),
        ("a.toml", '"\\"' * 300_000),
        ("a.toml", "a" * 1_000_000),
        ("a.toml", '"""' + '"" ' * 300_000),
        ("a.toml", "a = '''" + "'' " * 300_000),
        ("a.json", '{"' + " " * 1_000_000),
        ("a.json", '{"a"' + " " * 1_000_000 + '"b"}'),
        ("a.cfg", "a = 'x'," + " " * 1_000_000 + "'x"),
        ("a.cfg", "a = '" + "' #" * 300_000),
        ("a.cfg", "a = x" + " " * 1_000_000 + "y"),
        ("a.cfg", "a = " + "," * 1_000_000),
        ("a.cfg", "a = " + "9" * 1_000_000),
        ("a.cfg", "\n".join(f"{i:x}=1" for i in range(120_000))),
        ("a.cfg", "x\n" * 500_000),
    ],
    ids=brief,
)
def test_no_file_of_legal_size_takes_long(name: str, text: str) -> None:
    kinds: tuple[Any, ...] = ("integer", "number", "string", "path")
    begun = time.process_time()
    for listed in (False, True):
        for kind in kinds:
            with pytest.raises(DefinitionError):
                judge(text, name, {"a": Parameter(type=kind, list=listed, choices=("b",))})
    assert time.process_time() - begun < 30  # a quadratic step takes minutes, each


def test_a_report_of_thousands_of_problems_is_cut() -> None:
    words = refusal("x\n" * 5000)
    assert words.endswith("; and more problems")
    with pytest.raises(DefinitionError) as raised:
        typed_values({}, {f"k{i}": Setting(1) for i in range(5000)}, source="f")
    assert len(raised.value.problems) == 101


# ----------------------------------------------------------------------------------- typing

MAXIMUM = 2**63 - 1


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("10", "integer", 10), ("-5", "integer", -5), ("+5", "integer", 5), ("007", "integer", 7),
        ('"12"', "integer", 12), (str(MAXIMUM), "integer", MAXIMUM), (str(-(2**63)), "integer", -(2**63)),
        ("1.5", "number", 1.5), ("-.5", "number", -0.5), ("5.", "number", 5.0), ("1e-3", "number", 0.001),
        ("5", "number", 5), ("'2.5'", "number", 2.5),
        ("true", "boolean", True), ("Yes", "boolean", True), ("ON", "boolean", True), ("1", "boolean", True),
        ("false", "boolean", False), ("no", "boolean", False), ("off", "boolean", False), ("0", "boolean", False),
        ("hello, world", "string", "hello, world"), ('"a # b"', "string", "a # b"), ("'it \"is\"'", "string", 'it "is"'),
        ('"  a "  # comment', "string", "  a "), ("a#b", "string", "a#b"), ("it's", "string", "it's"),
        ("a ; b", "string", "a ; b"), ("ü€", "string", "ü€"), ("\u20105", "string", "\u20105"),
        ("a/b.txt", "path", "a/b.txt"), ("..a/b..", "path", "..a/b.."), ("a/-b", "path", "a/-b"), ("a b", "path", "a b"),
    ],
    ids=brief,
)  # fmt: skip
def test_written_text_becomes_the_declared_type(text: str, kind: str, expected: Value) -> None:
    value = written(text, kind)
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((text, "integer") for text in ("", "x", "1_000", "1e3", "0x10", "1.0", "5 x", "--5", "- 5", "٣", "\uff15", "²",
                                         str(2**63), str(-(2**63) - 1), "9" * 30, "1 # one", "1;", "$(id)", "1,2")),
        *((text, "number") for text in ("", "nan", "NaN", "inf", "-inf", "infinity", "1e999", "1_0.0", "0x1p3", "1e", ".",
                                        "1.5f", "\uff11.\uff15", "9" * 5000, "1,5")),
        *((text, "boolean") for text in ("", "2", "t", "y", "wahr", "tru\u0435", "none", "\uff54rue", "true false")),
        *((text, "string") for text in ("", '""', "-x", "--output=/etc/passwd", '"-x"', "a\x00b", "a\x1bb", "a\x7fb",
                                        "a\x85b", "a\u2028b", "a\u202eb", "a\u200bb", "a\u00a0b", "a # b", "a\t# b", "'a", '"a" b',
                                        "\"a\"b\"", "\"a\"#b", "x" * 4097)),
        *((text, "path") for text in ("", "/etc/passwd", "..", "../x", "a/../b", "a/..", ".", "./a", "a/", "-rf", "-", "~\x00",
                                      "a\\b", "..\\x", "a\x0bb", "a\u2028b", "x" * 256, "a/\u202e/b")),
    ],
    ids=brief,
)  # fmt: skip
def test_written_text_that_is_not_of_the_type_is_refused(text: str, kind: str) -> None:
    with pytest.raises(DefinitionError, match=r"^app\.cfg: line 1, a: found .*; (must be|must end|put the)"):
        written(text, kind)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (10, "integer"), (-(2**63), "integer"), (1.5, "number"), (5, "number"), (True, "boolean"),
        ("a b", "string"), ("a/b", "path"),
    ],
    ids=brief,
)  # fmt: skip
def test_a_value_of_the_right_type_is_taken_as_it_is(value: Value, kind: str) -> None:
    found = native(value, kind)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("5", "integer"), (5.0, "integer"), (True, "integer"), (2**63, "integer"), (1 << 100_000, "integer"), (None, "integer"),
        ("5", "number"), (True, "number"), (float("nan"), "number"), (float("inf"), "number"), (1 << 100_000, "number"),
        (1, "boolean"), (0, "boolean"), ("true", "boolean"),
        (5, "string"), ("a\nb", "string"), ("\ud800", "string"), ("-x", "string"), (["x"], "string"), ({"x": 1}, "string"),
        (5, "path"), ("/x", "path"), ("a\nb", "path"), ("\udcff", "path"), ("-x", "path"),
    ],
    ids=brief,
)  # fmt: skip
def test_a_value_of_another_type_is_refused_and_never_converted(value: object, kind: str) -> None:
    with pytest.raises(DefinitionError, match=r"^a\.toml: a: found .*; must be "):
        native(value, kind)


def test_limits_are_included_and_named() -> None:
    assert [written(text, "integer", minimum=-1, maximum=2) for text in ("-1", "2")] == [-1, 2]
    for text in ("-2", "3"):
        with pytest.raises(
            DefinitionError, match="must be a whole number in decimal digits, at least -1, at most 2"
        ):
            written(text, "integer", minimum=-1, maximum=2)
    with pytest.raises(DefinitionError, match=r"found 0\.49; must be a number, at least 0\.5"):
        native(0.49, "number", minimum=0.5)


def test_choices_are_compared_after_typing() -> None:
    assert written("08", "integer", choices=(4, 8)) == 8
    with pytest.raises(DefinitionError, match="found '5'; must be one of 4, 8"):
        written("5", "integer", choices=(4, 8))
    with pytest.raises(DefinitionError, match="found True; must be one of 1"):
        native(True, "integer", choices=(1,))


def test_a_pattern_must_match_as_a_whole_and_knows_ascii_only() -> None:
    assert written("knl|quad", "string", pattern="[a-z|&]+") == "knl|quad"
    for text in ("knl;quad", "knl1", "", "٣"):
        with pytest.raises(DefinitionError, match=r"must be .* matching"):
            written(text, "string", pattern=r"[a-z|&]+|\d")
    assert written("", "string", pattern="x?") == ""


@pytest.mark.parametrize("pattern", ["-[a-z]+", r"[\-a-z]+", "[-a-z]+", "(-x|y|-abc)", "-?abc|-abc"])
def test_a_leading_dash_is_allowed_where_the_pattern_speaks_of_it(pattern: str) -> None:
    assert written("-abc", "string", pattern=pattern) == "-abc"


@pytest.mark.parametrize("pattern", [".*", ".+", r"\S+", "[^/]+", "[^-].*", "[!-~]+"])
def test_a_pattern_that_happens_to_match_a_dash_does_not_allow_options(pattern: str) -> None:
    with pytest.raises(DefinitionError, match=r"not beginning with '-'|matching"):
        written("--output=x", "string", pattern=pattern)
    assert written("output=x", "string", pattern=pattern.replace("/", "@")) == "output=x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a",)), ("a, b ,c", ("a", "b", "c")), ('"a, b", c', ("a, b", "c")), ("'a' , \"b\"", ("a", "b")),
        ("it's, x y", ("it's", "x y")),
    ],
    ids=brief,
)  # fmt: skip
def test_commas_part_the_values_of_a_list(text: str, expected: tuple[str, ...]) -> None:
    assert written(text, "string", list=True) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"line 1, a\[0\]: found ''"), ("a,,b", r"a\[1\]: found ''"), ("a,", r"a\[1\]: found ''"),
        ("a, 'b", "a quoted value ends with its quote"), ("'a' b", "a quoted value ends with its quote"),
        ("a, -b, /c, --d", r"a\[1\]: found '-b'.*a\[3\]: found '--d'"), ("a, b # c", "put the value into quotes"),
        (",".join(["a"] * 10_001), "1 to 10,000 values"),
    ],
    ids=brief,
)  # fmt: skip
def test_every_bad_value_of_a_list_is_named(text: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        written(text, "string", list=True)


def test_a_list_in_toml_or_json_is_an_array() -> None:
    assert native([1, 2], "integer", list=True) == (1, 2)
    for value in (1, "1, 2", [], {"a": 1}, None, [[1]], [1, True]):
        with pytest.raises(DefinitionError, match=r"must (be|have)"):
            native(value, "integer", list=True)


def test_defaults_missing_values_and_unknown_keys() -> None:
    parameters = {
        "events": Parameter(type="integer"),
        "seed": Parameter(type="integer", default=1),
        "label": Parameter(type="string", required=False),
        "files": Parameter(type="path", list=True, default=("a", "b")),
    }
    found = typed_values(parameters, {"events": Setting(5)}, source="f")
    assert list(found.items()) == [("events", 5), ("seed", 1), ("files", ("a", "b"))]
    with pytest.raises(DefinitionError) as raised:
        typed_values(parameters, {"sead": Setting("1", 3, written=True), "x\x1b": Setting(1)}, source="f")
    assert str(raised.value) == (
        "f: events: is required: a whole number in decimal digits; line 3, sead: unknown key; did you mean seed?; "
        "x\\x1b: unknown key; known: events, seed, label, files"
    )


PLAIN = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="\"'#,-"), min_size=1, max_size=40
)


@calm
@given(st.integers(-(2**63), MAXIMUM))
def test_every_integer_comes_back_from_its_text(value: int) -> None:
    assert written(str(value), "integer") == value == native(value, "integer")


@calm
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_comes_back_from_its_text(value: float) -> None:
    assert written(repr(value), "number") == value == native(value, "number")


@calm
@given(st.lists(PLAIN, min_size=1, max_size=5))
def test_all_plain_text_comes_back_from_lines_and_json(words: list[str]) -> None:
    for quote in ("", "'", '"'):
        text = ", ".join(f"{quote}{word}{quote}" for word in words)
        assert written(text, "string", list=True) == tuple(words)
    found = read_settings(json.dumps({"a": words}).encode(), "a.json")
    assert typed_values({"a": Parameter(type="string", list=True)}, found, source="f") == {"a": tuple(words)}


@calm
@given(st.lists(PLAIN.map(lambda text: text.strip("/\\.").replace("\\", "") or "x"), min_size=1, max_size=4))
def test_every_relative_path_comes_back_from_its_text(parts: list[str]) -> None:
    path = "/".join(part.replace("/", "_") for part in parts)
    assert written(path, "path") == path


@calm
@given(st.binary(max_size=300), st.sampled_from(["a", "a.toml", "a.json"]))
def test_whatever_a_file_holds_it_is_read_or_refused(content: bytes, name: str) -> None:
    try:
        found: Mapping[str, Setting] = read_settings(content, name)
    except DefinitionError:
        return
    assert all(isinstance(key, str) for key in found)


# ---------------------------------------------------------------------------------- finding


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    return tmp_path / "data"


def test_a_file_is_looked_up_in_the_data_and_then_with_the_application(data: Path, tmp_path: Path) -> None:
    ours = tmp_path / "application"
    (ours / "sub").mkdir(parents=True)
    (ours / "sub" / "a.cfg").write_bytes(b"ours")
    found = find_configuration("sub/a.cfg", data, ours)
    assert (found.path, found.content) == (ours / "sub/a.cfg", b"ours")
    (data / "sub" / "a.cfg").write_bytes(b"theirs")
    assert find_configuration("sub/a.cfg", data, ours).content == b"theirs"
    assert find_configuration("sub//a.cfg", data).content == b"theirs"


def test_a_file_that_is_nowhere_is_refused_with_every_place(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=rf"^no/a\.cfg: there is no such file in {data}$"):
        find_configuration("no/a.cfg", data)
    with pytest.raises(DefinitionError, match=rf"in {data} or in {tmp_path / 'absent'}$"):
        find_configuration("a.cfg", data, tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "sub/../../x", "a\\b", "a\nb", "a\0b", "\udcff", ".", "sub/"]
)
def test_a_name_that_could_leave_the_directory_is_refused(data: Path, name: str) -> None:
    with pytest.raises(DefinitionError, match="a file name must be a path relative to"):
        find_configuration(name, data)


def test_links_in_staged_input_are_not_followed(data: Path, tmp_path: Path) -> None:
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / "a.cfg").write_text("secret = 1")
    (data / "file").symlink_to(secret / "a.cfg")
    (data / "folder").symlink_to(secret)
    (data / "sub" / "deep").symlink_to("../../outside")
    (data / "dangling").symlink_to("nowhere")
    (data / "loop").symlink_to("loop")
    for name in ("file", "dangling", "loop"):
        with pytest.raises(DefinitionError, match="it is a link, and links are not followed"):
            find_configuration(name, data, secret)
    for name in ("folder/a.cfg", "sub/deep/a.cfg"):
        with pytest.raises(DefinitionError, match="goes through a link or a file"):
            find_configuration(name, data, secret)


def test_what_is_not_a_regular_file_is_refused_without_waiting(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(data / "fifo")
    (data / "plain").write_text("")
    monkeypatch.chdir(data)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    for name, words in {
        "sub": "directory",
        "fifo": "not a regular file",
        "socket": "not a regular file",
        "plain/a.cfg": "goes through a link or a file",
        "a" * 250 + "/b": "no such file",
        "ü" * 200: "its name is too long",
    }.items():
        with pytest.raises(DefinitionError, match=words):
            find_configuration(name, data)


def test_a_large_file_is_refused_by_its_size_alone(data: Path) -> None:
    with open(data / "big.cfg", "wb") as file:
        file.truncate(1 << 40)
    content = find_configuration("big.cfg", data).content
    assert len(content) == (1 << 20) + 1
    assert "at most 1,048,576 bytes" in refusal(content)
