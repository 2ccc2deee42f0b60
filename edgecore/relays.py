"""Bind a driver and its layers into one typed object, and tell listeners what happens.

pluggy decides whether a plugin may answer and how calls compose. Its hooks are checked against
`hookspecs` before anything is asked of it; then each role has a relay whose methods take their
arguments by name only, as pluggy does. The configuration's order of layers is the order of calls,
the first one outermost.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import pluggy
from attrs import frozen

from edgecore.errors import DriverUnusable, EdgeError, Problem, TransferRefused, Veto
from edgecore.hookspecs import OPTIONAL, PROJECT, ROLES, Lifecycle, Messaging, Scheduling, Transfer
from edgecore.models import (
    Answer,
    Closed,
    Declared,
    Delivery,
    Finding,
    Group,
    Job,
    MessagingProfile,
    Observation,
    OutgoingMessage,
    ProbeReport,
    Reference,
    SchedulingProfile,
    SendReport,
    Settled,
    SiteContext,
    SubmissionAnswer,
    Topology,
    TransferProfile,
    TransferProgress,
    TransferReport,
    Verdict,
)
from edgecore.selection import EVERYTHING, Selection
from edgecore.serial import nearest

__all__ = [
    "Listeners",
    "MessagingRelay",
    "SchedulingRelay",
    "TransferRelay",
    "driver_problems",
    "layers_for",
    "plugin_problems",
]

T = TypeVar("T")
_log = logging.getLogger(__name__)

# ----------------------------------------------------------------------------- check the hooks


def _hooks_of(specification: type) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(inspect.signature(hook).parameters)[1:]
        for name, hook in vars(specification).items()
        if hasattr(hook, f"{PROJECT}_spec")
    }


_HOOKS: Final = {role: _hooks_of(specification) for role, specification in ROLES.items()}
"""Role -> hook -> names of its arguments."""
_EVENTS: Final = _hooks_of(Lifecycle)
_ALL_HOOKS: Final = {name: names for hooks in (_EVENTS, *_HOOKS.values()) for name, names in hooks.items()}
_SHARED: Final = {
    name for name, count in Counter(n for hooks in _HOOKS.values() for n in hooks).items() if count > 1
}
"""Hooks that every role has, and that do not tell which role a layer is for."""


@frozen
class _Marked:
    """A method that is marked ``@hookimpl``."""

    hook: str
    method: Any
    wrapper: bool

    def problem(self, arguments: Sequence[str]) -> str:
        """Say what keeps it from being called with exactly these *arguments* by name, if anything."""
        if not inspect.isfunction(self.method):
            return "must be a plain method"
        if inspect.iscoroutinefunction(self.method) or inspect.isasyncgenfunction(self.method):
            return "must not be async"
        if inspect.isgeneratorfunction(self.method) != self.wrapper:
            return "must yield once" if self.wrapper else "must return an answer, not yield"
        signature = inspect.signature(self.method)
        wrong = [
            one.name
            for one in list(signature.parameters.values())[1:]
            if one.name not in arguments
            or one.default is not one.empty
            or one.kind is not one.POSITIONAL_OR_KEYWORD
        ]
        if not wrong:
            return ""
        names = ", ".join(signature.parameters)
        return (
            f"takes ({names}), where {', '.join(wrong)} does not fit the hook {self.hook}"
            f"({', '.join(('self', *arguments))}): use these names, without defaults and without *"
        )


def _marked(cls: type) -> list[_Marked]:
    found: list[_Marked] = []
    for name in dir(cls):
        method = inspect.getattr_static(cls, name, None)
        inner = getattr(method, "__func__", None)  # of a static method or class method
        options = getattr(method, f"{PROJECT}_impl", None) or getattr(inner, f"{PROJECT}_impl", None)
        if isinstance(options, dict):
            wrapper = bool(options.get("wrapper") or options.get("hookwrapper"))
            found.append(_Marked(options.get("specname") or name, method, wrapper))
    return found


def driver_problems(role: str, cls: type) -> Iterator[Problem]:
    """Say everything that keeps *cls* from answering every hook of *role* that it must answer."""
    specification, hooks = ROLES[role], _HOOKS[role]
    if not issubclass(cls, specification):
        yield Problem("", cls.__name__, f"must subclass edgecore.hookspecs.{specification.__name__}")
        return
    marked = _marked(cls)
    yield from _hook_problems(marked, hooks, role)
    answered = {one.hook for one in marked if not one.wrapper}
    for hook in hooks:
        if hook not in answered:
            overridden = getattr(cls, hook) is not getattr(specification, hook)
            if hook in OPTIONAL and not overridden:
                continue
            why = "its method is not marked @hookimpl" if overridden else "there is no method for it"
            yield Problem(hook, "", f"the hook is not answered: {why}")


def plugin_problems(cls: type) -> Iterator[Problem]:
    """Say everything that keeps *cls* from serving as a layer or a listener."""
    marked = _marked(cls)
    hooks = {**_EVENTS, **{name: names for role in _roles_of(cls) for name, names in _HOOKS[role].items()}}
    if not marked:
        yield Problem("", cls.__name__, "marks no method as @hookimpl, so that it would do nothing")
    elif _SHARED.issuperset(one.hook for one in marked) and not _roles_of(cls):
        shared = " and ".join(sorted(_SHARED))
        yield Problem("", cls.__name__, f"marks only {shared}: subclass the role that is meant")
    else:
        yield from _hook_problems(marked, hooks, "layers and listeners")


def _hook_problems(
    marked: Sequence[_Marked], hooks: Mapping[str, Sequence[str]], whose: str
) -> Iterator[Problem]:
    for one in marked:
        if one.hook not in hooks:
            yield Problem(one.hook, "", f"is no hook of {whose}{nearest(one.hook, hooks)}")
        elif problem := one.problem(hooks[one.hook]):
            yield Problem(one.hook, "", problem)


# ------------------------------------------------------------------------------------ relays


def _roles_of(cls: type) -> tuple[str, ...]:
    named = tuple(role for role, specification in ROLES.items() if issubclass(cls, specification))
    marked = {one.hook for one in _marked(cls)} - _SHARED
    return named or tuple(role for role, hooks in _HOOKS.items() if marked.intersection(hooks))


def layers_for(role: str, plugins: Sequence[object]) -> tuple[object, ...]:
    """Return those *plugins* that subclass *role* or mark one of its hooks, in the same order."""
    return tuple(plugin for plugin in plugins if role in _roles_of(type(plugin)))


def _class_name(plugin: object) -> str:
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def _refuse(source: str, problems: Iterator[Problem]) -> None:
    if found := tuple(problems):
        raise DriverUnusable(source, found)


class _Manager(pluggy.PluginManager):
    """Bind the hooks of one specification, in the order of the configuration and no other.

    A plugin may also have hooks for other roles; they are bound elsewhere. No package puts itself
    before another: a driver that did could pass by a site's own policy.
    """

    def __init__(self, specification: type, hooks: Mapping[str, object]) -> None:
        super().__init__(PROJECT)
        self._hooks = hooks
        self.add_hookspecs(specification)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        options = super().parse_hookimpl_opts(plugin, name)
        if options is None:
            return None
        hook = options.get("specname") or name
        if hook in _ALL_HOOKS and hook not in self._hooks:
            return None
        options = options.copy()
        options["tryfirst"] = options["trylast"] = False
        return options


class _Relay:
    """Ask a driver through its layers; the first layer is the outermost.

    An exception that is no EdgeError passes with a note that names the driver.
    """

    def __init__(self, role: str, driver: object, layers: Sequence[object], source: str) -> None:
        self.source = source or f"{role} driver {_class_name(driver)}"
        """Names the driver and its package, for messages."""
        layers = layers_for(role, layers)
        _refuse(self.source, driver_problems(role, type(driver)))
        for layer in layers:
            _refuse(f"layer {_class_name(layer)}", plugin_problems(type(layer)))
        manager = _Manager(ROLES[role], _HOOKS[role])
        # pluggy calls the latest first, and every wrapper before any other hook.
        for plugin in (driver, *reversed(layers)):
            manager.register(plugin, f"{_class_name(plugin)} {id(plugin)}")
        manager.check_pending()
        self._hooks = manager.hook
        self._who = self.source
        if layers:
            self._who += f" under {', '.join(map(_class_name, layers))}"

    def _ask(self, specification: Callable[..., T], **arguments: object) -> T:
        hook = specification.__name__
        try:
            answer: T | None = getattr(self._hooks, hook)(**arguments)
        except EdgeError:
            raise
        except Exception as error:
            note = f"in the hook {hook} of the {self._who}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise
        if answer is None:
            raise DriverUnusable(
                self._who, (Problem(hook, "None", "every hook answers, and a wrapper returns it"),)
            )
        return answer

    def diagnose(self) -> Sequence[Finding]:
        """Look for trouble; finds none where the driver has no such hook."""
        return self._ask(Scheduling.diagnose) if self._answers("diagnose") else ()

    def _answers(self, hook: str) -> bool:
        """Tell whether anybody answers an optional hook, besides those who wrap it."""
        return any(not one.wrapper for one in getattr(self._hooks, hook).get_hookimpls())

    def _opened(self, specification: Callable[..., T], profile: type[T], site: SiteContext) -> T:
        try:
            answer = self._ask(specification, site=site)
        except EdgeError:
            raise
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise DriverUnusable(
                self._who, (Problem("open", found, "this is a fault of the driver"),)
            ) from error
        if not isinstance(answer, profile):
            found = type(answer).__name__
            raise DriverUnusable(self._who, (Problem("open", found, f"must answer {profile.__name__}"),))
        return answer


class SchedulingRelay(_Relay):
    """Ask a scheduling driver; it is opened by making the relay."""

    def __init__(
        self, driver: object, site: SiteContext, *, layers: Sequence[object] = (), source: str = ""
    ) -> None:
        super().__init__("scheduling", driver, layers, source)
        self.profile = self._opened(Scheduling.open, SchedulingProfile, site)

    def submit(self, *, group: Group) -> Mapping[str, SubmissionAnswer]:
        """Queue every member of *group*; answer by tag."""
        return self._ask(Scheduling.submit, group=group)

    def observe(self, *, references: Sequence[Reference]) -> Mapping[str, Observation]:
        """Look once at all *references*; a tag that is not in the answer was not listed."""
        return self._ask(Scheduling.observe, references=references)

    def find(self, *, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        """Tell what the batch system knows under these *tags*."""
        return self._ask(Scheduling.find, tags=tags)

    def cancel(self, *, references: Sequence[Reference]) -> Answer:
        """Ask to end these attempts."""
        return self._ask(Scheduling.cancel, references=references)

    def hold(self, *, references: Sequence[Reference]) -> Answer:
        """Keep queued attempts from starting."""
        return self._ask(Scheduling.hold, references=references)

    def release(self, *, references: Sequence[Reference]) -> Answer:
        """Let held attempts start again."""
        return self._ask(Scheduling.release, references=references)

    def close(self) -> Closed:
        """Give back connections; submitted attempts live on."""
        return self._ask(Scheduling.close)


class TransferRelay(_Relay):
    """Ask a transfer driver; it is opened by making the relay."""

    def __init__(
        self, driver: object, site: SiteContext, *, layers: Sequence[object] = (), source: str = ""
    ) -> None:
        super().__init__("transfer", driver, layers, source)
        self._selects = any(
            one.plugin is driver and "selection" in one.argnames
            for one in self._hooks.deliver.get_hookimpls()
        )
        self.profile = self._opened(Transfer.open, TransferProfile, site)

    def fetch(self, *, url: str, directory: Path, progress: TransferProgress) -> TransferReport:
        """Bring what is at *url* into *directory*."""
        return self._ask(Transfer.fetch, url=url, directory=directory, progress=progress)

    def deliver(
        self, *, directory: Path, url: str, progress: TransferProgress, selection: Selection = EVERYTHING
    ) -> TransferReport:
        """Bring what is selected of *directory* to *url*. Raises TransferRefused where the driver cannot select."""
        if selection.patterns and not self._selects:
            raise TransferRefused(
                f"the {self.source} delivers only whole directories, and {', '.join(selection.patterns)} is to be "
                "delivered: use a version of it that takes a selection, or remove stage_out from the application"
            )
        return self._ask(
            Transfer.deliver, directory=directory, url=url, progress=progress, selection=selection
        )

    @property
    def copies(self) -> bool:
        """Tell whether the driver brings files from server to server."""
        return self._answers("copy")

    def copy(self, *, source: str, target: str, progress: TransferProgress) -> TransferReport:
        """Bring what is at one URL to another, from server to server. Raises TransferRefused where the driver cannot."""
        if not self.copies:
            raise TransferRefused(
                f"the {self.source} cannot bring {source} to {target} from server to server: fetch it, and deliver it"
            )
        return self._ask(Transfer.copy, source=source, target=target, progress=progress)

    def probe(self, *, url: str) -> ProbeReport:
        """Tell whether *url* can be reached and read."""
        return self._ask(Transfer.probe, url=url)

    def close(self) -> Closed:
        """Give back connections."""
        return self._ask(Transfer.close)


class MessagingRelay(_Relay):
    """Ask a messaging driver; it is opened by making the relay."""

    def __init__(
        self, driver: object, site: SiteContext, *, layers: Sequence[object] = (), source: str = ""
    ) -> None:
        super().__init__("messaging", driver, layers, source)
        self.profile = self._opened(Messaging.open, MessagingProfile, site)

    def declare(self, *, topology: Topology) -> Declared:
        """Make sure that exchanges, queues and bindings exist."""
        return self._ask(Messaging.declare, topology=topology)

    def send(self, *, messages: Sequence[OutgoingMessage]) -> SendReport:
        """Return when the broker has taken responsibility for all *messages*."""
        return self._ask(Messaging.send, messages=messages)

    def receive(self, *, queue: str, limit: int, timeout_s: float) -> Sequence[Delivery]:
        """Return up to *limit* deliveries; nothing after *timeout_s* seconds."""
        return self._ask(Messaging.receive, queue=queue, limit=limit, timeout_s=timeout_s)

    def settle(self, *, deliveries: Sequence[Delivery], verdict: Verdict, reason: str) -> Settled:
        """Accept, put back, or refuse."""
        return self._ask(Messaging.settle, deliveries=deliveries, verdict=verdict, reason=reason)

    def close(self) -> Closed:
        """Give back the connection."""
        return self._ask(Messaging.close)


# -------------------------------------------------------------------------------- listeners


class Listeners:
    """Tell listeners what happens, one at a time; one that fails is logged and stops nobody."""

    def __init__(self, plugins: Sequence[object] = ()) -> None:
        self._hear: dict[str, list[tuple[str, Callable[..., object]]]] = {hook: [] for hook in _EVENTS}
        for plugin in plugins:
            _refuse(f"plugin {_class_name(plugin)}", plugin_problems(type(plugin)))
            manager = _Manager(Lifecycle, _EVENTS)
            manager.register(plugin)
            for caller in manager.get_hookcallers(plugin) or ():
                if caller.name in _EVENTS:
                    self._hear[caller.name].append((_class_name(plugin), caller))

    def __bool__(self) -> bool:
        """Tell whether anybody listens."""
        return any(self._hear.values())

    @property
    def may_forbid(self) -> bool:
        """Whether anybody is to be asked about changes."""
        return bool(self._hear["job_changing"])

    def job_changing(self, *, before: Job, after: Job) -> None:
        """Ask every listener about a change that is not made yet. Raises Veto, naming who forbids it."""
        vetoes: list[tuple[str, Veto]] = []
        for name, hear in self._hear["job_changing"]:
            try:
                hear(before=before, after=after)
            except Veto as veto:
                vetoes.append((name, veto))
            except (Exception, SystemExit):
                _log_failure(name, "job_changing")
        if vetoes:
            raise Veto("; ".join(f"{name}: {veto}" for name, veto in vetoes)) from vetoes[0][1]

    def job_changed(self, *, job: Job) -> None:
        """Tell of a change that is durable."""
        self._tell("job_changed", job=job)

    def alarm_raised(self, *, subject: str, message: str) -> None:
        """Tell that something needs a person."""
        self._tell("alarm_raised", subject=subject, message=message)

    def alarm_cleared(self, *, subject: str, message: str) -> None:
        """Tell that the reason for an alarm is gone."""
        self._tell("alarm_cleared", subject=subject, message=message)

    def credential_expiring(self, *, name: str, expires: int, message: str) -> None:
        """Tell that a credential expires soon."""
        self._tell("credential_expiring", name=name, expires=expires, message=message)

    def service_started(self, *, site: str) -> None:
        """Tell that a service works."""
        self._tell("service_started", site=site)

    def service_stopped(self, *, site: str) -> None:
        """Tell that a service has stopped in good order."""
        self._tell("service_stopped", site=site)

    def _tell(self, event: str, **arguments: object) -> None:
        for name, hear in self._hear[event]:
            try:
                hear(**arguments)
            except (Exception, SystemExit):
                _log_failure(name, event)


def _log_failure(name: str, event: str) -> None:
    _log.exception("listener %s failed in %s; the service goes on", name, event)
