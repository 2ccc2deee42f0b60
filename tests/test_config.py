"""A site's file: what it says is understood, and what is wrong in it is named with file, table and key."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecore.config import EnvironmentTable, SiteConfig, TransferTable, read_site
from edgecore.errors import ConfigurationError

MINIMUM = """
site = "theta"
work_directory = "/projects/edge/jobs"
store = "/var/lib/edge/theta.sqlite"
[messaging]
url = "sqlite:///var/lib/edge/queue.sqlite"
[scheduling]
driver = "fork"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site.toml"


def read(file: Path, text: str) -> SiteConfig:
    file.write_text(text)
    return read_site(file)


def problems(file: Path, text: str) -> list[str]:
    """Return what is said about a file, each line beginning with its path."""
    with pytest.raises(ConfigurationError) as caught:
        read(file, text)
    assert str(file) == caught.value.source
    assert str(file) in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


# -------------------------------------------------------------------------------- understood


def test_the_minimum_gets_defaults_for_all_else(file: Path) -> None:
    config = read(file, MINIMUM)
    assert ("theta", "theta", "hpc", "balsam_job_status") == (
        *(config.site, config.queue, config.messaging.exchange, config.messaging.status_key),
    )
    assert ("wal", "local", 60, None) == (
        *(config.store_mode, config.owner, config.defaults.wall_time_minutes, config.limits.max_queued),
    )
    assert (file, (), {}) == (config.source, config.transfer, config.launchers)


def test_the_example_of_the_contract_is_understood(file: Path) -> None:
    config = read(
        file,
        """
        site = "theta"
        work_directory = "/projects/edge/jobs"
        store = "/var/lib/edge/theta.sqlite"
        [messaging]
        url = "amqps://broker.example.gov:5671/"
        certificate = "/etc/edge/cert.pem"
        [scheduling]
        driver = "slurm"
        partition = "batch"
        [scheduling.options.constraint]
        type = "string"
        pattern = "[a-z|&]+"
        [[transfer]]
        prefix = "gsiftp://dtn.example.gov/data/"
        proxy = "/var/lib/edge/proxy"
        [launchers.mpi]
        arguments = ["srun", "-n", "{processes}", "--ntasks-per-node", "{processes_per_node}"]
        [environment]
        pass = ["SLURM_CONF"]
        [limits]
        max_queued = 20
        [plugins]
        enabled = []
        """,
    )
    assert ("amqps", {"certificate": "/etc/edge/cert.pem"}) == (
        *(config.messaging.scheme, config.messaging.settings),
    )
    assert ("slurm", {"partition": "batch"}) == (config.scheduling.driver, config.scheduling.settings)
    assert "[a-z|&]+" == config.scheduling.options["constraint"].pattern
    assert ["gsiftp"] == [entry.scheme for entry in config.transfer]
    assert {"proxy": "/var/lib/edge/proxy"} == config.transfer[0].settings
    assert "srun" == config.launchers["mpi"].arguments[0]
    assert (("SLURM_CONF",), 20) == (config.environment.inherit, config.limits.max_queued)


def test_the_settings_of_a_plugin_are_its_own(file: Path) -> None:
    config = read(file, MINIMUM + '[plugins]\nenabled = ["pacing"]\n[plugins.pacing]\nper_minute = 10\n')
    assert (("pacing",), {"pacing": {"per_minute": 10}}) == (config.plugins.enabled, config.plugins.settings)


