"""What `edgecore.drivers` promises about installed packages, good ones and broken ones."""

from __future__ import annotations

import importlib.metadata
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packages import Environment, build_wheel, unpack_wheel

from edgecore import drivers
from edgecore.cli import cli
from edgecore.drivers import find_driver, list_drivers, open_plugins
from edgecore.errors import ConfigurationError, DriverNotFound, DriverUnusable
from edgecore.layers import DryRun, Pacing

RUNNING = importlib.metadata.version("edgecore")

IMPORTED = textwrap.dedent(
    """
    import os, pathlib
    with pathlib.Path(os.environ["IMPORTED"]).open("a") as trace:
        trace.write(__name__ + "\\n")
    """
)

GOOD = IMPORTED + textwrap.dedent(
    """
    from attrs import define
    from edgecore.hookspecs import Scheduling, hookimpl
    from edgecore.models import Answer, Closed, SchedulingProfile, Submitted

    @define(eq=False)
    class Driver(Scheduling):
        partition: str = "batch"

        @hookimpl
        def open(self, site):
            return SchedulingProfile(batch_id_text="$GOOD_ID", version=self.partition)

        @hookimpl
        def submit(self, group):
            return {one.tag: Submitted(batch_id="7") for one in group.submissions}

        @hookimpl
        def observe(self, references):
            return {}

        @hookimpl
        def find(self, tags):
            return {}

        @hookimpl
        def cancel(self, references):
            return Answer()

        @hookimpl
        def hold(self, references):
            return Answer()

        @hookimpl
        def release(self, references):
            return Answer()

        @hookimpl
        def close(self):
            return Closed()
    """
)

MISSES = GOOD.replace("    @hookimpl\n    def find(self, tags):\n        return {}\n", "").replace(
    "    @hookimpl\n    def close", "    def close"
)
WRONG = GOOD.replace("submit(self, group)", "submit(self, groups)").replace("tags)", "tags=())")
NEEDS_MORE = "import a_module_that_nobody_has\n"
LISTENER = textwrap.dedent(
    """
    from attrs import define
    from edgecore.hookspecs import hookimpl

    @define(eq=False)
    class Mail:
        address: str

        @hookimpl
        def job_changed(self, job):
            pass

    @define(eq=False)
    class Deaf:
        def job_changed(self, job):
            pass
    """
)
TYPO = LISTENER.replace("job_changed", "job_chnaged")

SURVEY = textwrap.dedent(
    """
    import json, logging, sys
    from pathlib import Path
    import attrs
    from edgecore.drivers import find_driver, list_drivers, open_plugins, open_scheduling
    from edgecore.errors import EdgeError
    from edgecore.models import Group, SiteContext, Submission

    def error_of(function, *arguments, **named):
        try:
            return ["", str(function(*arguments, **named))]
        except EdgeError as error:
            return [type(error).__name__, str(error)]

    class Warnings(logging.Handler):
        def emit(self, record):
            logged.append(record.getMessage())

    logged = []
    logging.getLogger().addHandler(Warnings())
    listed = list_drivers()
    warnings = list(logged)
    imported = [name for name in sys.modules if name.startswith("edgecore_")]
    names = [one.name for one in listed if one.role == "scheduling"] + ["slrum", "slurmm"]
    found = {name: error_of(find_driver, "scheduling", name) for name in names}
    checked = list_drivers(check=True)

    site = SiteContext(site="here", work_directory=Path("/nowhere"))
    relay = open_scheduling("good", {"partition": "debug"}, site, source="site.toml, [scheduling]")
    one = Submission(tag="e1", script=Path("/s"), directory=Path("/d"), comment="")
    group = Group(tag="e1", submissions=(one,), num_nodes=1, processes_per_node=1, wall_time_minutes=1)
    print(json.dumps({
        "listed": [attrs.asdict(one) for one in listed],
        "imported": imported,
        "warnings": warnings,
        "found": found,
        "checked": [attrs.asdict(one) for one in checked],
        "submitted": relay.submit(group=group)["e1"].batch_id,
        "profile": relay.profile.version,
        "unknown key": error_of(open_scheduling, "good", {"partitoin": "x"}, site, source="site.toml"),
        "plugins": error_of(open_plugins, ["mail"], {"mail": {"address": "a@b"}}, source="site.toml"),
        "plugin key": error_of(open_plugins, ["mail"], {"mail": {"adress": "a@b"}}, source="site.toml"),
        "plugin twice": error_of(open_plugins, ["mail", "mail"], {}, source="site.toml"),
    }))
    """
)

