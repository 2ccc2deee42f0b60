"""Read a site's configuration: TOML in, frozen values out, every error with file, table and key.

Tables that configure a driver hold our keys and the driver's own side by side; what is not ours
goes to the driver, which refuses what it does not know when it is opened.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote_to_bytes

from attrs import Factory, evolve, frozen

from edgecore import applications, serial
from edgecore.errors import ConfigurationError, Problem
from edgecore.models import BatchWord, Between, Count, Name, Option, SiteContext, Text
from edgecore.toml import read_toml

__all__ = [
    "AlarmsTable",
    "CredentialTable",
    "Defaults",
    "EnvironmentTable",
    "LauncherTable",
    "Limits",
    "LogTable",
    "ManifestTable",
    "MessagingTable",
    "MetricsTable",
    "Retention",
    "Retry",
    "SchedulingTable",
    "ScriptTable",
    "SiteConfig",
    "Timing",
    "TransferTable",
    "read_site",
]

Seconds = Annotated[float, Between(0, 31_536_000)]
Settings = Mapping[str, Any]
VariableName = Annotated[
    str, Text(r"[A-Za-z_][A-Za-z0-9_]{0,254}", "a name of letters, digits and _, as a shell can export it")
]


@frozen(kw_only=True)
class MessagingTable:
    """``[messaging]``: the broker, and where definitions come from and status goes to."""

    url: str
    """Of the broker; its scheme names the driver: ``sqlite:///path``."""
    exchange: Name = "hpc"
    """The exchange that everything goes through."""
    queue: Name | None = None
    """Queue and routing key of job definitions; the site's name where not given."""
    status_key: Name = "balsam_job_status"
    """The routing key of status messages."""
    settings: Settings = Factory(dict)
    """The driver's own keys."""

    @property
    def scheme(self) -> str:
        """The name of the driver."""
        return _scheme(self.url)


@frozen(kw_only=True)
class SchedulingTable:
    """``[scheduling]``: the batch system, and what users may set of it."""

    driver: Name
    """The name of an installed driver: ``edgecore drivers`` lists them."""
    options: Mapping[Name, Option] = Factory(dict)
    """What users may set of the batch system through their ``scheduler_config``, by name and type."""
    settings: Settings = Factory(dict)
    """The driver's own keys."""


@frozen(kw_only=True)
class TransferTable:
    """One ``[[transfer]]``: URLs below this prefix are allowed, and this is how they are reached."""

    prefix: str
    """The beginning of URLs that jobs may use; its scheme names the driver."""
    settings: Settings = Factory(dict)
    """The driver's own keys."""

    @property
    def scheme(self) -> str:
        """The name of the driver."""
        return _scheme(self.prefix)

    def allows(self, url: str) -> bool:
        """Tell whether *url* lies below the prefix and does not climb out of it, encoded or not."""
        segments = unquote_to_bytes(url.encode(errors="surrogatepass")).split(b"/")
        climbs = b".." in segments or b"." in segments or any(b"\0" in segment for segment in segments)
        return not climbs and (url + "/").startswith(self.prefix.rstrip("/") + "/")


@frozen(kw_only=True)
class CredentialTable:
    """One ``[[credential]]``: a certificate or X.509 proxy that the site works with: it is watched, renewed and waited for."""

    name: Name
    """What alarms and lists call it."""
    file: Path
    """PEM: a certificate and those that vouch for it, or a proxy. Relative paths begin at the file's directory."""
    key: Path | None = None
    """PEM: the private key, where it does not stand in the same file."""
    needed_by: tuple[str, ...] = ()
    """Prefixes of ``[[transfer]]``, whose transfers wait while it cannot be used; ``messaging`` for the broker's, which waits by itself."""
    renew: tuple[str, ...] = ()
    """Program and arguments that put a new one in its place. Where there is none, people do."""
    renew_before_minutes: Annotated[float, Between(0.01, 525_600)] = 120
    """When less is left, the program is run."""
    renew_timeout_s: Annotated[float, Between(0.1, 3_600)] = 120
    """After so many seconds the program is ended."""
    warn_before_minutes: Annotated[float, Between(0, 525_600)] | None = None
    """When less is left, there is an alarm; where not given, half of ``renew_before_minutes``."""
    look_s: Annotated[float, Between(0.05, 3_600)] = 10
    """How often the files are looked at."""

    @property
    def warn_minutes(self) -> float:
        """How many minutes before it expires people are told."""
        return self.renew_before_minutes / 2 if self.warn_before_minutes is None else self.warn_before_minutes


