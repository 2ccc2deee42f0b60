"""Files of operators with something dangerous in them are refused by key, before anything is started."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from edgecore.applications import check_application, read_application
from edgecore.config import read_site
from edgecore.errors import ConfigurationError

SITE: Final = """
site = "theta"
work_directory = "/w"
store = "/s"
[messaging]
url = "sqlite:///q"
[scheduling]
driver = "fork"
"""
ENTRY: Final = """
name = "zmumu"
executable = "/soft/generate"
"""

_NO_NAMES: Final = (
    '""',
    '"../x"',
    '"a b"',
    '"a/b"',
    '"a\\nb"',
    '"a\\u0000b"',
    '"$(id)"',
    '"\\uff41"',
    '"#"',
    '"*"',
    '"%s"',
)
_NO_PLACES: Final = (
    '"sh"',
    '"~/sh"',
    '"./sh"',
    '""',
    '"/bin/sh\\n"',
    '"/bin/\\u0000"',
    '"/bin/\\u202esh"',
    '"/a\\u2028b"',
)
_TEMPLATES: Final = (
    *(
        "{",
        "}",
        "{}",
        "{0}",
        "{text",
        "text}",
        "{text.__class__}",
        "{text!r}",
        "{text:>10}",
        "{text[0]}",
        "{ text }",
    ),
    *("{nodes.real}", "a\\u0000b", "{text}}", "{unknown}", "{text}{", "{{text}", "{t\\u0435xt}"),
)
_PARAMETERS: Final[Mapping[str, str]] = {
    'type = "shell"': "parameters.text.type: found 'shell'",
    'type = "string", pattern = "("': "parameters.text.pattern: found '('",
    'type = "string", pattern = "a{99999999999}"': "parameters.text.pattern",
    'type = "string", default = "-x"': "parameters.text.default: found '-x'",
    'type = "string", default = "a\\nb"': "parameters.text.default: found 'a\\nb'",
    'type = "string", default = ""': "parameters.text.default: found ''",
    'type = "string", default = 1': "parameters.text.default: found 1",
    'type = "path", default = "/etc/passwd"': "parameters.text.default: found '/etc/passwd'",
    'type = "path", default = "../x"': "parameters.text.default: found '../x'",
    'type = "path", choices = ["../x"]': "parameters.text.choices[0]: found '../x'",
    'type = "integer", default = true': "parameters.text.default: found True",
    'type = "integer", default = 5, maximum = 4': "parameters.text.default: found 5",
    'type = "integer", minimum = 5, maximum = 4': "minimum 5, maximum 4",
    'type = "integer", minimum = nan': "parameters.text.minimum: found nan",
    'type = "integer", maximum = inf': "parameters.text.maximum: found inf",
    f'type = "integer", maximum = {"9" * 60}': "parameters.text.maximum: found 999",
    f'type = "integer", choices = [0x{"f" * 5000}]': "parameters.text.choices[0]: found a huge number",
    f'type = "integer", choices = [{2**63}]': "parameters.text.choices[0]: found 9223372036854775808",
    'type = "integer", choices = ["1"]': "parameters.text.choices[0]: found '1'",
    'type = "string", flag = ""': "parameters.text.flag: found ''",
    'type = "string", flag = "a\\u0000"': "parameters.text.flag",
    'type = "string", shell = true': "parameters.text.shell: unknown key",
    'type = "boolean", list = true': "parameters.text.list: found true",
    'type = "string", minimum = 1': "minimum and maximum are for integer and number",
    "1": "parameters.text",
}

ENTRIES: Final[Mapping[str, str]] = {
    **{f"name = {value}": "name: found" for value in _NO_NAMES},
    **{f"launcher = {value}": "launcher: found" for value in _NO_NAMES},
    **{
        f"{key} = {value}": f"{key}: found"
        for key in ("executable", "preprocess", "postprocess", "config_script", "directory")
        for value in _NO_PLACES
    },
    **{
        f'arguments = ["{text}"]\nparameters.text = {{type = "string"}}': "arguments[0]: found"
        for text in _TEMPLATES
    },
    **{
        f'arguments = ["{{text}}"]\nparameters.text = {{{text}}}': words
        for text, words in _PARAMETERS.items()
        if text != "1"
    },
    'parameters."a b" = {type = "string"}': "parameters.a b: found 'a b'",
    'parameters.nodes = {type = "integer"}': "parameters.nodes: the names",
    "parameters = []": "parameters: found list of 0",
    "parameters.text = 1": "parameters.text: found 1",
    'arguments = "-c id"': "arguments: found '-c id'",
    "arguments = [1]": "arguments[0]: found 1",
    "max_nodes = -1": "max_nodes: found -1",
    "max_nodes = true": "max_nodes: found True",
    f"max_nodes = 0x{'f' * 5000}": "max_nodes: found a huge number",
    "max_wall_time_minutes = 1e3": "max_wall_time_minutes: found 1000.0",
    "script_timeout_s = nan": "script_timeout_s: found nan",
    "script_timeout_s = 1e308": "script_timeout_s: found 1e+308",
    'restartable = "yes"': "restartable: found 'yes'",
    "shell = true": "shell: unknown key",
    "environment = {LD_PRELOAD = '/x'}": "environment: unknown key",
    'user = "root"': "user: unknown key",
    'description = "a\\u001b[31m"': "description: found",
    'description = "a\\u202eb"': "description: found",
}

SITES: Final[Mapping[str, str]] = {
    **{f"site = {value}": "site: found" for value in _NO_NAMES},
    **{f"owner = {value}": "owner: found" for value in _NO_NAMES},
    **{
        f"messaging.{key} = {value}": f"messaging.{key}: found"
        for key in ("exchange", "queue", "status_key")
        for value in _NO_NAMES
    },
    **{f"scheduling.driver = {value}": "scheduling.driver: found" for value in _NO_NAMES},
    **{
        f'defaults.queue = "{value}"': "defaults.queue: found"
        for value in ("-q", "--uid=0", "a b", "a;id", "a\\nb", "")
    },
    **{
        f'environment.set."{name}" = "x"': "environment.set"
        for name in ("", "a b", "a=b", "BASH_FUNC_x%%", "a;id", "1a", "\\u00e4")
    },
    'environment.set.A = "a\\u0000b"': "environment.set.A: found",
    "environment.set.A = 1": "environment.set.A: found 1",
    'environment.pass = ["A=B"]': "environment.pass[0]: found 'A=B'",
    'environment.pass = "LD_PRELOAD"': "environment.pass: found 'LD_PRELOAD'",
    'environment.inherit = ["A"]': "environment.inherit: unknown key",
    'work_directory = "a\\u0000b"': "work_directory: found",
    'work_directory = "~\\u0000"': "work_directory: found",
    "store = 1": "store: found 1",
    'store_mode = "memory"': "store_mode: found 'memory'",
    'messaging.url = "broker"': "messaging.url: found 'broker'",
    'messaging.url = "-x://y"': "messaging.url: found '-x://y'",
    'transfer = [{prefix = "/data"}]': "transfer[0].prefix: found '/data'",
    'transfer = [{prefix = "FILE:///data"}]': "transfer[0].prefix: found 'FILE:///data'",
    'transfer = [{url = "file:///"}]': "transfer[0].prefix: is required",
    **{
        f'launchers.mpi.arguments = ["{text}"]': "launchers.mpi.arguments[0]: found"
        for text in ("{text}", "{", "{nodes!r}", "{0}", "a\\u0000")
    },
    'launchers."a b".arguments = []': "launchers",
    **{
        f"scheduling.options.text = {{{text}}}": words.replace("parameters.", "scheduling.options.")
        for text, words in _PARAMETERS.items()
        if text != "1"
    },
    'scheduling.options."a b" = {type = "string"}': "scheduling.options.a b: found 'a b'",
    "limits.max_nodes = 0": "limits.max_nodes: found 0",
    f"limits.max_transfer_bytes = {2**64}": "limits.max_transfer_bytes: found 18446744073709551616",
    "limits.max_message_bytes = 1": "limits.max_message_bytes: found 1",
    "timing.grace_s = -1": "timing.grace_s: found -1",
    "timing.grace_s = nan": "timing.grace_s: found nan",
    f"timing.grace_s = {'9' * 400}": "timing.grace_s: found a huge number",
    "retry.tries = 1e308": "retry.tries: found 1e+308",
    "retry.first_s = true": "retry.first_s: found True",
    "plugins.enabled = [1]": "plugins.enabled[0]: found 1",
    "script.prologue = 1": "script.prologue: found 1",
    "exec.command = 'id'": "exec: unknown key",
    'source = "/etc/passwd"': "source: unknown key",
}


def changed(base: str, text: str) -> str:
    """Return a file in which the keys of *text* stand in place of those of *base*."""

    def flat(table: Mapping[str, Any], above: str = "") -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in table.items():
            path = f"{above}{key}"
            found |= flat(value, f"{path}.") if isinstance(value, dict) else {path: f'"{value}"'}
        return found

    new = {line.partition(" = ")[0]: line.partition(" = ")[2] for line in text.split("\n")}
    return "".join(f"{key} = {value}\n" for key, value in {**flat(tomllib.loads(base)), **new}.items())


def faults(file: Path, base: str, cases: Mapping[str, str], read: Callable[[Path], object]) -> list[str]:
    """Return the cases that are not refused, with their words and the file's name."""
    found = []
    for text, words in cases.items():
        file.write_text(changed(base, text), encoding="utf-8")
        try:
            read(file)
        except ConfigurationError as error:
            if words not in str(error) or not str(error).startswith(str(file)):
                found.append(f"{text}: {words!r} is not in {error}")
        else:
            found.append(f"{text}: taken")
    return found


def test_a_dangerous_entry_of_the_catalogue_is_refused_by_key(tmp_path: Path) -> None:
    assert len(ENTRIES) > 100
    assert [] == faults(tmp_path / "entry.toml", ENTRY, ENTRIES, read_application)


def test_a_dangerous_key_of_a_site_is_refused_by_name(tmp_path: Path) -> None:
    assert len(SITES) > 100
    assert [] == faults(tmp_path / "site.toml", SITE, SITES, read_site)


def test_what_is_changed_above_is_right_before(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(changed(SITE, 'owner = "me"'))
    assert "me" == read_site(tmp_path / "site.toml").owner
    (tmp_path / "entry.toml").write_text(
        changed(ENTRY, 'arguments = ["{text}"]\nparameters.text = {type = "string"}')
    )
    check_application(read_application(tmp_path / "entry.toml"), [])
