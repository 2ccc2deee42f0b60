"""Find drivers, layers and listeners in installed packages, check them, and open them.

stevedore decides which object answers a role: the entry point of that name in the role's group.
Listing reads package metadata and imports nothing, and whatever is wrong with one package is
told in the name of that package and stops no other. `edgecore.relays` puts what was found to work.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import logging
import re
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import Distribution, EntryPoint
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import frozen
from stevedore.driver import DriverManager

from edgecore.errors import (
    ConfigurationError,
    DriverConflict,
    DriverNotFound,
    DriverUnusable,
    EdgeError,
    Problem,
)
from edgecore.hookspecs import PROJECT, ROLES
from edgecore.models import SiteContext
from edgecore.relays import (
    Listeners,
    MessagingRelay,
    SchedulingRelay,
    TransferRelay,
    driver_problems,
    layers_for,
    plugin_problems,
)
from edgecore.serial import nearest, structure

if TYPE_CHECKING:
    _DriverManager = DriverManager[type[Any]]
else:  # older stevedores are not generic
    _DriverManager = DriverManager

__all__ = [
    "Listeners",
    "Listing",
    "MessagingRelay",
    "SchedulingRelay",
    "TransferRelay",
    "find_driver",
    "layers_for",
    "list_drivers",
    "open_messaging",
    "open_plugins",
    "open_scheduling",
    "open_transfer",
]

_log = logging.getLogger(__name__)

_PLUGINS: Final = "plugins"
_GROUPS: Final = {f"{PROJECT}.{role}": role for role in (*ROLES, _PLUGINS)}
_PROVIDERS: Final[Mapping[str, Mapping[str, str]]] = {
    "messaging": dict.fromkeys(("amqp", "amqps"), "edgecore[rabbitmq]"),
    "transfer": {
        **dict.fromkeys(("gsiftp", "ftp"), "edgecore-gridftp"),
        **dict.fromkeys(("scp", "sftp"), "edgecore-scp"),
    },
    "scheduling": {name: f"edgecore-{name}" for name in ("slurm", "torque", "condor", "cobalt")},
    _PLUGINS: {},
}
"""Role -> name -> what pip must install to get it."""

# ------------------------------------------------------------------------- what is installed


@frozen
class Listing:
    """Describe one driver or plugin that an installed package offers."""

    role: str
    name: str
    package: str
    version: str
    requires: str
    """The versions of edgecore that the package declares to work with; empty if it does not say."""
    target: str
    """The entry point's value: ``module:Class``."""
    status: str
    """``not checked``, ``ok``, ``extra missing`` (an optional part that was not installed) or ``unusable``."""
    error: str
    """What is wrong, or what is missing, and what to do about it; else empty."""


@frozen
class _Offer:
    """One entry point in one of our groups, with the package that it came with."""

    role: str
    entry_point: EntryPoint
    package: str
    version: str
    requirements: tuple[str, ...]
    """What the package says of other packages that it needs."""

    @property
    def name(self) -> str:
        return self.entry_point.name

    @property
    def requires(self) -> str:
        """The versions of edgecore that the package asks for, as it wrote them."""
        return _requirement(self.requirements)

    @property
    def source(self) -> str:
        return f"{_title(self.role, self.name)} of {self.package} {self.version}"


def _title(role: str, name: str) -> str:
    return f"plugin {name!r}" if role == _PLUGINS else f"{role} driver {name!r}"


class _Drivers(_DriverManager):
    """Let stevedore choose and load, from entry points that were read just now.

    stevedore keeps entry points on disk under a coarse time stamp, and would show yesterday's
    drivers after a reinstall.
    """

    def __init__(self, group: str, name: str, entry_points: Sequence[EntryPoint]) -> None:
        self._entry_points = list(entry_points)
        super().__init__(group, name)

    def list_entry_points(self) -> list[EntryPoint]:
        return self._entry_points


def _offers() -> list[_Offer]:
    """Read what the installed packages offer to us, each package once, importing nothing."""
    importlib.invalidate_caches()  # a package may be replaced within one tick of a file's time stamp
    names: dict[str, None] = {}
    for distribution in importlib.metadata.distributions():
        try:
            if any(point.group in _GROUPS for point in distribution.entry_points):
                names[re.sub(r"[-_.]+", "-", distribution.name).lower()] = None
        except Exception as error:  # half removed, or not written by an installer
            where = getattr(distribution, "_path", distribution)
            _log.warning("left out %s: its metadata cannot be read: %r", where, error)
    found: list[_Offer] = []
    for name in names:
        # The first one on the path counts, as for imports; an editable install often shows up twice.
        found.extend(_offers_of(importlib.metadata.distribution(name)))
    order = list(_GROUPS.values())
    return sorted(found, key=lambda offer: (order.index(offer.role), offer.name, offer.package))


