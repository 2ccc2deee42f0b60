"""Put a site's parts together and run them until told to stop."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Final

from attrs import define, evolve, field, frozen

from edgecore import serial
from edgecore.admission import Admission
from edgecore.backoff import Backoff
from edgecore.balsam import Actions
from edgecore.broker import Broker
from edgecore.cleaning import Cleaning
from edgecore.clock import Clock
from edgecore.config import SiteConfig, read_site
from edgecore.control import Control, RequestWatch
from edgecore.credentials import CredentialWatch, open_credentials, watch_credentials
from edgecore.drivers import Listeners, SchedulingRelay, open_plugins
from edgecore.engine import Engine
from edgecore.errors import BrokerUnavailable, SchedulerUnavailable, ServiceBroken
from edgecore.grounds import take_grounds
from edgecore.intake import Intake
from edgecore.metrics import Metrics, open_metrics
from edgecore.models import Application, Job, JobDefinition, JobState, Plan, SiteContext, StatusMessage
from edgecore.outbox import Outbox
from edgecore.partners import open_batch_system, open_broker, open_place
from edgecore.processes import end_all
from edgecore.reader import Reader
from edgecore.store import Route, Store
from edgecore.telling import AlarmBook, AlarmCommand, open_alarm_command
from edgecore.workplace import program_mark, programs_of

__all__ = ["Balsam", "collecting_seldom", "run_site"]

log = logging.getLogger(__name__)


class _Catalogue:
    """Look things up in the store, from any thread; an unchanged entry of an application is parsed once."""

    def __init__(self, store: Path) -> None:
        self._reader = Reader(store)
        self._lock = threading.Lock()

    def application(self, name: str) -> Application | None:
        with self._lock:
            return self._reader.application(name)

    def names(self) -> Collection[str]:
        with self._lock:
            return self._reader.application_names()

    def said(self, job: Job, state: JobState) -> str:
        with self._lock:
            told = [entry.message for entry in self._reader.history(job.id) if entry.state is state]
        return told[-1] if told else job.message

    def close(self) -> None:
        self._reader.close()


@frozen(eq=False)
class _Parts:
    """What a service is put together from, opened."""

    store: Store
    actions: Actions
    listeners: Listeners
    broker: Broker
    catalogue: _Catalogue
    tellers: Sequence[Metrics | AlarmCommand]
    """Listeners with a thread of their own."""


@define(eq=False)
class Balsam:
    """The edge service of one site: takes job definitions, runs them, reports every step.

    *plugins* are layers and listeners beside those that the configuration names.
    """

    config: SiteConfig
    plugins: Sequence[object] = ()
    clock: Clock = field(factory=Clock)
    _engine: Engine | None = field(init=False, default=None)
    _stop_asked: threading.Event = field(init=False, factory=threading.Event)

    def stop(self) -> None:
        """Finish what was begun, begin nothing more, and let `run` return; from any thread."""
        self._stop_asked.set()
        engine = self._engine
        if engine is not None:
            engine.stop()

    def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Work until `stop`; calls *started* once everything is open.

        Raises ConfigurationError or StoreError when it cannot start; what is only away is waited for. After that
        only `stop` ends it.
        """
        config = self.config
        serial.learn(JobDefinition, Plan, StatusMessage)
        with ExitStack() as stack:
            grounds = take_grounds(config)
            stack.callback(grounds.close)
            messaging = config.messaging
            metrics = open_metrics(config, self.clock)
            credentials = open_credentials(config, self.clock, metrics.watch_credential if metrics else None)
            store = Store(
                config.store,
                site=config.site,
                route=Route(messaging.exchange, messaging.status_key),
                mode=config.store_mode,
                clock=self.clock,
                committed=metrics.committed if metrics else lambda operations: None,
            )
            stack.callback(store.close)
            self._end_left_over()
            book = AlarmBook(store)
            told = (metrics, open_alarm_command(config, self.clock, book.not_told))
            tellers = [teller for teller in told if teller is not None]
            plugins = (
                *open_plugins(config.plugins.enabled, config.plugins.settings, source=str(config.source)),
                *self.plugins,
                book,
                *tellers,  # innermost: what a layer waits is not what a driver takes
            )
            listeners = Listeners(plugins)
            scheduling = self._open_scheduling(plugins, store)
            if scheduling is None:
                return
            stack.callback(scheduling.close)
            marked = self._marked_context()
            transfers = {
                table.prefix: open_place(config, table, plugins, marked) for table in config.transfer
            }
            for relay in transfers.values():
                stack.callback(relay.close)
            broker = self._open_messaging(plugins)
            stack.callback(broker.close)
            catalogue = _Catalogue(config.store)
            stack.callback(catalogue.close)
            actions = Actions(
                config=config,
                store=store,
                scheduling=scheduling,
                transfers=transfers,
                catalogue=catalogue.application,
                clock=self.clock,
                check_place=grounds.check,
                credentials=credentials,
                said=catalogue.said,
            )
            self._work(stack, _Parts(store, actions, listeners, broker, catalogue, tellers), started)

    def _marked_context(self) -> SiteContext:
        """Return what transfer drivers are told: what they start is known by its environment, and ended if we are killed."""
        context = self.config.context
        return evolve(context, environment={**context.environment, **program_mark(self.config.store)})

    def _end_left_over(self) -> None:
        """End programs that a service which was killed has left running: they will be run again, never twice at once."""
        ended = end_all(programs_of(self.config.store))
        if ended:
            log.warning(
                "%d processes of a former service's programs were still there and have been ended", ended
            )

    def _work(self, stack: ExitStack, parts: _Parts, started: Callable[[], None]) -> None:
        config = self.config
        engine = self._make_engine(parts)
        with Reader(config.store) as reader:
            engine.add(map(_looked_at_anew, reader.active()))
        # Ended in the opposite order: first nothing new comes in, last the final status goes out.
        for part in (*parts.tellers, *self._threads(parts, engine)):
            thread = part.start()
            stack.callback(thread.join, config.timing.drain_s)
            stack.callback(part.stop)
        self._engine = engine
        if self._stop_asked.is_set():
            engine.stop()
        log.info("site %s works", config.site)
        parts.listeners.service_started(site=config.site)
        started()
        stack.callback(parts.listeners.service_stopped, site=config.site)
        engine.run(config.timing.drain_s)

    def _make_engine(self, parts: _Parts) -> Engine:
        retry, actions = self.config.retry, parts.actions
        actions.engine = Engine(
            store=parts.store,
            graph=actions.graph(),
            lanes=actions.lanes(),
            listeners=parts.listeners,
            clock=self.clock,
            backoff=Backoff(first_s=retry.first_s, longest_s=retry.longest_s, tries=retry.tries),
            alarm_after_s=self.config.timing.alarm_after_s,
            beat=parts.store.beat,
        )
        return actions.engine

    def _threads(
        self, parts: _Parts, engine: Engine
    ) -> tuple[Outbox | Cleaning | CredentialWatch | RequestWatch | Intake, ...]:
        """Return what works beside the engine, in the order in which it is started.

        Each opens the store when it is started: then `run` tells of trouble with that, of which a thread could only die.
        """
        config, store, actions = self.config, parts.store, parts.actions
        outbox = Outbox(
            store=store,
            store_path=config.store,
            messaging=parts.broker,
            engine=engine,
            alarm_after_s=config.timing.alarm_after_s,
        )
        engine.on_commit = outbox.ring
        control = Control(
            engine=engine,
            store=store,
            retry=actions.retry,
            fence=actions.fence,
            can_hold=actions.scheduling.profile.can_hold,
        )
        intake = Intake(
            queue=config.queue,
            messaging=parts.broker,
            admission=Admission(config=config, applications=parts.catalogue.names),
            store=store,
            store_path=config.store,
            engine=engine,
            control=control,
            owner=config.owner,
            alarm_after_s=config.timing.alarm_after_s,
        )
        cleaning = Cleaning(config=config, store=store, clock=self.clock, change=engine.change)
        watches = watch_credentials(actions.credentials, config, engine, parts.listeners)
        return outbox, cleaning, *watches, RequestWatch(config.store, store, control), intake

    def _open_scheduling(self, plugins: Sequence[object], store: Store) -> SchedulingRelay | None:
        """Open the batch system, waiting for one that is away; None when told to stop meanwhile."""
        backoff, failures = Backoff(first_s=1.0, longest_s=60.0), 0
        while True:
            try:
                return open_batch_system(self.config, plugins)
            except SchedulerUnavailable as error:
                failures += 1
                store.beat()
                log.warning("the batch system is away; nothing is taken before it answers: %s", error)
                if self._stop_asked.wait(backoff.after(failures)):
                    return None

    def _open_messaging(self, plugins: Sequence[object]) -> Broker:
        """Open the broker; one that is away must not keep a site from starting, and is opened later."""
        broker = Broker(lambda: open_broker(self.config, plugins))
        try:
            broker.open()
        except BrokerUnavailable as error:
            log.warning("the broker is away; everything else goes on: %s", error)
        return broker


