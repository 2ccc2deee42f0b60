"""What somebody might send who wants a site to do what it must not: each case with the one right outcome.

A case is a job for the application ``record``, which writes down its own arguments and environment. It
is either refused, and the reason names what is wrong, or it runs with exactly the arguments that
stand here: the literal text, each value in one argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from attrs import Factory, frozen

from edgecore.models import Application, Parameter

__all__ = ["CONTENTS", "DEFINITIONS", "LONG", "OPTIONS", "SECRET", "Case", "Lay", "recorder"]

Lay: TypeAlias = Callable[[Path, Path], object]
"""Lays input out; gets its directory, and that of the test."""
SECRET: Final = "s3cret-that-nobody-may-read"
"""Stands in files outside of every job's input."""

OPTIONS: Final = """
[scheduling.options.constraint]
type = "string"
pattern = "[a-z|&]+"
required = false
[scheduling.options.reservation]
type = "string"
required = false
[scheduling.options.licenses]
type = "integer"
minimum = 1
maximum = 5
required = false
"""


@frozen(kw_only=True)
class Case:
    """One attempt, and what must come of it."""

    name: str
    definition: Mapping[str, Any] = Factory(dict)
    """More keys, or other values, of an honest definition."""
    files: Mapping[str, str | bytes] = Factory(dict)
    """What is staged in, by path; ``@`` in a text stands for the directory of the test."""
    lay: Lay = lambda place, base: None
    """Does more to the staged input."""
    refused: Sequence[str] = ()
    """Words that the reason must have; empty where the job runs."""
    arguments: Sequence[str] = ()
    """What the program gets beside what the operator wrote, where the job runs."""
    options: Mapping[str, object] = Factory(dict)
    """What the batch system is asked for, where the file is right."""


def recorder(base: Path) -> Application:
    """Return the application that all cases name; it writes into ``records`` below *base*."""
    program = base / "record.sh"
    program.write_text(
        '#!/bin/sh\nprintf "%s\\0" "$@" >"$1/$EDGECORE_JOB_ID.arguments"\n'
        'cat "/proc/$$/environ" >"$1/$EDGECORE_JOB_ID.environment"\n'
    )
    program.chmod(0o755)
    text = Parameter(type="string", required=False)
    return Application(
        name="record",
        executable=str(program),
        arguments=(str(base / "records"), "--text={text}", "{plain}", "{words}", "--file={file}", "{dashed}"),
        directory=str(base / "application"),
        parameters={
            "text": text,
            "plain": text,
            "words": Parameter(type="string", list=True, required=False),
            "file": Parameter(type="path", required=False),
            "dashed": Parameter(type="string", pattern="-[a-z]+", required=False),
            "events": Parameter(type="integer", minimum=1, maximum=10**9, flag="--events", required=False),
            "ratio": Parameter(type="number", flag="--ratio", required=False),
            "loud": Parameter(type="boolean", flag="--loud", required=False),
            "mode": Parameter(type="string", choices=("fast", "slow"), flag="--mode", required=False),
        },
    )


# -------------------------------------------------------------------------- how cases are made


def refused(case: str, /, *words: str, **definition: Any) -> Case:
    """Make a case of a definition that must be refused."""
    assert words
    return Case(name=case, definition=definition, refused=words)


# --------------------------------------------------------------------------------- definitions

LONG: Final = "x" * 100_000
_SHELL: Final = (
    "$(touch @/canary/x)",
    "`touch @/canary/x`",
    "a;touch @/canary/x",
    "a\ntouch @/canary/x",
    "a&b",
    "a|b",
)
_NAMES: Final = ("name", "application", "site", "job_id")
_WORDS: Final = ("queue", "project")
_FILES: Final = ("config_file", "scheduler_config")
_URLS: Final = ("input_url", "output_url")
_NUMBERS: Final = ("wall_time_minutes", "num_nodes", "processes_per_node")
_NO_COUNTS: Final[Sequence[object]] = (
    *(0, -1, 2**31, 2**53, 2**63, 2**64, 10**300, 1.0, 1e308, True, "12", "0x10", None, [1], {}),
)