@frozen(kw_only=True)
class LauncherTable:
    """``[launchers.NAME]``: what starts an application on its nodes."""

    arguments: tuple[str, ...]
    """Stand before the application's; ``{nodes}``, ``{processes}`` and ``{processes_per_node}`` are filled in."""


@frozen(kw_only=True)
class EnvironmentTable:
    """``[environment]``: what child processes get beside the built minimum."""

    inherit: tuple[VariableName, ...] = ()
    """``pass``: names of variables taken over from the service's own environment."""
    set: Mapping[VariableName, Annotated[str, Text(r"[^\x00]*", "text without NUL")]] = Factory(dict)
    """Variables with fixed values, for commands and for jobs."""


@frozen(kw_only=True)
class ScriptTable:
    """``[script]``: the operator's own shell lines around every application."""

    prologue: str = ""
    """Before the application, such as ``. /etc/profile.d/modules.sh``."""
    epilogue: str = ""
    """After the application, whatever its end."""


@frozen(kw_only=True)
class Defaults:
    """``[defaults]``: what a definition gets for keys that it leaves out."""

    queue: BatchWord | None = None
    """The batch system's queue or partition."""
    project: BatchWord | None = None
    """The account to be charged."""
    wall_time_minutes: Count = 60
    """After so many minutes the batch system ends a job."""
    num_nodes: Count = 1
    """How many nodes."""
    processes_per_node: Count = 1
    """How many processes on each node."""
    retries: Annotated[int, Between(0, 100)] = 0
    """Further attempts after an execution that failed."""


@frozen(kw_only=True)
class Limits:
    """``[limits]``: how much at once."""

    max_queued: Count | None = None
    """Jobs given to the batch system that do not run yet."""
    max_nodes: Count | None = None
    """Nodes that one job may ask for."""
    max_wall_time_minutes: Count | None = None
    """Walltime that one job may ask for."""
    max_message_bytes: Annotated[int, Between(1_000, 100_000_000)] = 1_048_576
    """A longer message is refused."""
    max_transfer_bytes: Annotated[int, Between(1, 2**63)] | None = None
    """What one job may stage in, and what it may stage out."""
    staging: Annotated[int, Between(1, 64)] = 4
    """Transfers at the same time."""
    processing: Annotated[int, Between(1, 64)] = 2
    """Preprocess and postprocess programs at the same time."""


@frozen(kw_only=True)
class Timing:
    """``[timing]``: how often to look and how long to be patient."""

    poll_interval_s: Annotated[float, Between(0.01, 86_400)] | None = None
    """Between two listings; where not given, what the batch system's driver finds kind."""
    grace_s: Seconds = 60
    """For slow file systems: from the native end until an end record counts as missing."""
    lost_after_s: Seconds = 900
    """From the first miss in a listing until a job counts as gone or LOST."""
    walltime_margin_s: Seconds = 3_600
    """After the walltime, until an unlisted execution counts as over."""
    stuck_after_s: Seconds = 3_600
    """From when the batch system says that it will never start a job, until the job is cancelled there and fails."""
    overdue_after_s: Seconds | None = None
    """From when a job waits in the batch system, until it is cancelled there and fails; a hold that was asked for here does not count. Where not given, it may wait for ever."""
    alarm_after_s: Seconds = 1_800
    """From the first failure of the batch system or broker until an alarm."""
    drain_s: Seconds = 60
    """How long a stopping service waits for what it has begun."""


@frozen(kw_only=True)
class Retry:
    """``[retry]``: back-off of actions that failed for a passing reason."""

    first_s: Annotated[float, Between(0.01, 86_400)] = 10
    """Before the first repetition; each further wait is longer."""
    longest_s: Annotated[float, Between(0.01, 86_400)] = 600
    """No wait is longer."""
    tries: Annotated[int, Between(1, 1000)] = 10
    """After so many failures in a row of one step, the step has failed."""


@frozen(kw_only=True)
class Retention:
    """``[retention]``: how long directories of settled jobs are kept; the store's rows stay."""

    keep_days: Annotated[float, Between(0, 36_500)] = 30
    """Days after the end of a job that finished or was cancelled."""
    keep_failed_days: Annotated[float, Between(0, 36_500)] = 90
    """Days after the end of a job that failed, during which it can be resumed."""


@frozen(kw_only=True)
class ManifestTable:
    """``[manifest]``: the list of what was staged out, ``manifest.jsonl`` beside the run record."""

    checksums: bool = True
    """Whether SHA-256 is computed here for files of which the transfer driver tells no checksum, which reads the output once more."""