def _offers_of(distribution: Distribution) -> Iterator[_Offer]:
    # Each of these reads and parses the metadata anew, which at the start of a service was most of its work.
    package, version, requirements = (
        distribution.name,
        distribution.version,
        tuple(distribution.requires or ()),
    )
    for point in distribution.entry_points:
        if point.group in _GROUPS:
            yield _Offer(_GROUPS[point.group], point, package, version, requirements)


def _requirement(requirements: Sequence[str]) -> str:
    lines = [line for line in requirements if line.lower().startswith(PROJECT)]
    if not lines:
        return ""
    from packaging.requirements import InvalidRequirement, Requirement  # slow to import, seldom needed

    found: list[str] = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if requirement.name.lower() == PROJECT and applies:
            found.append(str(requirement.specifier))
    return ",".join(filter(None, found))


def _misfit(offer: _Offer) -> str:
    """Say why the running edgecore is not one that the package was written for, if so."""
    requires = offer.requires
    if not requires:
        return ""
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    running = importlib.metadata.version(PROJECT)
    specifiers = SpecifierSet(requires)
    if specifiers.contains(running, prereleases=True):
        return ""
    too_old = any(
        one.operator in (">", ">=", "~=", "==")
        and Version(one.version.removesuffix(".*")) >= Version(running)
        and not one.contains(running, prereleases=True)
        for one in specifiers
    )
    advice = (
        f"install a newer edgecore, or an older {offer.package}"
        if too_old
        else f"install a newer {offer.package}"
    )
    return f"is written for edgecore {requires}, this is {running}: {advice}"


def _conflict(offer: _Offer, offers: Iterable[_Offer]) -> str:
    """Say which packages offer the same name, if there is more than one such offer."""
    rivals = [one for one in offers if (one.role, one.name) == (offer.role, offer.name)]
    if len(rivals) == 1:
        return ""
    who = " and ".join(f"{one.package} {one.version}" for one in rivals)
    packages = " or ".join(f"pip uninstall {name}" for name in dict.fromkeys(one.package for one in rivals))
    return f"is offered by {who}: {packages}"


def list_drivers(*, check: bool = False) -> tuple[Listing, ...]:
    """List drivers and plugins of all installed packages; import them only to *check* them."""
    offers = _offers()
    return tuple(_listing(offer, offers, check) for offer in offers)


def _listing(offer: _Offer, offers: Sequence[_Offer], check: bool) -> Listing:
    status, error = "ok" if check else "not checked", ""
    try:
        _refuse_unloadable(offer, offers)
        if check:
            _load(offer)
    except (DriverConflict, DriverUnusable) as raised:
        status = "extra missing" if _missing_extra(offer, raised.__cause__) else "unusable"
        error = str(raised)
    return Listing(
        role=offer.role,
        name=offer.name,
        package=offer.package,
        version=offer.version,
        requires=offer.requires,
        target=offer.entry_point.value,
        status=status,
        error=error,
    )


# ------------------------------------------------------------------------------ find and load


def find_driver(role: str, name: str) -> type[Any]:
    """Import the driver's class and check that it answers every hook of its role.

    Raises DriverNotFound, DriverConflict or DriverUnusable.
    """
    return _load(_find(role, name))


def _find(role: str, name: str) -> _Offer:
    """Choose by name and by declared requirement, importing nothing."""
    offers = _offers()
    of_role = [offer for offer in offers if offer.role == role]
    chosen = [offer for offer in of_role if offer.name == name]
    if not chosen:
        raise DriverNotFound(_title(role, name), (Problem("", "", _not_found(role, name, of_role)),))
    _refuse_unloadable(chosen[0], offers)
    return chosen[0]


def _not_found(role: str, name: str, offers: Sequence[_Offer]) -> str:
    known = _PROVIDERS[role]
    if name in known:
        hint = f"; to get it: pip install '{known[name]}'; "
    else:
        near = nearest(name, [*(offer.name for offer in offers), *known])
        hint = f"{near} " if near else "; "
    installed = ", ".join(f"{offer.name} ({offer.package} {offer.version})" for offer in offers)
    return f"no installed package offers it{hint}installed: {installed or 'none'}"


def _refuse_unloadable(offer: _Offer, offers: Sequence[_Offer]) -> None:
    if conflict := _conflict(offer, offers):
        raise DriverConflict(_title(offer.role, offer.name), (Problem("", "", conflict),))
    if misfit := _misfit(offer):
        raise DriverUnusable(offer.source, (Problem("", "", misfit),))