def test_relative_paths_are_below_the_directory_of_the_file_and_a_tilde_is_home(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir("/")
    text = MINIMUM.replace("/projects/edge/jobs", "jobs").replace("/var/lib/edge/theta.sqlite", "~/s.sqlite")
    file.write_text(text)
    monkeypatch.chdir(file.parent)
    config = read_site(Path("site.toml"))
    assert (file.parent / "jobs", Path("/home/ada/s.sqlite"), file) == (
        *(config.work_directory, config.store, config.source),
    )


def test_a_home_of_nobody_is_left_as_it_stands(file: Path) -> None:
    config = read(file, MINIMUM.replace("/projects/edge/jobs", "~no such user/jobs"))
    assert file.parent / "~no such user" / "jobs" == config.work_directory


# ------------------------------------------------------------------------------------ refused

WRONG = [
    ("site", '"with space"', "site: found 'with space'; must be 1 to 100 characters of A-Z a-z 0-9 . _ -"),
    ("site", "5", "site: found 5; must be a string"),
    ("work_directory", "7", "work_directory: found 7; must be an absolute path"),
    ("store", r'"a\u0000b"', "store: found "),
    ("store_mode", '"walk"', "store_mode: found 'walk'; must be one of wal, rollback; did you mean wal?"),
    ("owner", "[]", "owner: found list of 0; must be a string"),
    ("messaging.url", "5", "messaging.url: found 5; must be a string"),
    ("messaging.url", '"queue.sqlite"', "messaging.url: found 'queue.sqlite'; must be a URL"),
    ("messaging.url", '"[::1"', "messaging.url: found '[::1'; must be a URL"),
    ("messaging.exchange", '""', "messaging.exchange: found ''; must be 1 to 100 characters"),
    ("messaging.status_key", '"a b"', "messaging.status_key: found 'a b'; must be 1 to 100 characters"),
    ("scheduling.driver", "true", "scheduling.driver: found True; must be a string"),
    (
        "scheduling.options.x.type",
        '"text"',
        "scheduling.options.x.type: found 'text'; must be one of integer,",
    ),
    ("defaults.wall_time_minutes", "0", "defaults.wall_time_minutes: found 0; must be from 1 to 1,000,000"),
    ("defaults.queue", '"-x"', "defaults.queue: found '-x'; must be a name that the batch system knows"),
    ("defaults.retries", "101", "defaults.retries: found 101; must be from 0 to 100"),
    ("limits.max_queued", "0", "limits.max_queued: found 0; must be from 1 to 1,000,000"),
    ("limits.max_queued", "1.5", "limits.max_queued: found 1.5; must be a whole number"),
    ("limits.staging", "65", "limits.staging: found 65; must be from 1 to 64"),
    ("limits.max_message_bytes", "1", "limits.max_message_bytes: found 1; must be from 1,000 to"),
    ("timing.poll_interval_s", "0", "timing.poll_interval_s: found 0; must be from 0.01 to 86,400"),
    ("timing.poll_interval_s", "nan", "timing.poll_interval_s: found nan; must be a number"),
    ("timing.grace_s", "-1", "timing.grace_s: found -1; must be from 0 to 31,536,000"),
    ("retry.tries", '"ten"', "retry.tries: found 'ten'; must be a whole number"),
    ("retry.first_s", "0", "retry.first_s: found 0; must be from 0.01 to 86,400"),
    ("retention.keep_days", "-1", "retention.keep_days: found -1; must be from 0 to 36,500"),
    ("environment.pass", '"PATH"', "environment.pass: found 'PATH'; must be a list"),
    ("environment.pass", "[5]", "environment.pass[0]: found 5; must be a string"),
    ("environment.set.A", "5", "environment.set.A: found 5; must be a string"),
    ("script.prologue", "[]", "script.prologue: found list of 0; must be a string"),
    ("launchers.mpi.arguments", '"srun"', "launchers.mpi.arguments: found 'srun'; must be a list"),
    ("launchers.mpi.arguments", '["{nodez}"]', "launchers.mpi.arguments"),
    ("plugins.enabled", '"pacing"', "plugins.enabled: found 'pacing'; must be a list"),
    ("plugins.pacing", "5", "plugins.pacing: found 5; must be a table of keys and values"),
    # keys that there are not
    ("sit", '"x"', "sit: unknown key; did you mean site?"),
    ("limits.max_queue", "5", "limits.max_queue: unknown key; did you mean max_queued?"),
    ("timing.pol_interval_s", "5", "timing.pol_interval_s: unknown key; did you mean poll_interval_s?"),
    ("launchers.mpi.argument", "[]", "launchers.mpi.argument: unknown key; did you mean arguments?"),
    ("source", '"/x"', "source: unknown key"),
    ("environment.inherit", "[]", "environment.inherit: unknown key"),
]


def _with(key: str, value: str) -> str:
    """Return the minimum with one key set, whatever table it is in."""
    lines = [line for line in MINIMUM.splitlines() if line]
    table, _, name = key.rpartition(".")
    head = lines.index("[messaging]")
    if not table:
        kept = [line for line in lines[:head] if not line.startswith(f"{name} =")]
        return "\n".join([*kept, f"{name} = {value}", *lines[head:]])
    if f"[{table}]" in lines:
        place = lines.index(f"[{table}]") + 1
        kept = [line for line in lines if not (line.startswith(f"{name} =") and name in ("url", "driver"))]
        return "\n".join([*kept[:place], f"{name} = {value}", *kept[place:]])
    return "\n".join([*lines, f"[{table}]", f"{name} = {value}"])


@pytest.mark.parametrize(("key", "value", "words"), WRONG, ids=[f"{key}={value}" for key, value, _ in WRONG])
def test_a_wrong_key_is_named_with_what_was_found_and_what_is_allowed(
    file: Path, key: str, value: str, words: str
) -> None:
    found = problems(file, _with(key, value))
    assert [True] == [line.startswith(words) for line in found if not line.endswith(": is required")], found


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("site", "site: is required"),
        ("work_directory", "work_directory: is required"),
        ("store", "store: is required"),
        ("url", "messaging.url: is required"),
        ("driver", "scheduling.driver: is required"),
    ],
)
def test_a_missing_key_is_named(file: Path, missing: str, words: str) -> None:
    text = "\n".join(line for line in MINIMUM.splitlines() if not line.startswith(f"{missing} ="))
    assert [words] == problems(file, text)