DEFINITIONS: Final[Sequence[Case]] = [
    # text that means something to a shell, a terminal, a command line, in every key that holds text
    *(
        refused(f"{key} for a shell {number}", f"{key}:", **{key: text})
        for key in (*_NAMES, *_WORDS, "not_after")
        for number, text in enumerate(_SHELL)
    ),
    *(refused(f"{key} with a newline", f"{key}:", **{key: "a\nb"}) for key in (*_FILES, *_URLS)),
    *(refused(f"{key} with NUL", f"{key}:", **{key: "a\0b"}) for key in (*_NAMES, *_WORDS, *_FILES, *_URLS)),
    *(
        refused(f"{key} with an escape", f"{key}:", **{key: "a\x9b31m"})
        for key in (*_NAMES, *_FILES, "description")
    ),
    *(
        refused(f"{key} written to the left", f"{key}:", **{key: "a\u202egfc"})
        for key in (*_NAMES, *_FILES, "description")
    ),
    *(
        refused(f"{key} of half a character", f"{key}:", **{key: "a\ud800"})
        for key in (*_NAMES, *_FILES, *_URLS)
    ),
    *(refused(f"{key} of look-alikes", f"{key}:", **{key: "\uff52ecord"}) for key in (*_NAMES, *_WORDS)),
    *(refused(f"{key} with nothing wide", f"{key}:", **{key: "record\u200b"}) for key in (*_NAMES, *_WORDS)),
    *(refused(f"{key} as an option", f"{key}:", **{key: "--export=ALL,LD_PRELOAD=/x"}) for key in _WORDS),
    *(
        refused(f"{key} that is very long", f"{key}:", **{key: LONG})
        for key in (*_NAMES, *_WORDS, *_FILES, "description")
    ),
    *(refused(f"{key} that is empty", f"{key}:", **{key: ""}) for key in (*_NAMES, *_WORDS, *_FILES, *_URLS)),
    # paths
    *(
        refused(f"{key} as {path!r}", f"{key}:", **{key: path})
        for key in _FILES
        for path in (
            "/etc/passwd",
            "../secret.cfg",
            "a/../../secret.cfg",
            "./app.cfg",
            "app.cfg/",
            "..",
            "//etc/passwd",
        )
    ),
    # URLs
    *(
        refused(f"{key} as {url!r}", f"{key}:", **{key: url})
        for key in _URLS
        for url in (
            "/etc",
            "file:///etc",
            "file:///",
            "file://@/data-evil/x",
            "file://@/data/../secret",
            "file://@/data/%2e%2e/secret",
            "file://@/data/%2E%2E%2Fsecret",
            "file://@/data/x%2f..%2f..%2fsecret",
            "file://@/data/.%2e/secret",
            "file://@/data/./x",
            "file://@/data/x%00",
            "file://@//data/x",
            "file://@/data%2fx",
            "file://@/data?x",
            "file://@/data#x",
            "file://localhost@/data/x",
            "file://user:pass@localhost/data/x",
            "file://evil.example.org@/data/x",
            "FILE://@/data/x",
            "file:/@/data/x",
            "http://169.254.169.254/latest/meta-data",
            "ftp://evil.example.org/x",
            "javascript://x",
            "file://@/data/a b",
            "file://@/\uff44ata/x",
            "-file://@/data/x",
        )
    ),
    # numbers
    *(
        refused(f"{key} as {str(number)[:20]}", f"{key}:", **{key: number})
        for key in _NUMBERS
        for number in _NO_COUNTS
    ),
    refused("too many retries", "retries:", retries=101),
    refused("more nodes than the site has", "num_nodes:", "at most 8", num_nodes=9),
    # ids
    refused("an id above all of ours", "job_id:", job_id=2**53),
    refused("an id below all", "job_id:", job_id=-1),
    refused("an id that is true", "job_id:", job_id=True),
    refused("an id with a tab", "job_id:", job_id="a\tb"),
    refused("an id of Argo's above all", "argo_job_id:", argo_job_id=2**53),
    refused("an id of Argo's as text", "argo_job_id:", argo_job_id="1"),
    refused("a time with a command", "not_after:", not_after="2099-01-01$(id)12:00:00"),
    refused("a time with a newline", "not_after:", not_after="2099-01-01\n12:00:00"),
    # what a definition may not speak of at all
    *(
        refused(f"the key {key}", f"{key}: unknown key", **{key: value})
        for key, value in {
            "environment": {"LD_PRELOAD": "/tmp/x.so"},
            "env": ["PATH=/tmp"],
            "LD_PRELOAD": "/tmp/x.so",
            "BASH_ENV": "/tmp/x",
            "executable": "/bin/sh",
            "arguments": ["-c", "id"],
            "command_line": "id",
            "owner": "root",
            "state": "JOB_FINISHED",
            "id": 1,
            "plan": {"arguments": ["-c"]},
            "intent": "run",
            "launcher": "mpi",
            "preprocess": "/bin/sh",
            "job_status_routing_key": "balsam_job_status",
            "reply_to": "hpc",
            "__class__": "os.system",
            "__proto__": {"owner": "root"},
            "": 1,
        }.items()
    ),
    refused("names of a workflow", "needs:", "sites:", needs=["a"], sites=["b"]),
    refused("another site's job", "site:", "this site is testsite", site="othersite"),
    refused("an application in another letter", "application:", "did you mean record", application="Record"),
    refused("an application by its path", "application:", application="../../bin/sh"),
    refused("a launcher as an application", "application:", application="sh"),
    # what is only text here
    Case(name="a name that is two dots", definition={"name": ".."}),
    Case(name="a name that is an option", definition={"name": "-rf"}),
    Case(name="an id that is a path", definition={"job_id": ".."}),
    Case(name="an id that is an option", definition={"job_id": "--help"}),
    Case(name="a description for a shell", definition={"description": "$(touch @/canary/d)`id`;\n{0} %s"}),
    Case(name="a queue that holds an option", definition={"queue": "a--x@b:c+d"}),
]