def _load(offer: _Offer) -> type[Any]:
    try:
        manager = _Drivers(f"{PROJECT}.{offer.role}", offer.name, [offer.entry_point])
        loaded: object = manager.extensions[0].plugin  # `.driver` would try whether the class is true
    except (Exception, SystemExit) as error:
        raise DriverUnusable(offer.source, (Problem("", "", _not_imported(offer, error)),)) from error
    problems = tuple(_problems(offer.role, loaded))
    if problems:
        advice = Problem("", "", f"install a repaired {offer.package}, or uninstall it")
        raise DriverUnusable(offer.source, (*problems, advice))
    assert isinstance(loaded, type)
    return loaded


def _problems(role: str, loaded: object) -> Iterator[Problem]:
    """Say everything that keeps a loaded object from serving as a driver of *role* or a plugin."""
    if not isinstance(loaded, type):
        yield Problem(
            "", f"an object of type {type(loaded).__name__}", "the entry point must lead to a class"
        )
        return
    if not attrs.has(loaded):
        yield Problem("", loaded.__name__, "must be an attrs class (@attrs.define(eq=False))")
    yield from plugin_problems(loaded) if role == _PLUGINS else driver_problems(role, loaded)


def _not_imported(offer: _Offer, error: BaseException) -> str:
    frames = itertools.dropwhile(
        lambda frame: not frame.filename.startswith("<frozen importlib"),
        traceback.extract_tb(error.__traceback__),
    )
    own = [frame for frame in frames if not frame.filename.startswith("<")]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    words = f"cannot be imported: {type(error).__name__}: {error}{where}"
    if extra := _missing_extra(offer, error):
        return f"{words}: pip install '{extra}'"
    return f"{words}: repair {offer.package} or install another version of it; other drivers are not affected"


def _missing_extra(offer: _Offer, error: BaseException | None) -> str:
    """Return what to install where an offer lacks an optional part of its package; else nothing."""
    provider = _PROVIDERS[offer.role].get(offer.name, "")
    return provider if isinstance(error, ModuleNotFoundError) and "[" in provider else ""


# ---------------------------------------------------------------------------------- opening


def open_scheduling(
    name: str,
    settings: Mapping[str, object],
    site: SiteContext,
    *,
    source: str = "",
    layers: Sequence[object] = (),
) -> SchedulingRelay:
    """Find, configure, check and open the scheduling driver *name*.

    *source* says where *settings* stand, for error messages; of *layers* those for this role are
    used. Raises ConfigurationError (DriverNotFound, DriverConflict, DriverUnusable) or what `open` raises.
    """
    driver, title = _configured("scheduling", name, settings, source)
    return SchedulingRelay(driver, site, layers=layers, source=title)


def open_transfer(
    scheme: str,
    settings: Mapping[str, object],
    site: SiteContext,
    *,
    source: str = "",
    layers: Sequence[object] = (),
) -> TransferRelay:
    """Find, configure, check and open the transfer driver for URLs of *scheme*; see `open_scheduling`."""
    driver, title = _configured("transfer", scheme, settings, source)
    return TransferRelay(driver, site, layers=layers, source=title)


def open_messaging(
    scheme: str,
    settings: Mapping[str, object],
    site: SiteContext,
    *,
    source: str = "",
    layers: Sequence[object] = (),
) -> MessagingRelay:
    """Find, configure, check and open the messaging driver for *scheme*; see `open_scheduling`."""
    driver, title = _configured("messaging", scheme, settings, source)
    return MessagingRelay(driver, site, layers=layers, source=title)


def _configured(role: str, name: str, settings: Mapping[str, object], source: str) -> tuple[object, str]:
    """Return the driver made from *settings*, and words that name it and its package."""
    offer = _find(role, name)
    cls = _load(offer)
    try:
        return structure(cls, dict(settings), source=source or offer.source), offer.source
    except EdgeError:
        raise
    except Exception as error:  # for example a type hint that cannot be resolved
        found = f"{type(error).__name__}: {error}"
        problem = Problem("", found, f"settings cannot be read for it: a fault of {offer.package}")
        raise DriverUnusable(offer.source, (problem,)) from error


def open_plugins(
    names: Sequence[str], settings: Mapping[str, Mapping[str, object]], *, source: str
) -> tuple[object, ...]:
    """Find, configure and check the layers and listeners *names*, in this order.

    *settings* may also hold tables of installed plugins that are not named. Raises
    ConfigurationError (DriverNotFound, DriverConflict, DriverUnusable).
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigurationError(source, (Problem(name, f"{count} times", "name each plugin once"),))
    if not names and not settings:
        return ()
    installed = [offer for offer in _offers() if offer.role == _PLUGINS]
    for name in sorted(set(settings).difference(names, (offer.name for offer in installed))):
        raise DriverNotFound(source, (Problem(name, "settings", _not_found(_PLUGINS, name, installed)),))
    return tuple(
        _configured(_PLUGINS, name, settings.get(name, {}), f"{source}, {_title(_PLUGINS, name)}")[0]
        for name in names
    )
