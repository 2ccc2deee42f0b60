"""Run real event generation through a whole Balsam site, on this machine and without any server.

What happens is what happens at a supercomputer centre, on the embedded defaults: job definitions
are JSON messages in a queue, Balsam stages the run card in, submits to a batch system, watches,
stages the results out and reports every step. At the end the histograms of all jobs are added up and
the mass of the Z boson is read off.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import analyse
from attrs import frozen
from rich.live import Live
from rich.table import Table

from edgecore import Job, JobState, Reader

HERE: Final = Path(__file__).resolve().parent
Z_MASS_GEV: Final = 91.19
TOLERANCE_GEV: Final = 0.10
PROCESSES: Final = 2
ENDED: Final = (JobState.JOB_FINISHED, JobState.JOB_FAILED, JobState.JOB_CANCELLED, JobState.JOB_REJECTED)

SITE: Final = """# The site of the demonstration: everything on this machine, no server.
site = "demo"
work_directory = "jobs"
store = "demo.sqlite"

[messaging]
url = "sqlite://{place}/queues.sqlite"

[scheduling]
driver = "fork"
slots = {slots}

[[transfer]]
prefix = "file://{place}/"

[launchers.spread]
arguments = ["{python}", "{here}/spread.py", "{{processes}}"]
"""


class DemoFailed(Exception):
    """The demonstration did not come to its end; the message says why."""


@frozen
class Demo:
    """A throw-away site and the jobs that it runs."""

    place: Path
    jobs: int
    events: int

    @property
    def site(self) -> Path:
        """The site's configuration file."""
        return self.place / "site.toml"

    @property
    def store(self) -> Path:
        """The site's job store."""
        return self.place / "demo.sqlite"

    # ------------------------------------------------------------------- lay everything out

    def lay_out(self) -> None:
        """Make the site: its configuration, the application's entry, the input of every job."""
        if self.place.exists() and not self.site.exists():
            raise DemoFailed(
                f"{self.place} exists and is not from an earlier demonstration; name another directory"
            )
        shutil.rmtree(self.place, ignore_errors=True)
        inputs = self.place / "input"
        inputs.mkdir(parents=True)
        slots = max(PROCESSES, os.cpu_count() or 1)
        text = SITE.format(place=self.place, slots=slots, python=sys.executable, here=HERE)
        self.site.write_text(text, encoding="utf-8")
        entry = (HERE / "zmumu-generate.toml").read_text(encoding="utf-8")
        entry = entry.replace("/opt/edgecore/.venv/bin/python", sys.executable)
        entry = entry.replace("/opt/edgecore/examples/atlas", str(HERE))
        (self.place / "zmumu-generate.toml").write_text(entry, encoding="utf-8")
        shutil.copy(HERE / "input" / "zmumu.cmnd", inputs)
        for number in range(1, self.jobs + 1):
            settings = f"events = {self.events}\nseed = {number}01\n"
            (inputs / f"job-{number}.cfg").write_text(settings, encoding="utf-8")
            definition = json.dumps(self.definition(number), indent=1)
            (self.place / f"job-{number}.json").write_text(definition, encoding="utf-8")

    def definition(self, number: int) -> dict[str, object]:
        """Return what a physicist, or an experiment's production system, would send."""
        return {
            "name": f"zmumu-{number}",
            "description": f"{PROCESSES * self.events} events of pp -> Z/gamma* -> mu mu",
            "site": "demo",
            "application": "zmumu-generate",
            "processes_per_node": PROCESSES,
            "wall_time_minutes": 30,
            "config_file": f"job-{number}.cfg",
            "input_url": f"file://{self.place}/input",
            "output_url": f"file://{self.place}/output/{number}",
        }

    # --------------------------------------------------------------------------- run the jobs

    def run(self) -> None:
        """Start the service, send the jobs, show how they go, and stop the service again."""
        self.command("apps", "add", "--site", str(self.site), str(self.place / "zmumu-generate.toml"))
        with (self.place / "service.log").open("wb") as log:
            service = subprocess.Popen(
                [sys.executable, "-m", "edgecore", "run", str(self.site)], stdout=log, stderr=log
            )
        try:
            for number in range(1, self.jobs + 1):
                self.command("submit", "--site", str(self.site), str(self.place / f"job-{number}.json"))
            self.follow(service)
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)

    def command(self, *arguments: str) -> None:
        """Run the command line, as a person would."""
        result = subprocess.run(
            [sys.executable, "-m", "edgecore", *arguments], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise DemoFailed(f"edgecore {' '.join(arguments)}: {result.stderr.strip()}")

    def follow(self, service: subprocess.Popen[bytes]) -> None:
        """Show every job's state and last words until all have ended."""
        board = Board(self.jobs)
        while True:
            jobs = self.now()
            board.show([(job.name, str(job.state), self.last_words(job)) for job in jobs])
            if len(jobs) == self.jobs and all(job.state in ENDED for job in jobs):
                break
            if service.poll() is not None:
                raise DemoFailed(f"the service has ended; see {self.place / 'service.log'}")
            time.sleep(0.25)
        board.close()
        failed = [
            f"{job.name}: {job.state}, {job.message}"
            for job in jobs
            if job.state is not JobState.JOB_FINISHED
        ]
        if failed:
            raise DemoFailed("\n".join(failed))

    def now(self) -> Sequence[Job]:
        """Return all jobs as the store has them now, in the order in which they came."""
        if not self.store.exists():
            return ()
        with Reader(self.store) as reader:
            return sorted(reader.latest(self.jobs), key=lambda job: job.name)

    def last_words(self, job: Job) -> str:
        """Return the last line that a running job wrote, or what the service says of it."""
        if job.attempt is None or job.state is JobState.JOB_FINISHED:
            return job.message
        day = time.strftime("%Y%m%d", time.gmtime(job.id / 1e6))
        output = self.place / "jobs" / day / str(job.id) / "data" / f"stdout.{job.attempt.number}.txt"
        lines = output.read_text(errors="replace").splitlines() if output.exists() else []
        return lines[-1] if lines else job.message


class Board:
    """Show a few lines that change: a live table on a terminal, else a line per change."""

    def __init__(self, rows: int) -> None:
        self._shown: dict[str, str] = {}
        self._live: Live | None = None
        if sys.stdout.isatty():
            self._live = Live(refresh_per_second=4)
            self._live.start()

    def show(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Show name, state and last words of every job."""
        if self._live is not None:
            self._live.update(self._table(rows))
            return
        for name, state, _ in rows:
            if self._shown.get(name) != state:
                self._shown[name] = state
                print(f"  {name}  {state}", flush=True)

    def _table(self, rows: Sequence[tuple[str, str, str]]) -> Table:
        table = Table("job", "state", "last words", box=None, padding=(0, 2))
        for name, state, words in rows:
            colour = {"JOB_FINISHED": "green", "JOB_FAILED": "red", "RUNNING": "yellow"}.get(state, "cyan")
            table.add_row(name, f"[{colour}]{state}[/]", words[:60])
        return table

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.stop()


def main() -> int:
    """Run the demonstration; answers 0 when the Z has the mass that it must have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("demo-output"), help="made anew (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=4, help="how many jobs (default: %(default)s)")
    parser.add_argument(
        "--events",
        type=int,
        default=1000,
        help="events of each of a job's 2 processes (default: %(default)s)",
    )
    asked = parser.parse_args()
    demo = Demo(asked.directory.resolve(), asked.jobs, asked.events)
    total = asked.jobs * PROCESSES * asked.events
    print("pp -> Z/gamma* -> mu+ mu- at 13 TeV with PYTHIA 8, through a whole Balsam site")
    print(f"{asked.jobs} jobs of {PROCESSES} processes, {total:,} events in all; files in {demo.place}\n")
    begun = time.monotonic()
    try:
        demo.lay_out()
        demo.run()
    except DemoFailed as failure:
        print(f"\nthe demonstration failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; `make demo` begins anew", file=sys.stderr)
        return 130
    print(f"\nall jobs finished after {time.monotonic() - begun:.0f} s; each ran exactly once")
    return report(demo)


def report(demo: Demo) -> int:
    """Add the histograms up, fit the Z, draw the spectrum, and say what came out."""
    sample = analyse.combine(analyse.find_histograms([demo.place / "output"]))
    fit = analyse.fit_z_mass(sample.before)
    picture = demo.place / "z-peak.png"
    analyse.picture(sample, fit, picture)
    print()
    print(analyse.in_words(sample, fit))
    print(f"model          {fit.model}")
    print(f"picture        {picture}")
    command = Path(sys.executable).with_name("edgecore")
    print(f"what happened  {command} jobs --site {demo.site}")
    if abs(fit.mass_gev - Z_MASS_GEV) > TOLERANCE_GEV:
        print(f"\nthe mass is not {Z_MASS_GEV} +- {TOLERANCE_GEV} GeV: something is wrong", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