CONTENTS: Final[Mapping[str, tuple[bytes, str]]] = {
    "nothing": (b"", "not JSON"),
    "text": (b"$(touch @/canary/b)", "not JSON"),
    "a list": (b"[1, 2]", "must be a JSON object"),
    "a string": (b'"cancel"', "must be a JSON object"),
    "a comma too many": (b'{"name": "a",}', "at line 1, column 14; not JSON: remove the comma"),
    "a key twice": (b'{"site": "testsite", "site": "other"}', "a key may stand only once"),
    "no UTF-8": (b"\xff\xfe{}", "must be UTF-8"),
    "half a character": (b'{"name": "\xed\xa0\x80"}', "must be UTF-8"),
    "a mark of byte order": (b"\xef\xbb\xbf{}", "not JSON"),
    "NULs": (b"\0" * 100, "not JSON"),
    "no number": (b'{"num_nodes": NaN}', "JSON has no such number"),
    "a huge number": (b'{"num_nodes": ' + b"9" * 5000 + b"}", "at most 400 digits"),
    "a huge exponent": (b'{"num_nodes": 1e999}', "out of range"),
    "100,000 brackets": (b"[" * 100_000, "very deep nesting"),
    "60 levels": (b'{"a":' * 60 + b"1" + b"}" * 60, "deep nesting"),
    "2 MB": (b'{"name": "' + b"x" * 2_000_000 + b'"}', "at most 1,048,576 bytes"),
    "many wrong items": (b'{"needs": [' + b"0," * 400_000 + b"0]}", "and more problems"),
    "a workflow": (b'{"name": "w", "subjobs": []}', "a workflow is for Argo"),
    "a pickle": (b"\x80\x04\x95\x1a\x00\x00\x00", "must be UTF-8"),
    "XML": (b'<!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]><x>&y;</x>', "not JSON"),
    "YAML": (b"!!python/object/apply:os.system ['touch @/canary/y']", "not JSON"),
    "a request without an id": (b'{"command": "cancel"}', "job_id: is required"),
    "a request for a command": (b'{"command": "cancel;id", "job_id": 1}', "command: found 'cancel;id'"),
    "a request for all": (b'{"command": "cancel", "job_id": "*"}', "job_id: found '*'"),
    "a request with a wrong id": (b'{"command": "cancel", "job_id": 9007199254740992}', "job_id: found"),
    "a request with a list": (b'{"command": "cancel", "job_id": [1, 2]}', "job_id: found list"),
    "a request with more": (b'{"command": "retry", "job_id": 1, "owner": "root"}', "owner: unknown key"),
}
"""What is no definition of any job, and a reason that it is refused for."""