def _looked_at_anew(job: Job) -> Job:
    """Forget since when a job was missed: while nobody looked, nobody missed it."""
    return job if job.attempt is None else evolve(job, attempt=evolve(job.attempt, missed=None))


_NEW_OBJECTS: Final = 20_000
"""So many more containers than were given back, in some 10 MB at most, before Python looks which are garbage."""
_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _mend_umask() -> None:
    """See to it that we can use what we make, and that not everybody can write it."""
    found = os.umask(0o077)
    mended = found & ~0o700 | 0o002
    os.umask(mended)
    if mended != found:
        log.warning("the umask was %04o, and is %04o for this service and its jobs", found, mended)


def run_site(
    site: SiteConfig | Path | str,
    *,
    plugins: Sequence[object] = (),
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run a site's Balsam in this process until SIGTERM, SIGINT or SIGHUP, then drain and return.

    A second signal ends the process at once; nothing is lost by that, only done again. Call it on the main thread.
    Raises ConfigurationError or StoreError when it cannot start, and ServiceBroken when a thread of it died.
    """
    config = site if isinstance(site, SiteConfig) else read_site(Path(site))
    balsam = Balsam(config, plugins)
    asked = False

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked = True
        log.warning("%s: finishing what was begun; once more to stop at once", signal.Signals(number).name)
        balsam.stop()

    # Who started us under nohup does not want us to end with the terminal.
    heard = [each for each in _STOPS if signal.getsignal(each) is not signal.SIG_IGN]
    former = [(number, signal.signal(number, on_signal)) for number in heard]
    _mend_umask()
    try:
        with (
            _heard_in_any_thread(heard, balsam.stop),
            _broken_by_any_thread(balsam.stop),
            collecting_seldom(),
        ):
            balsam.run(started)
    finally:
        for number, handler in former:
            signal.signal(number, handler)


@contextlib.contextmanager
def collecting_seldom() -> Iterator[None]:
    """Have Python look for garbage less often, and not among what was made before: nearly nothing that we make is any.

    Each of these looks goes through objects that live as long as the service.
    """
    former = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *former[1:])
    try:
        yield
    finally:
        gc.set_threshold(*former)
        gc.unfreeze()


@contextlib.contextmanager
def _broken_by_any_thread(stop: Callable[[], None]) -> Iterator[None]:
    """Call *stop* when a thread dies of an error, and raise ServiceBroken then: half a service helps nobody."""
    dead: list[threading.ExceptHookArgs] = []

    def died(given: threading.ExceptHookArgs) -> None:
        name = given.thread.name if given.thread is not None else "a thread"
        words = "%s died, which is a fault of edgecore or a plugin: the service ends"
        log.critical(words, name, exc_info=given.exc_value)
        dead.append(given)
        stop()

    former, threading.excepthook = threading.excepthook, died
    try:
        yield
    finally:
        threading.excepthook = former
    if dead:
        words = (
            f"a thread of the service died of {dead[0].exc_value!r}; it can be started again: nothing is lost"
        )
        raise ServiceBroken(words) from dead[0].exc_value


@contextlib.contextmanager
def _heard_in_any_thread(numbers: Collection[int], stop: Callable[[], None]) -> Iterator[None]:
    """Call *stop* for a signal that the kernel gave to another thread while the main one sleeps.

    It does so with what came while the process was stopped (Ctrl-Z); Python's handlers run in the main thread, and
    nothing else would wake that.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while number := os.read(reading, 1):
            if number[0] in numbers:
                stop()

    thread = threading.Thread(target=listen, name="edgecore-signals", daemon=True)
    thread.start()
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(writing)
        thread.join()
        os.close(reading)