def test_everything_wrong_is_said_at_once(file: Path) -> None:
    text = (
        MINIMUM.replace('"theta"', '"a b"') + "[limits]\nmax_queue = 1\nstaging = 0\n[timing]\ngrace_s = -1\n"
    )
    paths = [problem.partition(":")[0] for problem in problems(file, "source = 1\n" + text)]
    assert {"site", "limits.max_queue", "limits.staging", "timing.grace_s", "source"} == set(paths)


def test_what_only_a_site_can_judge_is_said_at_once_too(file: Path) -> None:
    text = MINIMUM.replace("sqlite:///var", "/var")
    text += '[[transfer]]\nprefix = "/data"\n[launchers.mpi]\narguments = ["{cores}"]\n'
    text += '[environment]\ninherit = ["A"]\n[scheduling.options.queue]\ntype = "string"\nminimum = 1\n'
    with pytest.raises(ConfigurationError) as raised:
        read(file, text)
    places = (
        "environment.inherit",
        "messaging.url",
        "transfer[0].prefix",
        "launchers.mpi.arguments[0]",
        "scheduling.options.queue",
    )
    assert list(places) == [problem.path for problem in raised.value.problems]


def test_a_prefix_names_no_user_since_no_url_of_a_job_does(file: Path) -> None:
    more = '[[transfer]]\nprefix = "scp://atlas@host/a@b/"\n[[transfer]]\nprefix = "scp://host/a@b/"\n'
    (found,) = problems(file, MINIMUM + more)
    assert found.startswith("transfer[0].prefix: found 'scp://atlas@host/a@b/'; must not name a user")


def test_a_prefix_stands_once_so_that_its_settings_are_clear(file: Path) -> None:
    more = '[[transfer]]\nprefix = "file:///a/"\n[[transfer]]\nprefix = "file:///a"\ncompare = false\n'
    allowed = "stands before, with settings of its own"
    assert [f"transfer[1].prefix: found 'file:///a'; {allowed}"] == problems(file, MINIMUM + more)


def test_a_wrong_transfer_is_named_by_its_place_in_the_list(file: Path) -> None:
    more = '[[transfer]]\nprefix = "file:///a/"\n[[transfer]]\nprefix = "/b/"\n'
    allowed = "must be the beginning of a URL, such as file:///data/"
    assert [f"transfer[1].prefix: found '/b/'; {allowed}"] == problems(file, MINIMUM + more)


def test_what_is_no_toml_is_refused_with_line_and_column(file: Path) -> None:
    (problem,) = problems(file, MINIMUM + "[limits\n")
    assert re.search(r"is not TOML: .*line 9, column 8", problem)


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{re.escape(str(file))}: cannot be read: No such file"):
        read_site(file)


def test_a_table_where_a_value_belongs_is_refused_and_the_reverse(file: Path) -> None:
    text = MINIMUM.replace('[scheduling]\ndriver = "fork"', "").replace(
        "site =", 'scheduling = "fork"\nsite ='
    )
    assert ["scheduling: found 'fork'; must be a table of keys and values"] == problems(file, text)