SCHEDULING = "edgecore.scheduling"


def _package(directory: Path, name: str, module: str, *, driver: str = "", **more: Any) -> Path:
    points = more.pop("entry_points", {SCHEDULING: {driver or name: f"edgecore_{name}:Driver"}})
    version = more.pop("version", "1.0")
    return build_wheel(directory, f"edgecore-{name}", version, module, entry_points=points, **more)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with a good driver among every kind of bad ones."""
    wheels = tmp_path_factory.mktemp("wheels")
    made = Environment.make(tmp_path_factory.mktemp("environment"))
    plugins = {"mail": "edgecore_mail:Mail", "deaf": "edgecore_mail:Deaf"}
    made.install(
        _package(wheels, "good", GOOD, requires=["attrs", "edgecore>=0.1,<9", "edgecore>=7 ; extra == 'x'"]),
        _package(wheels, "needy", NEEDS_MORE),
        _package(wheels, "quits", "raise SystemExit('no licence')\n"),
        _package(wheels, "asserts", "assert 1 > 2, 'upside down'\n"),
        _package(wheels, "missing", MISSES),
        _package(wheels, "wrong", WRONG),
        _package(wheels, "function", "def Driver(): pass\n"),
        _package(wheels, "elsewhere", "class Drivers: pass\n"),
        _package(wheels, "twin_a", GOOD, driver="twin"),
        _package(wheels, "twin_b", GOOD, driver="twin", version="2.0"),
        _package(wheels, "old", GOOD, requires=["edgecore<0.1"]),
        _package(wheels, "new", GOOD, requires=["EdgeCore[rabbitmq]>=99"]),
        _package(wheels, "copied", GOOD),
        _package(wheels, "mail", LISTENER, entry_points={"edgecore.plugins": plugins}),
        _package(wheels, "typo", TYPO, entry_points={"edgecore.plugins": {"typo": "edgecore_typo:Mail"}}),
    )
    unpack_wheel(_package(wheels, "copied", GOOD, version="0.9"), made.directory / "copies")
    half_removed = made.packages / "edgecore_half-1.0.dist-info"
    half_removed.mkdir()
    (half_removed / "entry_points.txt").write_text(f"[{SCHEDULING}]\nno equals sign\n")
    return made


@pytest.fixture(scope="session")
def survey(environment: Environment) -> dict[str, Any]:
    """What the environment's own interpreter saw."""
    seen = environment.ask(
        SURVEY,
        environment={
            "IMPORTED": str(environment.directory / "imported"),
            "PYTHONPATH": str(environment.directory / "copies"),
            "XDG_CACHE_HOME": str(environment.directory / "cache"),
        },
    )
    assert isinstance(seen, dict)
    return seen


def _row(rows: list[dict[str, str]], name: str) -> dict[str, str]:
    (row,) = [row for row in rows if row["name"] == name]
    return row


