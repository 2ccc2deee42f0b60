"""A site that init makes works, and the example site names everything there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from edgecore import config as configuration
from edgecore.cli import cli
from edgecore.config import SiteConfig, read_site
from edgecore.desk import Desk
from edgecore.drivers import find_driver
from edgecore.reader import Reader
from edgecore.serial import structure

EXAMPLE = Path(__file__).parents[1] / "examples" / "balsam" / "config.toml"


def edgecore(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_init_makes_a_site_that_is_read_without_a_complaint(tmp_path: Path) -> None:
    result = edgecore("init", str(tmp_path / "demo"))

    assert result.exit_code == 0, result.output
    config = read_site(tmp_path / "demo" / "site.toml")
    assert config.site == "demo"
    with Reader(config.store) as reader:
        application = reader.application("hello")
    assert application is not None
    assert Path(application.executable).stat().st_mode & 0o111


def test_init_prints_the_commands_that_come_next(tmp_path: Path) -> None:
    output = edgecore("init", str(tmp_path / "demo")).output

    place = str(tmp_path / "demo")
    assert re.findall(r"^  edgecore (\w+) ", output, re.M) == ["doctor", "run", "submit", "jobs"]
    assert f"edgecore submit {place}/hello.json --site {place}/site.toml --wait" in output


@pytest.mark.parametrize("name", ["two words", "50% of #1?", "Ümläut", 'it\'s "quoted" \\ {braces}'])
def test_init_works_in_a_directory_of_any_printable_name(tmp_path: Path, name: str) -> None:
    result = edgecore("init", str(tmp_path / name), "--site", "here")

    assert result.exit_code == 0, result.output
    sent = edgecore(
        "submit", str(tmp_path / name / "hello.json"), "--site", str(tmp_path / name / "site.toml")
    )
    assert sent.exit_code == 0, sent.output
    assert (tmp_path / name / "queues.sqlite").exists()


def test_init_refuses_a_directory_that_has_a_site(tmp_path: Path) -> None:
    edgecore("init", str(tmp_path / "demo"))
    before = (tmp_path / "demo" / "site.toml").read_bytes()

    result = edgecore("init", str(tmp_path / "demo"), "--site", "other")

    assert result.exit_code == 2
    assert "a site is there already" in result.stderr
    assert (tmp_path / "demo" / "site.toml").read_bytes() == before


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "hello.json").write_text("mine")

    result = edgecore("init", str(tmp_path), "--site", "demo")

    assert result.exit_code == 2
    assert (tmp_path / "hello.json").read_text() == "mine"
    assert not (tmp_path / "site.toml").exists()


def test_init_asks_for_a_name_when_the_directory_has_none_that_fits(tmp_path: Path) -> None:
    result = edgecore("init", str(tmp_path / "two words"))

    assert result.exit_code == 2
    assert "give --site NAME" in result.stderr
    assert not (tmp_path / "two words").exists()


def test_init_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = edgecore("init", str(tmp_path / "file" / "demo"))

    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert isinstance(result.exception, SystemExit)


# ------------------------------------------------------------------------- the example site


def enabled(text: str) -> str:
    """Return the example with everything that is commented out switched on."""
    return re.sub(r"^#(?=[\[a-zA-Z_])", "", text, flags=re.M)


def test_the_example_site_is_accepted() -> None:
    config = read_site(EXAMPLE)

    assert config.site == "example"


def test_the_example_site_is_accepted_with_every_key_switched_on(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(enabled(EXAMPLE.read_text()))

    config = read_site(path)

    assert config.scheduling.options["constraint"].pattern == "[a-z|&]+"
    assert config.environment.inherit == ("SLURM_CONF", "KRB5CCNAME")


def tables() -> list[tuple[str, type[Any]]]:
    """Return every table of a site's file with the class that reads it."""
    kinds = {name: getattr(configuration, name) for name in configuration.__all__}
    kinds["PluginsTable"] = configuration.PluginsTable
    found = {
        field.name: cls
        for field in attrs.fields(SiteConfig)
        for name, cls in kinds.items()
        if attrs.has(cls) and re.search(rf"\b{name}\b", str(field.type))
    }
    return [("", SiteConfig), *found.items()]


@pytest.mark.parametrize(
    ("table", "cls"), tables(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_example_site_shows_every_key(table: str, cls: type[Any]) -> None:
    document = tomllib.loads(enabled(EXAMPLE.read_text()))
    shown: Any = document[table] if table else document
    if isinstance(shown, list):
        shown = shown[0]
    if table == "launchers":
        shown = next(iter(shown.values()))
    read_from_elsewhere = {"settings", "source"}

    keys = {"pass" if field.name == "inherit" else field.name for field in attrs.fields(cls) if field.init}

    assert keys - read_from_elsewhere <= set(shown)


def test_the_table_of_tables_is_complete() -> None:
    assert {name for name, _ in tables()} == {
        "",
        "messaging",
        "scheduling",
        "transfer",
        "credential",
        "launchers",
        "environment",
        "script",
        "defaults",
        "limits",
        "timing",
        "retry",
        "retention",
        "manifest",
        "log",
        "metrics",
        "alarms",
        "plugins",
    }


@pytest.mark.parametrize(
    "text", [EXAMPLE.read_text(), enabled(EXAMPLE.read_text())], ids=["as it is", "all on"]
)
def test_the_drivers_of_the_example_site_take_its_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    config = read_site(path)

    structure(
        find_driver("scheduling", config.scheduling.driver), config.scheduling.settings, source="example"
    )
    messaging = {**config.messaging.settings, "url": config.messaging.url}
    structure(find_driver("messaging", config.messaging.scheme), messaging, source="example")
    for entry in config.transfer:
        structure(find_driver("transfer", entry.scheme), entry.settings, source="example")


def test_what_the_example_calls_a_default_is_the_default(tmp_path: Path) -> None:
    """Where a key is commented out and the class has a value of its own, both are the same."""
    document = tomllib.loads(enabled(EXAMPLE.read_text()))
    active = tomllib.loads(EXAMPLE.read_text())
    shown_as_example = {"pass", "set", "prologue"}

    for table, cls in tables():
        if table in ("transfer", "launchers"):
            continue
        values = document[table] if table else document
        values = values[0] if isinstance(values, list) else values
        present = active.get(table, {}) if table else active
        for field in attrs.fields(cls):
            plain = isinstance(field.default, str | int | float)
            if plain and field.name in values and field.name not in {*present, *shown_as_example}:
                assert values[field.name] == field.default, f"{table}.{field.name}"


def test_the_catalogue_can_be_kept_before_the_first_run(tmp_path: Path) -> None:
    edgecore("init", str(tmp_path / "demo"))
    config = read_site(tmp_path / "demo" / "site.toml")

    assert Desk(config.store).remove_application("hello")