@frozen(kw_only=True)
class LogTable:
    """``[log]``: what `edgecore run` logs and where; a service inside another program logs as that one does."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """What is less is left out."""
    format: Literal["text", "json"] = "text"
    """``json``: an object per line, with the fields of the job that it is about."""
    file: Path | None = None
    """None for stderr."""


@frozen(kw_only=True)
class MetricsTable:
    """``[metrics]``: counters for Prometheus in a text file, as its node exporter reads them."""

    file: Path | None = None
    """None for no metrics."""
    interval_s: Annotated[float, Between(0.1, 86_400)] = 60
    """Seconds between two writings."""


@frozen(kw_only=True)
class AlarmsTable:
    """``[alarms]``: the operator's own program that is told of alarms."""

    command: tuple[str, ...] = ()
    """Program and arguments; it gets JSON on its standard input. Empty for none."""
    interval_s: Annotated[float, Between(0, 86_400)] = 60
    """Not more often than this; what comes meanwhile is told together."""
    timeout_s: Annotated[float, Between(0.1, 3_600)] = 60
    """After so many seconds the program is ended."""


@frozen(kw_only=True)
class PluginsTable:
    """``[plugins]``: layers and listeners, active only when named here."""

    enabled: tuple[str, ...] = ()
    """Names of installed layers and listeners, which are active only when they stand here."""
    settings: Mapping[str, Settings] = Factory(dict)
    """``[plugins.NAME]``: each one's own keys."""


@frozen(kw_only=True)
class SiteConfig:
    """Everything that one Balsam needs to know."""

    site: Name
    """The name that jobs address."""
    work_directory: Path
    """Every job gets a directory below it. Relative paths begin at the file's directory."""
    store: Path
    """The SQLite file with all that the service knows."""
    messaging: MessagingTable
    scheduling: SchedulingTable
    store_mode: Literal["wal", "rollback"] = "wal"
    """``wal`` wants a local disk; ``rollback`` is for those who have only a network file system."""
    owner: Name = "local"
    """Owner of jobs whose sender the broker does not vouch for."""
    transfer: tuple[TransferTable, ...] = ()
    credential: tuple[CredentialTable, ...] = ()
    launchers: Mapping[Name, LauncherTable] = Factory(dict)
    environment: EnvironmentTable = EnvironmentTable()
    script: ScriptTable = ScriptTable()
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    timing: Timing = Timing()
    retry: Retry = Retry()
    retention: Retention = Retention()
    manifest: ManifestTable = ManifestTable()
    log: LogTable = LogTable()
    metrics: MetricsTable = MetricsTable()
    alarms: AlarmsTable = AlarmsTable()
    plugins: PluginsTable = PluginsTable()
    source: Path = Path("/")
    """The file that it was read from."""

    @property
    def context(self) -> SiteContext:
        """What every driver is told about the site."""
        return SiteContext(
            site=self.site, work_directory=self.work_directory, environment=_environment(self.environment)
        )

    @property
    def queue(self) -> str:
        """The queue that job definitions for this site arrive in."""
        return self.messaging.queue or self.site


_DRIVER_TABLES: Final[Mapping[str, frozenset[str]]] = {
    "messaging": frozenset({"url", "exchange", "queue", "status_key"}),
    "scheduling": frozenset({"driver", "options"}),
    "transfer": frozenset({"prefix"}),
    "plugins": frozenset({"enabled"}),
}
"""Table -> our keys; all others belong to the driver."""


_PATHS: Final = (
    ("", "work_directory"),
    ("", "store"),
    ("log", "file"),
    ("metrics", "file"),
    ("credential", "file"),
    ("credential", "key"),
)
"""Table and key of paths, which begin at the file's directory."""


def read_site(path: Path) -> SiteConfig:
    """Read a site's configuration file. Raises ConfigurationError with all problems."""
    document = read_toml(path)
    unknown = tuple(_unknown_keys(document))
    place = path.absolute().parent
    for name, key in _PATHS:
        found = document.get(name) if name else document
        for table in found if isinstance(found, list) else [found]:
            if isinstance(table, dict) and isinstance(table.get(key), str):
                table[key] = _absolute(place, table[key])
    for name, ours in _DRIVER_TABLES.items():
        if name in document:
            document[name] = _part(document[name], ours)
    environment = document.get("environment")
    if isinstance(environment, dict) and "pass" in environment:
        environment["inherit"] = environment.pop("pass")
    try:
        config = serial.structure(SiteConfig, document, source=str(path))
    except ConfigurationError as error:
        raise ConfigurationError(str(path), (*map(_as_written, error.problems), *unknown)) from None
    if problems := (*unknown, *_problems(config)):
        raise ConfigurationError(str(path), problems)
    return evolve(config, source=path.absolute())


