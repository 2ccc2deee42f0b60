#!/usr/bin/env python3
"""Generate proton collisions pp -> Z/gamma* -> mu+ mu- with PYTHIA 8, as one process of a job.

The program reads a card of physics settings, generates the events and leaves two files in the
working directory, each under its final name only once it is complete:

``events-<seed>.csv.gz``
    One line per event: the mass of the muon pair before and after the muons radiated photons, and
    each muon as a detector would see it (after radiation). `COLUMNS` names the columns.
``histogram-<seed>.json``
    Both mass spectra (sums of weights and of squared weights per bin), the cross-section, and all
    that is needed to make the same events again. It is written last: it marks a complete run.

*Before radiation* means the two muons that come straight from the decay of the Z/gamma*: the daughters
of its last copy in PYTHIA's event record, which have the status code 23 (-23 once a muon has radiated).
*After radiation* means the last copy of each of these two, which is the muon that flies out.

Several processes with one seed make different events: process number P uses the seed S + P, and the
seed stands in the names of its files. Jobs whose events will be added up must therefore have
seeds further apart than the number of processes of each.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from attrs import Factory, define, frozen

__all__ = ["COLUMNS", "Run", "generate", "main", "parser", "read_card"]

COLUMNS: Final = (
    "event",  # counted from 1
    "weight",  # 1 unless the card asks for weighted events
    "m_before",  # mass of the pair before radiation, GeV
    "m_after",  # mass of the pair after radiation, GeV
    "pt_minus",  # transverse momentum of the mu-, GeV
    "eta_minus",  # its pseudorapidity
    "phi_minus",  # its azimuth, radians
    "pt_plus",  # the same of the mu+
    "eta_plus",
    "phi_plus",
)

_EXIT_FAILED: Final = 1
_EXIT_REFUSED: Final = 2
_EXIT_STOPPED: Final = 128 + signal.SIGTERM

_PROCESS_VARIABLES: Final = ("EDGECORE_PROCESS", "SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
"""Where launchers tell a process its number; the first that is set counts."""

_LARGEST_SEED: Final = 900_000_000  # PYTHIA's limit
_BIN_WIDTH_GEV: Final = 0.25
_PB_PER_MB: Final = 1e9
_PROGRESS_S: Final = 1.0
_FAILURES_ALLOWED: Final = 10

_CARD_GROUPS: Final = (
    "BeamRemnants",
    "BoseEinstein",
    "ColourReconnection",
    "Diffraction",
    "HadronLevel",
    "MultipartonInteractions",
    "PDF",
    "PartonLevel",
    "SigmaProcess",
    "SpaceShower",
    "StandardModel",
    "StringFlav",
    "StringPT",
    "StringZ",
    "TimeShower",
    "Tune",
    "WeakShower",
    "WeakSingleBoson",
    "WeakZ0",
)
"""Groups of settings that a card may use. Others are left out on purpose: some load libraries or read
files (``Init:plugins``, ``include``), some belong to the run (``Beams``, ``PhaseSpace``, ``Random``)."""

_SETTING: Final = re.compile(r"([A-Za-z0-9]+):([A-Za-z0-9]+)\s*=\s*([A-Za-z0-9.+-]+(?:\s+[A-Za-z0-9.+-]+)*)")


class Refused(Exception):
    """What was asked for cannot be done as asked; nothing was generated."""


class GeneratorFailed(Exception):
    """PYTHIA gave up; there is no output."""


class Stopped(Exception):
    """Somebody asked this process to end; there is no output."""


@frozen(kw_only=True)
class Run:
    """Say what to generate: everything on which the events depend, and nothing else."""

    events: int
    seed: int
    mass_min_gev: float
    mass_max_gev: float
    energy_gev: float
    card: tuple[str, ...]

    def settings(self) -> tuple[str, ...]:
        """Return the whole of PYTHIA's settings: the card, then what belongs to the run."""
        return (
            *self.card,
            f"Beams:eCM = {self.energy_gev:g}",
            f"PhaseSpace:mHatMin = {self.mass_min_gev:g}",
            f"PhaseSpace:mHatMax = {self.mass_max_gev:g}",
            "Random:setSeed = on",
            f"Random:seed = {self.seed}",
        )


