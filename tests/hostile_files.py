"""What somebody might stage in, and write into configuration files, who wants a site to do what it must not."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from hostile_cases import LONG, Case, Lay

__all__ = ["FILES"]


def written(
    name: str, text: str, *arguments: str, refused: Sequence[str] = (), file: str = "app.cfg"
) -> Case:
    """Make a case of a configuration file."""
    return Case(
        name=name, definition={"config_file": file}, files={file: text}, arguments=arguments, refused=refused
    )


def chosen(name: str, text: str, *refused: str, file: str = "batch.cfg", **options: object) -> Case:
    """Make a case of a scheduler_config."""
    return Case(
        name=name,
        definition={"scheduler_config": file},
        files={file: text},
        refused=refused,
        options=options,
    )


def staged(
    name: str,
    lay: Lay,
    *refused: str,
    arguments: Sequence[str] = (),
    text: str = "",
    **definition: Any,
) -> Case:
    """Make a case of input that is laid out with a purpose, for a job with ``app.cfg``."""
    return Case(
        name=name,
        definition={"config_file": "app.cfg", **definition},
        files={"app.cfg": text},
        lay=lay,
        refused=refused,
        arguments=arguments,
    )


# ------------------------------------------------------------------------- configuration files

_LITERAL: Final = (
    *(
        "$(touch @/canary/v)",
        "`touch @/canary/v`",
        "; touch @/canary/v",
        "&& touch @/canary/v",
        "| tee @/canary/v",
    ),
    *(
        "> @/canary/v",
        "$HOME",
        "${PATH}",
        "$((1+1))",
        "~root",
        "*",
        "?",
        "[a-z]*",
        "{a,b}",
        "!!",
        "\\",
        "\\n",
        "a\\",
    ),
    *(
        "'",
        "''",
        "a'b",
        "a'$(touch @/canary/v)'b",
        'a"b',
        '"; touch @/canary/v; "',
        "a'\"'\"'b",
        "%s%n",
        "{0}",
    ),
    *("{text}", "{{events}}", "{nodes}", "{text.__class__}", "{0.__globals__}", "$data", "$$", "${run}"),
    *(
        "=--output=/etc/passwd",
        "LD_PRELOAD=/tmp/x.so",
        "IFS=x",
        "a b  c",
        "@/etc/passwd",
        "file:///etc/passwd",
    ),
    *(
        "\uff0d\uff0dversion",
        "\u2010\u2010version",
        "\u2212x",
        "\uff0e\uff0e\uff0fetc",
        "\u0435\u0301v\u0435nts",
        "naïve",
        "日本語",
        "🦉",
        "../../etc/passwd",
    ),
)

_VALUES: Final = [
    *(written(f"inside an argument: {text}", f"text = {json.dumps(text, ensure_ascii=False)}", f"--text={text}", file="a.toml")
      for text in _LITERAL if text.isprintable()),
    *(Case(name=f"as an argument: {text}", definition={"config_file": "a.json"},
           files={"a.json": json.dumps({"plain": text})}, arguments=[text]) for text in _LITERAL),
    written("a list of commands", 'words = $(id), "a, b", `id`', "$(id)", "a, b", "`id`"),
    written("quotes in a line", "text = \"$(touch @/canary/q)'\"", "--text=$(touch @/canary/q)'"),
    written("an option that is allowed", "dashed = -abc", "-abc"),
    written("a number that looks like an option", "ratio = -1e308", "--ratio", "-1e+308"),
    # refused by the key or the line
    *(
        written(f"refused {number}: {text[:30]!r}", text, refused=words)
        for number, (text, words) in enumerate(
            {
                "plain = -x": ("plain: found '-x'", "not beginning with '-'"),
                "plain = --output=/etc/passwd": ("plain: found '--output",),
                'words = a, "--evil"': ("words[1]: found '--evil'",),
                'text = "-x"': ("text: found '-x'",),
                "file = -rf": ("file: found '-rf'",),
                "dashed = --abc": ("dashed: found '--abc'",),
                "dashed = -a b": ("dashed: found '-a b'",),
                "file = /etc/passwd": ("file: found '/etc/passwd'", "relative"),
                "file = ../app.cfg": ("file: found '../app.cfg'",),
                "file = a/../../x": ("file: found",),
                "file = a\\..\\..\\x": ("file: found",),
                "file = .": ("file: found '.'",),
                "file = a\u202eb": ("file: found",),
                "text = a\x1b[31m": ("text: found 'a\\x1b[31m'",),
                "text = a\x00b": ("text: found 'a\\x00b'",),
                "text = a\u200bb": ("text: found 'a\\u200bb'",),
                "text = a\u2028touch @/canary/l": ("text: found",),
                "text = a\x85b": ("text: found 'a\\x85b'",),
                f"text = {LONG}": ("text: found 'xxx", "1 to 4,096"),
                "events = 0": ("events: found '0'", "at least 1"),
                "events = -1": ("events: found '-1'",),
                "events = 1000000001": ("events:", "at most 1,000,000,000"),
                f"events = {2**31}": ("events: found '2147483648'",),
                f"events = {2**63}": ("events:",),
                "events = " + "9" * 5000: ("events:", "whole number"),
                "events = 0x10": ("events: found '0x10'",),
                "events = 1e3": ("events: found '1e3'",),
                "events = 1_000": ("events: found '1_000'",),
                "events = \u0661\u0662": ("events: found",),
                "events = True": ("events: found 'True'",),
                "events = 12; id": ("events: found '12; id'",),
                "ratio = nan": ("ratio: found 'nan'",),
                "ratio = inf": ("ratio: found 'inf'",),
                "ratio = 1e999": ("ratio: found '1e999'",),
                "loud = maybe": ("loud: found 'maybe'",),
                "mode = fast;id": ("mode: found 'fast;id'", "one of 'fast', 'slow'"),
                "mode = ": ("mode: found ''",),
                "LD_PRELOAD = /tmp/x.so": ("LD_PRELOAD: unknown key",),
                "export PATH = /tmp": ("export PATH: unknown key",),
                "__class__ = x": ("__class__: unknown key",),
                "records = /etc": ("records: unknown key",),
                "nodes = 5": ("nodes: unknown key",),
                "$(id) = x": ("$(id): unknown key",),
                "te\u200bxt = x": ("te\\u200bxt: unknown key",),
                "t\u0435\u0445t = x": ("t\u0435\u0445t: unknown key; known: text",),
                "text = a\ntext = b": ("line 2, text:", "only once"),
                "[text]\nx = 1": ("line 1: found '[text]'",),
                "touch @/canary/n": ("line 1: found 'touch", "key = value"),
                "text = 'a": ("text: found", "quote"),
                "text = a #b": ("text: found",),
            }.items()
        )
    ),
    *(
        written(f"refused {file} {number}", text, refused=words, file=file)
        for number, (file, text, words) in enumerate(
            [
                ("a.toml", "events = '12'", ("events: found '12'",)),
                ("a.toml", "events = true", ("events: found True",)),
                ("a.toml", "events = 0xffffffffffffffffffff", ("events: found 1208925819614629174706175",)),
                ("a.toml", "events = 2027-01-01", ("events: found datetime",)),
                ("a.toml", "ratio = nan", ("ratio: found nan",)),
                ("a.toml", "text = ['a']", ("text: found list",)),
                ("a.toml", "text = {a = 1}", ("text: found dict",)),
                ("a.toml", 'text = "a\\nb"', ("text: found 'a\\nb'",)),
                ("a.toml", 'text = "a\\u0000b"', ("text: found 'a\\x00b'",)),
                ("a.toml", "text = [[[[", ("a.toml", "not TOML")),
                ("a.toml", "a.b.c.d.e.f = 1", ("a dotted key",)),
                ("a.json", '{"text": "a", "text": "b"}', ("'text'; a key may stand only once",)),
                ("a.json", '{"text": "\\ud800"}', ("text: found '\\ud800'",)),
                ("a.json", '{"text": null}', ("text: found None",)),
                ("a.json", '{"ratio": 1e999}', ("'1e999'; this number is out of range",)),
                ("a.json", '{"ratio": NaN}', ("NaN",)),
                ("a.json", "[" * 100_000, ("very deep nesting",)),
                ("a.json", '{"text": "a",}', ("line 1, column", "remove the comma")),
                ("a.json", '"text"', ("an object of keys",)),
            ]
        )
    ),
    Case(name="a file that is no text", definition={"config_file": "app.cfg"}, files={"app.cfg": b"text = \xff\xfe"},
         refused=("app.cfg: line 1: found byte 0xff", "UTF-8")),
    Case(name="a file that is too large", definition={"config_file": "app.cfg"},
         files={"app.cfg": b"# " + b"x" * 1_100_000}, refused=("app.cfg: a settings file has at most 1,048,576 bytes",)),
    Case(name="a file that is not there", definition={"config_file": "missing.cfg"}, files={"app.cfg": ""},
         refused=("missing.cfg: there is no such file",)),
    Case(name="a file that is not there, with an encoded path", definition={"config_file": "%2e%2e/secret.cfg"},
         files={"app.cfg": ""}, refused=("%2e%2e/secret.cfg", "no such file")),
    Case(name="a file behind look-alikes of dots", definition={"config_file": "\uff0e\uff0e/secret.cfg"},
         files={"app.cfg": ""}, refused=("\uff0e\uff0e/secret.cfg", "no such file")),
    Case(name="a file of the application that is none for users", definition={"config_file": "private.pem"},
         files={"app.cfg": ""}, refused=("private.pem: is no configuration file",)),
    Case(name="a file of the application with other keys", definition={"config_file": "private.json"},
         files={"app.cfg": ""}, refused=("private.json: is no configuration file",)),
    Case(name="a file of the application with a wrong value", definition={"config_file": "private.cfg"},
         files={"app.cfg": ""}, refused=("private.cfg: line 1, events: must be a whole number",)),
    Case(name="a file with a backslash", definition={"config_file": "..\\secret.cfg"},
         files={"app.cfg": ""}, refused=("..\\secret.cfg", "a file name must be")),
    Case(name="a file outside of the application's directory", definition={"config_file": "inner/out.cfg"},
         files={"app.cfg": ""}, refused=("inner/out.cfg", "goes through a link")),
]  # fmt: skip


# ------------------------------------------------------------------------------- batch options

_BATCH: Final = [
    chosen("an option with a blank", "reservation = a --export=ALL", reservation="a --export=ALL"),
    chosen("an option for a shell", "reservation = $(touch @/canary/o)", reservation="$(touch @/canary/o)"),
    chosen("an option with more options", "reservation = a,LD_PRELOAD=/x", reservation="a,LD_PRELOAD=/x"),
    chosen("an option within the pattern", "constraint = knl|haswell", constraint="knl|haswell"),
    chosen("an option with a dash", "reservation = --uid=0", "batch.cfg", "reservation: found '--uid=0'"),
    chosen("an option with one dash", "reservation = -Wl", "reservation: found '-Wl'"),
    chosen("an option with a newline", '{"reservation": "a\\n#SBATCH --uid=0"}', "reservation: found", file="b.json"),
    chosen("an option beyond the pattern", "constraint = knl;id", "constraint: found 'knl;id'", "[a-z|&]+"),
    chosen("a pattern that is met by a line", "constraint = 'knl\x0b'", "constraint: found"),
    chosen("an option that is too large", "licenses = 6", "licenses: found '6'", "at most 5"),
    chosen("an option of the wrong type", "licenses = [1]", "licenses: found '[1]'"),
    chosen("an option that nobody declared", "export = ALL,LD_PRELOAD=/x", "export: unknown key"),
    chosen("a wrap", "wrap = id", "wrap: unknown key"),
    chosen("a directive", "#SBATCH --uid=0\nwrap=id", "line 2, wrap: unknown key"),
    chosen("the shape of the job", "nodes = 10000", "nodes: unknown key"),
    Case(name="both files wrong", definition={"config_file": "a.cfg", "scheduler_config": "b.cfg"},
         files={"a.cfg": "plain = -x", "b.cfg": "wrap = id"}, refused=("a.cfg: line 1, plain", "b.cfg: line 1, wrap")),
]  # fmt: skip


# -------------------------------------------------------------------------------- staged input


def _replaced(make: Callable[[Path, Path], object]) -> Lay:
    def lay(place: Path, base: Path) -> None:
        (place / "app.cfg").unlink()
        make(place / "app.cfg", base)

    return lay


def _link(name: str, target: str) -> Lay:
    return lambda place, base: (place / name).symlink_to(target.replace("@", str(base)))


def _link_beside(path: Path, base: Path) -> None:
    path.with_name("y").write_text("text = a")
    path.symlink_to("y")


def _socket(path: Path, base: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{here}/{path.name}")  # a socket's path must be short
    finally:
        os.close(here)


def _device(path: Path, base: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        os.mkfifo(path)


def _outputs(make: Callable[[Path], object]) -> Lay:
    def lay(place: Path, base: Path) -> None:
        for name in ("stdout.1.txt", "stderr.1.txt"):
            make(place / name)

    return lay


def _open_to_all(place: Path, base: Path) -> None:
    (place / "open").mkdir()
    (place / "open").chmod(0o777)


_STAGED: Final = [
    staged("a link to a secret", _link("x", "@/secret.cfg"), "the link x", "leaves the tree"),
    staged("a link to a secret beside the input", _link("x", "../../secret.cfg"), "the link x", "leaves the tree"),
    staged("a link to a directory of secrets", _link("x", "@"), "the link x", "leaves the tree"),
    staged("a link to the root", _link("x", "/"), "the link x"),
    staged("a link to our own process", _link("x", "/proc/self/environ"), "the link x"),
    staged("a link in circles", _link("x", "x"), "the link x", "circles"),
    staged("the file is a link out", _replaced(lambda p, b: p.symlink_to(b / "secret.cfg")), "the link app.cfg"),
    staged("the file is a link within", _replaced(_link_beside),
           "app.cfg", "it is a link"),
    staged("the file is a dangling link", _replaced(lambda p, b: p.symlink_to("nowhere")), "app.cfg", "it is a link"),
    staged("the file is a directory", _replaced(lambda p, b: p.mkdir()), "app.cfg", "it is a directory"),
    staged("the file is a FIFO", _replaced(lambda p, b: os.mkfifo(p)), "app.cfg is a socket, FIFO or device"),
    staged("the file is a socket", _replaced(_socket), "app.cfg is a socket, FIFO or device"),
    staged("the file is a device", _replaced(_device), "app.cfg is a socket, FIFO or device"),
    staged("a FIFO that nobody names", lambda place, base: os.mkfifo(place / "x"), "x is a socket, FIFO or device"),
    staged("a value that is a link within", _link("y", "app.cfg"), text="file = y", arguments=["--file=y"]),
    staged("a value behind a link out", _link("y", "../.."), "the link y", text="file = y/secret.cfg"),
    staged("output that is a link to our file", _outputs(lambda p: p.symlink_to("app.cfg")), text="text = a",
           arguments=["--text=a"]),
    staged("output that is a dangling link", _outputs(lambda p: p.symlink_to("made-by-the-output"))),
    staged("output that is a link in place of a directory", _outputs(lambda p: p.symlink_to("."))),
    staged("output that is a directory", _outputs(lambda p: p.mkdir()), "stdout.1.txt", "directory"),
    staged("output that is there already", _outputs(lambda p: p.write_text("forged"))),
    staged("a directory that is open to all", _open_to_all),
    staged("names for a shell", lambda place, base: (place / "$(touch x);`id`\n-rf").write_text("")),
    staged("files that a shell or an interpreter would read", lambda place, base: [
        (place / name).write_text(f"touch {base}/canary/{name}\n")
        for name in (".profile", ".bashrc", ".env", "sitecustomize.py", "cat", "date", "mv", "printf", "sh")
    ] and None),
    staged("a deep tree", lambda place, base: (place / "/".join("d" * 210)).mkdir(parents=True), "directories deep"),
]  # fmt: skip

FILES: Final[Sequence[Case]] = [*_VALUES, *_BATCH, *_STAGED]
