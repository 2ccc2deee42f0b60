"""Let jobs and faults loose on a site, until all is quiet again; what is left is in one directory.

A submitter asks over TLS for jobs, a consumer takes their status, strangers use the same account of the same cluster.
Meanwhile the service is killed again and again at times that nobody chose, the broker and slurmctld are killed and
started again, slurmctld answers too late, and sbatch submits and then hangs. The same seed throws the same dice, though
not the same weather: what the servers do in between is their own.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from attrs import Factory, asdict, define, field, frozen
from rabbitmq_helpers import SITE, again, connected, message, rest, service_settings
from testbed.rabbitmq import RabbitMQ
from testbed.slurm import Slurm

from campaigns import programs
from campaigns.programs import AskedStranger, Programs, read_asked_strangers, read_strangers, read_submissions
from edgecore import batch
from edgecore.errors import BrokerUnavailable
from edgecore.models import Application, Job, JobState, Parameter, Verdict
from edgecore.reader import Reader
from edgecore.relays import MessagingRelay
from edgecore.states import SETTLED
from edgecore.testing.doomed import LOOKED
from edgecore.testing.site import Site, make_site, wait_for

__all__ = ["LONG", "SETTINGS", "SHORT", "Plan", "Storm"]

SETTINGS: Final = {"MinJobAge": 30}
"""For the campaign's slurm.conf: ended jobs are forgotten soon, as on a busy cluster."""
_BROKER_S: Final = 180.0
_WORKS: Final = "site testsite works"
"""What a service logs when it has begun."""
_GROWN_UP: Final = 0.8
"""How many of the services are killed after they have begun; the others whenever it is, also before."""
_QUIET_S: Final = 240.0


@frozen(kw_only=True)
class Plan:
    """How many of what; times in seconds."""

    jobs: int
    kills: int
    """Of the service."""
    broker_kills: int
    controller_kills: int
    freezes: int
    """How often slurmctld answers only after commands have given up."""
    hangs: int
    """How often sbatch hangs after its job was taken."""
    strangers: int
    cancels: int
    seed: int
    longest_job_s: float = 4.0
    life_s: tuple[float, float] = (0.1, 4.0)
    """How long a service lives."""
    command_s: float = 4.0
    """How long the service waits for a command of Slurm."""


SHORT: Final = Plan(
    jobs=40,
    kills=8,
    broker_kills=1,
    controller_kills=1,
    freezes=0,
    hangs=1,
    strangers=8,
    cancels=2,
    seed=2017,
    longest_job_s=3.0,
    life_s=(0.1, 2.0),
    command_s=3.0,
)
LONG: Final = Plan(
    jobs=500,
    kills=100,
    broker_kills=10,
    controller_kills=10,
    freezes=4,
    hangs=8,
    strangers=100,
    cancels=25,
    seed=2017,
)