@define
class _Spectrum:
    """Add up weights in bins of equal width; what falls outside is counted as well."""

    lowest: float
    highest: float
    bins: int
    sums: list[float] = Factory(lambda self: [0.0] * self.bins, takes_self=True)
    squares: list[float] = Factory(lambda self: [0.0] * self.bins, takes_self=True)
    below: float = 0.0
    above: float = 0.0

    def add(self, mass: float, weight: float) -> None:
        if mass < self.lowest:
            self.below += weight
        elif mass >= self.highest:
            self.above += weight
        else:
            place = int((mass - self.lowest) / (self.highest - self.lowest) * self.bins)
            place = min(place, self.bins - 1)  # rounding may reach the upper edge
            self.sums[place] += weight
            self.squares[place] += weight * weight

    def edges(self) -> list[float]:
        step = (self.highest - self.lowest) / self.bins
        return [round(self.lowest + step * number, 9) for number in range(self.bins + 1)]

    def document(self) -> dict[str, object]:
        return {
            "sum_of_weights": self.sums,
            "sum_of_weights_squared": self.squares,
            "below": self.below,
            "above": self.above,
        }


# --------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """Generate as the command line says; return the exit code."""
    signal.signal(signal.SIGTERM, _stop)
    asked = parser().parse_args(arguments)
    try:
        run = _run(asked)
        generate(run, _with_seed(asked.output, run.seed), _with_seed(asked.histogram, run.seed))
    except Refused as error:
        print(f"zmumu-generate: {error}", file=sys.stderr)
        return _EXIT_REFUSED
    except (GeneratorFailed, OSError) as error:
        print(f"zmumu-generate: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except Stopped:
        print(
            "zmumu-generate: stopped by SIGTERM before the end; what was unfinished is removed",
            file=sys.stderr,
        )
        return _EXIT_STOPPED
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    made = argparse.ArgumentParser(
        prog="zmumu-generate",
        description="Generate pp -> Z/gamma* -> mu+ mu- with PYTHIA 8 and histogram the mass of the pair.",
        epilog="Exit codes: 0 complete; 1 PYTHIA or the file system failed; 2 an argument or the card was "
        "refused; 143 stopped by SIGTERM. The histogram is written last, once all is complete. Example: "
        "generate.py --events 500 --seed 101 --card input/zmumu.cmnd",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--events", type=int, required=True, metavar="N", help="how many events each process generates")
    add("--seed", type=int, required=True, metavar="S", help="seed; process P uses S + P (S + P: 1 to 9e8)")
    add("--mass-min", type=float, default=60.0, metavar="GEV", help="lowest mass of the pair (%(default)s)")
    add("--mass-max", type=float, default=120.0, metavar="GEV", help="highest mass of the pair (%(default)s)")
    add("--energy", type=float, default=13000.0, metavar="GEV", help="energy of both beams (%(default)s)")
    add("--card", type=Path, required=True, metavar="FILE", help="PYTHIA settings, only of physics")
    add(
        "--output",
        type=Path,
        default=Path("events.csv.gz"),
        metavar="FILE",
        help="event records; the seed is put before the first dot of the name (%(default)s)",
    )
    add(
        "--histogram",
        type=Path,
        default=Path("histogram.json"),
        metavar="FILE",
        help="spectra and cross-section; named with the seed likewise (%(default)s)",
    )
    add(
        "--process",
        type=int,
        metavar="P",
        help="number of this process, from 0; default: the first that is set of "
        + ", ".join(_PROCESS_VARIABLES)
        + ", else 0",
    )
    return made


def _run(asked: argparse.Namespace) -> Run:
    process = _process_number() if asked.process is None else asked.process
    seed = asked.seed + process
    if asked.events < 1:
        raise Refused(f"--events {asked.events}: ask for at least one event")
    if asked.seed < 1 or process < 0 or seed > _LARGEST_SEED:
        raise Refused(
            f"--seed {asked.seed} with process number {process}: PYTHIA takes seeds from 1 to {_LARGEST_SEED}"
        )
    if not 10.0 <= asked.mass_min < asked.mass_max <= asked.energy <= 200_000.0:
        raise Refused(
            f"--mass-min {asked.mass_min:g} --mass-max {asked.mass_max:g} --energy {asked.energy:g}: "
            "must rise in this order, from 10 to 200000 GeV"
        )
    return Run(
        events=asked.events,
        seed=seed,
        mass_min_gev=asked.mass_min,
        mass_max_gev=asked.mass_max,
        energy_gev=asked.energy,
        card=read_card(asked.card),
    )


def _process_number() -> int:
    for name in _PROCESS_VARIABLES:
        value = os.environ.get(name)
        if value is not None:
            if not value.isascii() or not value.isdigit():
                raise Refused(f"{name}={value!r} in the environment: found no process number (0, 1, ...)")
            return int(value)
    return 0


def _with_seed(path: Path, seed: int) -> Path:
    stem, dot, ending = path.name.partition(".")
    return path.with_name(f"{stem}-{seed}{dot}{ending}")


def _stop(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough; the second must not disturb the tidying
    raise Stopped


def read_card(path: Path) -> tuple[str, ...]:
    """Return the settings of a card, one ``name = value`` each; comments are dropped.

    Raises Refused, with line and reason, for anything but plain physics settings.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"cannot read the card {path}: {error}; is it in the job's input?") from error
    settings = []
    for number, line in enumerate(lines, start=1):
        text = re.split("[!#]", line, maxsplit=1)[0].strip()
        if text:
            settings.append(_setting(text, f"{path}, line {number}"))
    return tuple(settings)


def _setting(text: str, place: str) -> str:
    match = _SETTING.fullmatch(text)
    if match is None:
        raise Refused(f"{place}: found {text!r}; a setting is Group:name = value, with plain words as value")
    group, name, value = match.groups()
    if not group.isdigit() and group not in _CARD_GROUPS:
        raise Refused(
            f"{place}: a card may not set {group}:{name}; allowed are particle numbers and the groups "
            + ", ".join(_CARD_GROUPS)
        )
    return f"{group}:{name} = {value}"


# -------------------------------------------------------------------------------- physics


def generate(run: Run, events_path: Path, histogram_path: Path) -> None:
    """Generate the events of *run* and write both files.

    Raises Refused for a setting that PYTHIA does not know, GeneratorFailed when it cannot generate. After
    any error neither file has been made, except that complete event records may stand without histogram.
    """
    pythia = _prepare(run)
    version = f"{pythia.settings.parm('Pythia:versionNumber'):.3f}"
    print(
        f"generating {run.events} events pp -> Z/gamma* -> mu+ mu- at {run.energy_gev / 1000:g} TeV, "
        f"{run.mass_min_gev:g} < m < {run.mass_max_gev:g} GeV, seed {run.seed}, PYTHIA {version}",
        flush=True,
    )
    bins = max(1, round((run.mass_max_gev - run.mass_min_gev) / _BIN_WIDTH_GEV))
    before = _Spectrum(run.mass_min_gev, run.mass_max_gev, bins)
    after = _Spectrum(run.mass_min_gev, run.mass_max_gev, bins)
    with _replacing(events_path) as file, _table(file) as table:
        for row in _events(pythia, run.events):
            table.writerow([row[0], *(f"{value:.6g}" for value in row[1:])])
            before.add(row[2], row[1])
            after.add(row[3], row[1])
    info = pythia.infoPython()
    document = {
        "format": "zmumu-histogram-1",
        "process": "pp -> Z/gamma* -> mu+ mu-",
        "generator": f"PYTHIA {version}",
        "seed": run.seed,
        "events": run.events,
        "energy_gev": run.energy_gev,
        "settings": list(run.settings()),
        "cross_section_pb": info.sigmaGen() * _PB_PER_MB,
        "cross_section_error_pb": info.sigmaErr() * _PB_PER_MB,
        "edges_gev": before.edges(),
        "before_radiation": before.document(),
        "after_radiation": after.document(),
    }
    with _replacing(histogram_path) as file:
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
    print(f"complete: {_cross_section(info)}; wrote {events_path} and {histogram_path}", flush=True)


def _prepare(run: Run) -> Any:
    try:
        import pythia8mc
    except ImportError as error:
        raise GeneratorFailed(f"{error}; this program needs PYTHIA 8: pip install pythia8mc") from error
    pythia = pythia8mc.Pythia("", False)  # False: no banner
    for setting in ("Print:quiet = on", "Print:verbosity = 1", *run.settings()):
        if not pythia.readString(setting):
            raise Refused(f"PYTHIA does not know the setting {setting!r} or its value; correct the card")
    if not pythia.init():
        raise GeneratorFailed("PYTHIA could not be initialised; its reason is above, on standard output")
    return pythia


def _events(pythia: Any, wanted: int) -> Iterator[tuple[float, ...]]:
    """Yield one row of `COLUMNS` per event, and tell people now and then how far we are."""
    failures = 0
    begun = told = time.monotonic()
    number = 0
    while number < wanted:
        if not pythia.next():
            failures += 1
            if failures > _FAILURES_ALLOWED:
                raise GeneratorFailed(f"PYTHIA failed {failures} times within {number} events")
            continue
        number += 1
        yield (number, pythia.infoPython().weight(), *_kinematics(pythia.event, number))
        now = time.monotonic()
        if now - told >= _PROGRESS_S:
            told = now
            rate = number / (now - begun)
            said = _cross_section(pythia.infoPython())
            print(f"event {number} of {wanted}, {rate:.0f} events/s, {said}", flush=True)


def _kinematics(event: Any, number: int) -> tuple[float, ...]:
    minus, plus = _decay_muons(event, number)
    last_minus, last_plus = event[minus.iBotCopyId()], event[plus.iBotCopyId()]
    return (
        (minus.p() + plus.p()).mCalc(),
        (last_minus.p() + last_plus.p()).mCalc(),
        *(value for muon in (last_minus, last_plus) for value in (muon.pT(), muon.eta(), muon.phi())),
    )


def _decay_muons(event: Any, number: int) -> tuple[Any, Any]:
    """Return the mu- and the mu+ straight from the decay: daughters of the last copy of the Z/gamma*."""
    boson = next((place for place in range(event.size()) if event[place].id() == 23), None)
    if boson is not None:
        daughters = event[event[boson].iBotCopyId()].daughterList()
        born = {event[place].id(): event[place] for place in daughters if event[place].statusAbs() == 23}
        if born.keys() == {13, -13}:
            return born[13], born[-13]
    raise GeneratorFailed(
        f"event {number} has no muon pair from a Z/gamma*; the card must switch on "
        "WeakSingleBoson:ffbar2gmZ and only the decays 23:onIfAny = 13"
    )


def _cross_section(info: Any) -> str:
    value, error = info.sigmaGen() * _PB_PER_MB, info.sigmaErr() * _PB_PER_MB
    return f"cross-section {value:.0f} +- {error:.0f} pb"


# ---------------------------------------------------------------------------------- files


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the name *path* if all goes well, and vanishes otherwise."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _table(file: IO[bytes]) -> Iterator[Any]:
    # Neither name nor time go into the gzip header: the same seed gives the same bytes.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="ascii", newline="") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        yield writer


if __name__ == "__main__":
    sys.exit(main())