@pytest.mark.slow
class TestInstalledPackages:
    def test_listing_imports_no_package(self, survey: dict[str, Any]) -> None:
        assert survey["imported"] == []

    def test_a_listing_names_package_version_requirement_and_target(self, survey: dict[str, Any]) -> None:
        assert _row(survey["listed"], "good") == {
            "role": "scheduling",
            "name": "good",
            "package": "edgecore-good",
            "version": "1.0",
            "requires": "<9,>=0.1",
            "target": "edgecore_good:Driver",
            "status": "not checked",
            "error": "",
        }

    def test_a_good_driver_works_among_broken_ones(self, survey: dict[str, Any]) -> None:
        assert survey["found"]["good"][0] == ""
        assert _row(survey["checked"], "good")["status"] == "ok"
        assert (survey["submitted"], survey["profile"]) == ("7", "debug")

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("needy", "cannot be imported: ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
            ("quits", "cannot be imported: SystemExit: no licence"),
            ("asserts", "cannot be imported: AssertionError: upside down"),
            ("elsewhere", "cannot be imported: AttributeError"),
            ("missing", "find: the hook is not answered: there is no method for it"),
            ("missing", "close: the hook is not answered: its method is not marked @hookimpl"),
            ("wrong", "submit: takes (self, groups), where groups does not fit the hook submit(self, group)"),
            ("wrong", "find: takes (self, tags), where tags does not fit the hook find(self, tags)"),
            ("function", "found an object of type function; the entry point must lead to a class"),
            ("old", f"is written for edgecore <0.1, this is {RUNNING}: install a newer edgecore-old"),
            (
                "new",
                f"is written for edgecore >=99, this is {RUNNING}: install a newer edgecore, or an older edgecore-new",
            ),
        ],
    )
    def test_each_broken_driver_is_told_apart_by_package_and_fault(
        self, survey: dict[str, Any], name: str, words: str
    ) -> None:
        kind, message = survey["found"][name]
        assert kind == "DriverUnusable"
        assert f"scheduling driver '{name}' of edgecore-{name} 1.0: " in message
        assert words in message
        row = _row(survey["checked"], name)
        assert (row["status"], row["error"]) == ("unusable", message)

    def test_a_failed_import_names_file_and_line(self, survey: dict[str, Any]) -> None:
        assert "edgecore_asserts.py, line 1)" in survey["found"]["asserts"][1]

    def test_two_packages_that_claim_one_name_are_both_named(self, survey: dict[str, Any]) -> None:
        kind, message = survey["found"]["twin"]
        assert kind == "DriverConflict"
        assert "edgecore-twin_a 1.0 and edgecore-twin_b 2.0" in message
        assert "pip uninstall edgecore-twin_a or pip uninstall edgecore-twin_b" in message
        rows = [row for row in survey["listed"] if row["name"] == "twin"]
        assert [(row["package"], row["status"], row["error"]) for row in rows] == [
            ("edgecore-twin_a", "unusable", message),
            ("edgecore-twin_b", "unusable", message),
        ]

    @pytest.mark.parametrize("name", ["old", "new", "twin_a", "twin_b"])
    def test_what_metadata_excludes_is_never_imported(
        self, environment: Environment, survey: dict[str, Any], name: str
    ) -> None:
        assert survey["checked"]
        imported = (environment.directory / "imported").read_text().split()
        assert "edgecore_good" in imported
        assert f"edgecore_{name}" not in imported

    def test_metadata_alone_shows_an_excluded_version(self, survey: dict[str, Any]) -> None:
        assert _row(survey["listed"], "old")["status"] == "unusable"

    def test_a_copy_of_a_package_on_the_path_is_no_conflict(self, survey: dict[str, Any]) -> None:
        row = _row(survey["checked"], "copied")
        assert (row["version"], row["status"]) == ("0.9", "ok")

    def test_a_misprint_names_the_nearest_driver_and_those_installed(self, survey: dict[str, Any]) -> None:
        kind, message = survey["found"]["slurmm"]
        assert kind == "DriverNotFound"
        assert "did you mean slurm? installed: " in message
        assert "good (edgecore-good 1.0)" in message

    def test_an_unknown_key_among_the_settings_is_refused(self, survey: dict[str, Any]) -> None:
        message = "site.toml: partitoin: unknown key; did you mean partition?"
        assert survey["unknown key"] == ["ConfigurationError", message]

    def test_a_named_plugin_is_configured(self, survey: dict[str, Any]) -> None:
        assert survey["plugins"] == ["", "(Mail(address='a@b'),)"]
        assert "site.toml, plugin 'mail': " in survey["plugin key"][1]
        assert "adress: unknown key; did you mean address?" in survey["plugin key"][1]
        assert survey["plugin twice"] == [
            "ConfigurationError",
            "site.toml: mail: found 2 times; name each plugin once",
        ]

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("deaf", "marks no method as @hookimpl"),
            ("typo", "job_chnaged: is no hook of layers and listeners; did you mean job_changed?"),
        ],
    )
    def test_a_plugin_that_would_never_be_heard_is_unusable(
        self, survey: dict[str, Any], name: str, words: str
    ) -> None:
        row = _row(survey["checked"], name)
        assert row["status"] == "unusable"
        assert words in row["error"]

    def test_a_package_whose_metadata_cannot_be_read_is_left_out_and_named(
        self, survey: dict[str, Any]
    ) -> None:
        (warning,) = survey["warnings"]
        assert "edgecore_half-1.0.dist-info: its metadata cannot be read" in warning

    def test_nothing_is_cached_on_disk(self, environment: Environment, survey: dict[str, Any]) -> None:
        assert survey["listed"]
        assert not (environment.directory / "cache").exists()