_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_keys = st.sampled_from(
    [
        *(
            "site",
            "work_directory",
            "store",
            "messaging",
            "scheduling",
            "transfer",
            "launchers",
            "environment",
        ),
        *("script", "defaults", "limits", "timing", "retry", "retention", "plugins", "source", "other"),
    ]
)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(document=st.dictionaries(_keys, _values), whole=st.booleans())
def test_whatever_a_file_holds_it_is_read_or_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, document: dict[str, Any], whole: bool
) -> None:
    file.write_text(MINIMUM)
    base = tomllib.loads(MINIMUM) if whole else {}
    with monkeypatch.context() as patch:
        patch.setattr(tomllib, "loads", lambda text: {**base, **document})
        with contextlib.suppress(ConfigurationError):
            assert read_site(file).source == file


# ------------------------------------------------------------------------------- environment


def test_the_environment_of_children_is_built_and_not_inherited(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("PATH", "/evil")
    text = '[environment]\npass = ["SLURM_CONF", "NOT_THERE"]\n[environment.set]\nOMP_NUM_THREADS = "1"\n'
    environment = read(file, MINIMUM + text).context.environment

    account = pwd.getpwuid(os.getuid())
    assert {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "LANG": "C.UTF-8",
        "SLURM_CONF": "/etc/slurm.conf",
        "OMP_NUM_THREADS": "1",
    } == environment


def test_what_is_set_wins_over_what_is_passed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/passed")
    passed = read(file, MINIMUM + '[environment]\npass = ["PATH"]\n').context.environment
    both = read(file, MINIMUM + '[environment]\npass = ["PATH"]\nset = {PATH = "/set"}\n').context.environment
    assert ("/passed", "/set") == (passed["PATH"], both["PATH"])


def test_a_user_without_an_entry_in_passwd_has_an_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    environment = read(file, MINIMUM).context.environment
    assert ("987654", "/") == (environment["USER"], environment["HOME"])


def test_the_default_table_says_nothing() -> None:
    assert EnvironmentTable() == EnvironmentTable(inherit=(), set={})


# ----------------------------------------------------------------------------- the allow-list

_PREFIX = "gsiftp://dtn.example.gov/data/"


@pytest.mark.parametrize(
    "url",
    [
        "gsiftp://dtn.example.gov/data/",
        "gsiftp://dtn.example.gov/data",
        "gsiftp://dtn.example.gov/data/in/file.root",
        "gsiftp://dtn.example.gov/data/a..b/...",
        "gsiftp://dtn.example.gov/data/with%20space/100%25",
    ],
)
def test_what_lies_below_the_prefix_is_allowed(url: str) -> None:
    assert TransferTable(prefix=_PREFIX).allows(url)
    assert TransferTable(prefix=_PREFIX.rstrip("/")).allows(url)


@pytest.mark.parametrize(
    "url",
    [
        "gsiftp://dtn.example.gov/database/x",
        "gsiftp://dtn.example.gov/data.old/x",
        "gsiftp://dtn.example.gov/",
        "gsiftp://dtn.example.gov:2811/data/x",
        "gsiftp://dtn.example.gov.evil.org/data/x",
        "gsiftp://evil.org/gsiftp://dtn.example.gov/data/x",
        "gsiftp://me@dtn.example.gov/data/x",
        "GSIFTP://dtn.example.gov/data/x",
        "file://dtn.example.gov/data/x",
        "gsiftp://dtn.example.gov//data/x",
        "gsiftp://dtn.example.gov/data%2Fx",
        "gsiftp://dtn.example.gov/data/..",
        "gsiftp://dtn.example.gov/data/../etc/passwd",
        "gsiftp://dtn.example.gov/data/x/../../etc",
        "gsiftp://dtn.example.gov/data/./x",
        "gsiftp://dtn.example.gov/data/%2e%2e/etc",
        "gsiftp://dtn.example.gov/data/%2E./etc",
        "gsiftp://dtn.example.gov/data/.%2e/etc",
        "gsiftp://dtn.example.gov/data/x%2F..%2F..%2Fetc",
        "gsiftp://dtn.example.gov/data/..%2Fetc",
        "gsiftp://dtn.example.gov/data/x%00",
        "",
    ],
)
def test_what_climbs_out_or_only_looks_alike_is_not(url: str) -> None:
    assert not TransferTable(prefix=_PREFIX).allows(url)


@given(st.text())
def test_any_text_is_judged(rest: str) -> None:
    allowed = TransferTable(prefix=_PREFIX).allows(_PREFIX + rest)
    if {"..", "."} & set(rest.split("/")):
        assert not allowed


def test_half_a_character_in_a_url_is_judged_too() -> None:
    assert TransferTable(prefix=_PREFIX).allows(f"{_PREFIX}\ud800")  # the schema refuses it later