@define(eq=False)
class Storm:
    """One campaign in *base*; *say* hears how it goes."""

    base: Path
    plan: Plan
    rabbitmq: RabbitMQ
    slurm: Slurm
    say: Callable[[str], object] = lambda words: None
    site: Site = field(init=False)
    programs: Programs = field(init=False)
    _dice: random.Random = Factory(lambda self: random.Random(self.plan.seed), takes_self=True)
    _received: dict[str, int] = field(init=False, factory=dict)
    _over: threading.Event = field(init=False, factory=threading.Event)
    _notes: threading.Lock = field(init=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        sbatch = shutil.which("sbatch", path=self.slurm.environment["PATH"])
        assert sbatch is not None
        self.programs = programs.lay_out(self.base, sbatch)
        self.site = make_site(
            self.base / "site",
            messaging=service_settings(self.rabbitmq),
            scheduling={
                "driver": "slurm",
                "commands_directory": str(self.programs.commands),
                "accounting": False,
                "timeout_s": self.plan.command_s,
            },
            environment=self.slurm.environment,
            timing={
                "poll_interval_s": 0.5,
                "grace_s": 1.5,
                "lost_after_s": 3,
                "walltime_margin_s": 3600,  # what is LOST stays so
            },
        )
        self.site.add(_application(self.base, self.programs))

    def run(self) -> None:
        """Do it all; what happened is told by `campaigns.evidence`."""
        self._empty_queues()
        kinds = ("submitting", "broker", "controller")
        with self._consuming(), self._submitter() as submitter, _Workers(*kinds) as workers:
            for number in range(self.plan.kills):
                self._trouble(number, submitter, workers)
                self._one_life()
                if (number + 1) % 10 == 0:
                    self.say(f"{number + 1} services killed")
            with self.site.service():
                workers.finish()
                self.say("no more faults; waiting for the rest")
                wait_for(self._is_quiet, _QUIET_S, self._unquiet)

    def _one_life(self) -> None:
        begun = self.site.log.count(_WORKS)
        process = self.site.start()
        try:
            if self._dice.random() < _GROWN_UP:
                wait_for(lambda: self.site.log.count(_WORKS) > begun or process.poll() is not None, _BROKER_S)
            time.sleep(self._dice.uniform(*self.plan.life_s))
            assert process.poll() is None, f"the service ended by itself: {self.site.diagnosis()}"
        finally:
            process.kill()
            process.wait()
        self.note("service killed")

    def note(self, what: str, **more: object) -> None:
        """Add a line to ``faults.jsonl``."""
        self._add("faults.jsonl", {"time": time.time(), "what": what, **more})

    def _add(self, name: str, record: object) -> None:
        with self._notes, (self.base / name).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _trouble(self, number: int, submitter: MessagingRelay, workers: _Workers) -> None:
        """Begin what falls to the life of service *number*."""
        plan = self.plan
        jobs = _share(plan.jobs, number, plan.kills)
        names = [f"job-{each}" for each in jobs]
        definitions = [self._definition(name) for name in names]
        cancelled = _share(plan.cancels, number, plan.kills)
        victims = [f"job-{jobs[0] - 1 - each % 3}" for each in cancelled if jobs and jobs[0] > 3]
        workers.do("submitting", lambda: self._ask(submitter, definitions, victims))
        pause = self._dice.uniform(0.0, 2.0)
        for _ in _share(plan.strangers, number, plan.kills):
            workers.do("controller", partial(self._strange, 2 * pause))
        if _share(plan.broker_kills, number, plan.kills, 3):
            workers.do("broker", lambda: self._kill_broker(pause))
        if _share(plan.controller_kills, number, plan.kills, 1):
            workers.do("controller", lambda: self._kill_controller(pause))
        if _share(plan.hangs, number, plan.kills):
            self.programs.hang_once()
        if _share(plan.freezes, number, plan.kills):
            workers.do("controller", self._freeze_controller)

    # ------------------------------------------------------------------------------ the broker

    def _empty_queues(self) -> None:
        with connected(self.rabbitmq.settings()) as operator:
            operator.declare(topology=SITE)
            for queue in ("theta", "theta.rejected", "balsam_job_status"):
                if left := rest(operator, queue):
                    operator.settle(deliveries=left, verdict=Verdict.ACCEPT, reason="")

    @contextmanager
    def _submitter(self) -> Iterator[MessagingRelay]:
        with connected(self.rabbitmq.settings("physicist", may_declare=False)) as relay:
            yield relay

    def _definition(self, name: str) -> dict[str, Any]:
        """Make up a job: two of three end well, and half of the others do at a later attempt."""
        dice = self._dice
        code, until = dice.choice(((0, 0), (0, 0), (0, 0), (0, 0), (3, 99), (4, 1)))
        seconds = dice.uniform(0, self.plan.longest_job_s) * dice.choice((1, 1, 1, 1, 4))
        wishes = {"seconds": round(seconds, 2), "code": code, "until": until}
        more = {"retries": dice.choice((0, 1, 2)), "wall_time_minutes": 1, "application": "recorder"}
        return self.site.job(name=name, job_id=name, **more, **self.site.files(name, **wishes))

    def _ask(
        self, submitter: MessagingRelay, definitions: Sequence[dict[str, Any]], victims: Sequence[str]
    ) -> None:
        """Send until the broker has taken responsibility: what was confirmed counts."""
        bodies = {each["name"]: each for each in definitions}
        for victim in victims:
            bodies[f"cancel {victim}"] = {"command": "cancel", "job_id": victim}
        if not bodies:
            return
        messages = [message(name, body=json.dumps(body).encode()) for name, body in bodies.items()]
        report = again(lambda: submitter.send(messages=messages), _BROKER_S)
        assert len(messages) == report.sent, report
        for body in bodies.values():
            self._add("asked.jsonl", body)

    @contextmanager
    def _consuming(self) -> Iterator[None]:
        """Take status messages meanwhile, as they come."""
        with ThreadPoolExecutor(1) as pool:
            consumer = pool.submit(self._consume)
            try:
                yield
            finally:
                self._over.set()
                consumer.result(_BROKER_S)

    def _consume(self) -> None:
        with connected(self.rabbitmq.settings("argo", may_declare=False)) as relay:
            while not self._over.is_set():
                try:
                    deliveries = relay.receive(queue="balsam_job_status", limit=200, timeout_s=0.5)
                    for each in deliveries:
                        status = json.loads(each.body)
                        self._add("statuses.jsonl", {**status, "sender": each.sender})
                        known = self._received.get(status["name"], 0)
                        self._received[status["name"]] = max(known, status["sequence"])
                    if deliveries:
                        relay.settle(deliveries=deliveries, verdict=Verdict.ACCEPT, reason="")
                except BrokerUnavailable:
                    self._over.wait(0.1)

    def _kill_broker(self, pause_s: float) -> None:
        time.sleep(pause_s)
        self.rabbitmq.kill()
        self.note("broker killed")
        time.sleep(pause_s)
        self.rabbitmq.start()

    # ------------------------------------------------------------------------- the batch system

    def _kill_controller(self, pause_s: float) -> None:
        """Kill slurmctld soon after it took a job of ours, and let strangers be the first afterwards."""
        self._wait_for_submission()
        time.sleep(pause_s)
        self.slurm.kill_controller()
        self.note("slurmctld killed")
        time.sleep(pause_s)
        self.slurm.controller.start()
        for seconds in (0.5, 3.5):
            self._strange(seconds)
        self.slurm.wait_nodes()
        self._resume_nodes()

    def _resume_nodes(self) -> None:
        """Do what an operator does: Slurm drains a node that runs the job which had a number before."""
        for node in self.slurm.run("sinfo", "-h", "-N", "-t", "DRAIN", "-o", "%N", check=False).split():
            self.slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

    def _freeze_controller(self) -> None:
        self._wait_for_submission()
        with self.slurm.frozen_controller():
            self.note("slurmctld frozen")
            time.sleep(self.plan.command_s + 1)

    def _wait_for_submission(self) -> None:
        """Wait for one that slurmctld has not saved yet, though not for ever: the broker may be away."""
        saved = self.slurm.directory / "state" / "job_state"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            last = max((each.time for each in read_submissions(self.base) if each.number), default=0.0)
            if saved.exists() and last > saved.stat().st_mtime:
                return
            time.sleep(0.02)

    def _strange(self, seconds: float) -> None:
        """Submit a job of somebody else, under a name as we give them, too."""
        name = batch.attempt_tag(time.time_ns() // 1000, 1)
        arguments = [str(self.programs.stranger), str(self.base), name, f"{seconds:.2f}"]
        options = ["--parsable", "--no-requeue", "--export=NONE", "--output=/dev/null"]
        options += ["--time=1", f"--job-name={name}"]
        said = self.slurm.run("sbatch", *options, *arguments, check=False)
        if said.isdecimal():
            self._add(
                "asked-strangers.jsonl", asdict(AskedStranger(time=time.time(), name=name, number=said))
            )

    # -------------------------------------------------------------------------------- the end

    def _is_quiet(self) -> bool:
        self._resume_nodes()
        jobs = self.site.jobs()
        if len(jobs) < self.plan.jobs or not all(map(self._rests, jobs)):
            return False
        with Reader(self.site.config.store) as reader:
            if reader.outbox(0, 1):
                return False
        if any(self._received.get(job.name, 0) < job.sequence for job in jobs):
            return False
        if self._left_at_slurm():
            return False
        return not any(job.state is JobState.LOST for job in jobs) or self._looked_again()

    def _left_at_slurm(self) -> Sequence[str]:
        """Return what waits at Slurm, and which strangers run there, or what squeue says instead of a listing.

        What ended just before slurmctld was killed is listed as running for long.
        """
        ended = {each.name for each in read_strangers(self.base) if each.ended is not None}
        strange = {each.name for each in read_asked_strangers(self.base)}
        lines = self.slurm.run("squeue", "-h", "-o", "%T %j", check=False).splitlines()
        listed = [(line, *line.partition(" ")[::2]) for line in lines]
        return [
            line
            for line, state, name in listed
            if state != "RUNNING" or (name in strange and name not in ended)
        ]

    def _rests(self, job: Job) -> bool:
        """Tell whether nothing more becomes of it: a lost one may still tell of its end while it lives."""
        lost = job.state is JobState.LOST
        return job.state in SETTLED or (lost and not self.programs.is_running(job.id))

    def _looked_again(self) -> bool:
        """Wait for two more looks, the second of which began after all was quiet; tell whether nothing changed."""
        before, changed = self.site.log.count(LOOKED), [job.changed for job in self.site.jobs()]
        wait_for(lambda: self.site.log.count(LOOKED) >= before + 2, 60, self.site.diagnosis)
        return changed == [job.changed for job in self.site.jobs()]

    def _unquiet(self) -> str:
        left = [job for job in self.site.jobs() if not self._rests(job)]
        untold = [job.name for job in self.site.jobs() if self._received.get(job.name, 0) < job.sequence]
        words = [f"{job.name} {job.state} {job.message} {job.attempt}" for job in left]
        return f"{len(self.site.jobs())} jobs; not settled {words}; untold {untold}; at Slurm {self._left_at_slurm()}"


class _Workers:
    """One thread per kind of work; the first error is raised at the end."""

    def __init__(self, *kinds: str) -> None:
        self._pools = {kind: ThreadPoolExecutor(1, kind) for kind in kinds}
        self._futures: list[Future[None]] = []

    def do(self, kind: str, work: Callable[[], None]) -> None:
        """Do *work* after what this kind has still to do."""
        self._futures.append(self._pools[kind].submit(work))

    def finish(self) -> None:
        """Wait for all of it."""
        for each in self._futures:
            each.result()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)


def _share(count: int, number: int, of: int, quarter: int = 2) -> range:
    """Return which of *count* things fall to *number* of so many turns.

    They are spread evenly; the first comes so many *quarter*s of their distance after the beginning.
    """
    ahead = (4 - quarter) * of
    return range((4 * count * number + ahead) // (4 * of), (4 * count * (number + 1) + ahead) // (4 * of))


def _application(base: Path, programs: Programs) -> Application:
    return Application(
        name="recorder",
        executable=str(programs.application),
        arguments=(str(base), "{seconds}", "{code}", "{until}"),
        parameters={
            "seconds": Parameter(type="number", default=0, minimum=0),
            "code": Parameter(type="integer", default=0, minimum=0, maximum=255),
            "until": Parameter(type="integer", default=0, minimum=0),
        },
    )