@pytest.mark.slow
def test_a_replaced_package_is_seen_at_once_by_a_running_process(tmp_path: Path) -> None:
    environment = Environment.make(tmp_path / "environment")
    script = textwrap.dedent(
        """
        import json, sys
        from edgecore.drivers import list_drivers
        while sys.stdin.readline():
            found = [(one.name, one.version) for one in list_drivers() if one.package == "edgecore-fresh"]
            print(json.dumps(found), flush=True)
        """
    )
    states = [("1.0", "first"), ("1.0", "renamed"), ("1.1", "renamed")]
    with environment.start(script) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for version, driver in states:
            environment.install(_package(tmp_path, "fresh", GOOD, driver=driver, version=version))
            process.stdin.write("\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == [[driver, version]]
        process.stdin.close()


@pytest.mark.parametrize(
    ("role", "name", "provider"),
    [
        ("scheduling", "slurm", "edgecore-slurm"),
        ("scheduling", "cobalt", "edgecore-cobalt"),
        ("transfer", "gsiftp", "edgecore-gridftp"),
        ("transfer", "sftp", "edgecore-scp"),
        ("messaging", "amqps", "edgecore[rabbitmq]"),
    ],
)
def test_a_known_driver_that_is_not_installed_comes_with_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, role: str, name: str, provider: str
) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", list)
    with pytest.raises(DriverNotFound) as raised:
        find_driver(role, name)
    assert f"to get it: pip install '{provider}'; installed: none" in str(raised.value)


def test_a_driver_whose_extra_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("amqp", "a_module_that_nobody_has:Broker", "edgecore.messaging")
    offer = drivers._Offer("messaging", point, "edgecore", RUNNING, ())
    monkeypatch.setattr(drivers, "_offers", lambda: [offer])
    with pytest.raises(DriverUnusable, match=r"nobody_has': pip install 'edgecore\[rabbitmq\]'$"):
        find_driver("messaging", "amqp")
    (listed,) = list_drivers(check=True)
    assert "extra missing" == listed.status  # an optional part that nobody chose is no fault of the package
    shown = CliRunner().invoke(cli, ["drivers", "--check"])
    assert 0 == shown.exit_code
    assert "note: messaging driver 'amqp'" in shown.output


def test_the_core_offers_its_own_drivers_and_layers_through_the_same_door() -> None:
    own = {(one.role, one.name): one for one in list_drivers() if one.package == "edgecore"}
    expected = {
        ("messaging", "sqlite"),
        ("transfer", "file"),
        ("scheduling", "fork"),
        ("plugins", "pacing"),
        ("plugins", "dry-run"),
    }
    assert expected <= own.keys()
    assert {own[key].status for key in expected} == {"not checked"}


def test_plugins_come_in_the_order_of_the_configuration() -> None:
    settings = {"pacing": {"burst": 3}}
    first, second = open_plugins(["dry-run", "pacing"], settings, source="site.toml")
    assert isinstance(first, DryRun)
    assert isinstance(second, Pacing)
    assert second.burst == 3


def test_settings_of_an_installed_plugin_that_is_not_enabled_are_left_alone() -> None:
    assert open_plugins([], {"pacing": {"burst": 3}}, source="site.toml") == ()


def test_settings_of_a_plugin_that_does_not_exist_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"pacng: found settings; .*did you mean pacing"):
        open_plugins([], {"pacng": {"burst": 3}}, source="site.toml")