def _absolute(place: Path, path: str) -> str:
    return path if "\0" in path else str(place / os.path.expanduser(path))  # the schema refuses that


def _as_written(problem: Problem) -> Problem:
    """Name a key as the file has it, not as our fields do."""
    path = re.sub(r"^environment\.inherit\b", "environment.pass", problem.path)
    return evolve(problem, path=re.sub(r"^plugins\.settings\.", "plugins.", path))


def _unknown_keys(document: dict[str, Any]) -> Iterator[Problem]:
    """Take out what names a field of ours that is no key of the file."""
    environment = document.get("environment")
    for table, prefix, key in ((document, "", "source"), (environment, "environment.", "inherit")):
        if isinstance(table, dict) and key in table:
            del table[key]
            yield Problem(f"{prefix}{key}", "", "unknown key")


def _scheme(url: str) -> str:
    match = re.match(r"([a-z][a-z0-9+.-]*)://", url)
    return match[1] if match else ""


def _part(table: Any, ours: frozenset[str]) -> Any:
    """Set the driver's own keys of a table apart from ours."""
    if isinstance(table, list):
        return [_part(entry, ours) for entry in table]
    if not isinstance(table, dict):
        return table
    parted = {key: value for key, value in table.items() if key in ours}
    return {**parted, "settings": {key: value for key, value in table.items() if key not in ours}}


def _problems(config: SiteConfig) -> Iterator[Problem]:
    """Find what the types allow and a site cannot work with."""
    yield from _url_problems(config)
    yield from _credential_problems(config)
    yield from _launcher_problems(config.launchers)
    try:
        applications.check_options(config.scheduling.options, source="")
    except ConfigurationError as error:
        yield from error.problems


def _url_problems(config: SiteConfig) -> Iterator[Problem]:
    if not config.messaging.scheme:
        yield Problem("messaging.url", repr(config.messaging.url), "must be a URL, such as sqlite:///path")
    for number, entry in enumerate(config.transfer):
        if not entry.scheme:
            allowed = "must be the beginning of a URL, such as file:///data/"
            yield Problem(f"transfer[{number}].prefix", repr(entry.prefix), allowed)
        elif "@" in entry.prefix.partition("://")[2].partition("/")[0]:
            allowed = (
                "must not name a user, since no URL of a job may; the driver's key user says who we are there"
            )
            yield Problem(f"transfer[{number}].prefix", repr(entry.prefix), allowed)
        if any(entry.prefix.rstrip("/") == other.prefix.rstrip("/") for other in config.transfer[:number]):
            yield Problem(
                f"transfer[{number}].prefix", repr(entry.prefix), "stands before, with settings of its own"
            )


def _credential_problems(config: SiteConfig) -> Iterator[Problem]:
    known = ["messaging", *(entry.prefix for entry in config.transfer)]
    names = [entry.name for entry in config.credential]
    for number, entry in enumerate(config.credential):
        place = f"credential[{number}]"
        if entry.name in names[:number]:
            yield Problem(f"{place}.name", repr(entry.name), "another credential has this name")
        for user in entry.needed_by:
            if user not in known:
                allowed = f"must be a prefix of [[transfer]] or messaging: {', '.join(known)}"
                yield Problem(f"{place}.needed_by", repr(user), allowed)
        if entry.renew and entry.warn_minutes > entry.renew_before_minutes:
            allowed = f"must not be more than renew_before_minutes, which is {entry.renew_before_minutes:g}"
            yield Problem(f"{place}.warn_before_minutes", f"{entry.warn_minutes:g}", allowed)


def _launcher_problems(launchers: Mapping[str, LauncherTable]) -> Iterator[Problem]:
    for name, launcher in launchers.items():
        try:
            applications.launcher_arguments(launcher.arguments, num_nodes=1, processes_per_node=1)
        except ConfigurationError as error:
            for problem in error.problems:
                yield evolve(problem, path=f"launchers.{name}.{problem.path}")


def _environment(table: EnvironmentTable) -> Mapping[str, str]:
    """Build the environment of child processes: a minimum, what is passed, what is set."""
    try:
        account = pwd.getpwuid(os.getuid())
        name, home = account.pw_name, account.pw_dir
    except KeyError:  # a container's user without an entry
        name, home = str(os.getuid()), "/"
    built = {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "LANG": "C.UTF-8",
    }
    passed = {name: os.environ[name] for name in table.inherit if name in os.environ}
    return {**built, **passed, **table.set}
