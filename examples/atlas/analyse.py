#!/usr/bin/env python3
"""Combine the histograms of generate.py, fit the mass of the Z boson, and draw the spectrum.

The fit is a binned maximum likelihood on the muons before radiation. The line shape is that of
leading order quark-antiquark annihilation, with the relativistic Breit-Wigner of the Z (its width
running with the mass), the photon, and the interference of both, times the number of quarks in the
protons, which falls with the mass m. With s = m^2::

    dN/dm  ~  m^(1-2f)/s * [ G + I*s*(s - M^2)/D + s^2/D ],    D = (s - M^2)^2 + (s*W/M)^2

Free are the mass M, the width W and the exponent f of the fall; G and I, the shares of the photon and of the
interference relative to the Z, follow from the charges of the quarks and leptons (`_shares`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from attrs import asdict, evolve, field, frozen
from numpy.typing import NDArray

__all__ = ["Fit", "Histogram", "Sample", "combine", "find_histograms", "fit_z_mass", "line_shape", "picture"]

Numbers: TypeAlias = NDArray[np.float64]

MODEL: Final = "relativistic Breit-Wigner with running width, photon and interference, falling quark flux"

_FORMAT: Final = "zmumu-histogram-1"
_WINDOW_GEV: Final = (66.0, 116.0)
_PEAK_GEV: Final = (86.0, 96.0)  # a fit without the peak would only extrapolate
_FEWEST_EVENTS: Final = 50
_SMALLEST_EXPECTATION: Final = 10.0  # per bin of the chi squared, so that it follows its distribution

_SIN2_THETA_W: Final = 0.2312
_UP_SHARE: Final = 0.55  # of u and c in the quark-antiquark luminosity at the Z; counted in 300,000 events


# ------------------------------------------------------------------------------------ data


def _array(values: Any) -> Numbers:
    return np.asarray(values, dtype=np.float64)


@frozen(eq=False)
class Histogram:
    """Hold sums of weights and of squared weights per bin."""

    edges: Numbers = field(converter=_array)
    sums: Numbers = field(converter=_array)
    squares: Numbers = field(converter=_array)

    @classmethod
    def of(cls, masses: Iterable[float], edges: Sequence[float] | Numbers) -> Histogram:
        """Count *masses* in GeV in bins; what lies outside is left out."""
        counts, used = np.histogram(np.fromiter(masses, dtype=np.float64), bins=_array(edges))
        return cls(used, counts, counts)

    def plus(self, other: Histogram) -> Histogram:
        """Add the content of another histogram with the same bins."""
        return evolve(self, sums=self.sums + other.sums, squares=self.squares + other.squares)

    def within(self, low: float, high: float) -> Histogram:
        """Keep the bins that lie between *low* and *high* as a whole."""
        tiny = 1e-9
        keep = np.flatnonzero((self.edges[:-1] >= low - tiny) & (self.edges[1:] <= high + tiny))
        edges = self.edges[keep[0] : keep[-1] + 2] if keep.size else self.edges[:1]
        return Histogram(edges, self.sums[keep], self.squares[keep])

    def merged(self, factor: int) -> Histogram:
        """Join each *factor* neighbours to one bin; the last bin takes what remains."""
        starts = np.arange(0, self.sums.size, factor)
        edges = np.append(self.edges[starts], self.edges[-1])
        return Histogram(edges, np.add.reduceat(self.sums, starts), np.add.reduceat(self.squares, starts))


@frozen(eq=False, kw_only=True)
class Sample:
    """Hold what several runs came to together."""

    seeds: tuple[int, ...]
    events: int
    energy_gev: float
    cross_section_pb: float
    cross_section_error_pb: float
    generator: str
    before: Histogram
    """Mass of the pair before radiation."""
    after: Histogram
    """Mass of the pair after radiation."""

    @property
    def pb_per_weight(self) -> float:
        """Cross-section for which one unit of weight stands."""
        return self.cross_section_pb / float(self.before.sums.sum())


@frozen
class Fit:
    """Say what the fit found; errors are one standard deviation."""

    mass_gev: float
    mass_error_gev: float
    width_gev: float
    width_error_gev: float
    fall: float
    fall_error: float
    chi2: float
    ndf: int
    events: float
    """Effective number of events in the window."""
    window_gev: tuple[float, float]
    model: str = MODEL

    def expected(self, edges: Numbers) -> Numbers:
        """Return how many of the window's events the fit expects in each bin, inside the window or not."""
        parameters = _array([self.mass_gev, self.width_gev, self.fall])
        scale = self.events / float(_integrals(_array(self.window_gev), parameters, nodes=400)[0])
        return _array(scale * _integrals(edges, parameters))


# ----------------------------------------------------------------------------- combination


def find_histograms(places: Iterable[Path]) -> list[Path]:
    """Return all ``histogram-*.json`` below the directories among *places*, and the files among them."""
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise ValueError(f"{place}: there is no such file or directory")
        found += sorted(place.rglob("histogram-*.json")) if place.is_dir() else [place]
    if not found:
        raise ValueError(
            "no histogram-*.json found; did the jobs finish, and is this where their output went?"
        )
    return found


def combine(paths: Iterable[Path]) -> Sample:
    """Add up histograms; the cross-section is the mean of the runs, each weighted with its events.

    Weighting with events rather than with the estimated errors keeps the mean free of bias, since runs
    that happen to find a small cross-section also find a small error. Raises ValueError for files
    that cannot be read, that were made under different settings, or that hold the same events twice.
    """
    documents = {path: _read(path) for path in paths}
    if not documents:
        raise ValueError("no histogram files were given")
    _refuse_mixtures(documents)
    first, *others = documents.values()
    before, after = _spectrum(first, "before_radiation"), _spectrum(first, "after_radiation")
    for other in others:
        before = before.plus(_spectrum(other, "before_radiation"))
        after = after.plus(_spectrum(other, "after_radiation"))
    events = _array([document["events"] for document in documents.values()])
    values = _array([document["cross_section_pb"] for document in documents.values()])
    errors = _array([document["cross_section_error_pb"] for document in documents.values()])
    return Sample(
        seeds=tuple(document["seed"] for document in documents.values()),
        events=int(events.sum()),
        energy_gev=first["energy_gev"],
        cross_section_pb=float(events @ values / events.sum()),
        cross_section_error_pb=float(np.linalg.norm(events * errors) / events.sum()),
        generator=first["generator"],
        before=before,
        after=after,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"{path}: is not a histogram of generate.py (format {_FORMAT})")
    return document


def _spectrum(document: dict[str, Any], name: str) -> Histogram:
    spectrum = document[name]
    return Histogram(document["edges_gev"], spectrum["sum_of_weights"], spectrum["sum_of_weights_squared"])


def _refuse_mixtures(documents: dict[Path, dict[str, Any]]) -> None:
    """Refuse files that may not be added up: other settings, or the same seed again."""
    seen: dict[int, Path] = {}
    reference, wanted = next((path, _conditions(document)) for path, document in documents.items())
    for path, document in documents.items():
        if (found := _conditions(document)) != wanted:
            name = next(name for name in wanted if found[name] != wanted[name])
            raise ValueError(f"{path} and {reference} differ in {name}: they cannot be added up")
        if (other := seen.setdefault(document["seed"], path)) is not path:
            raise ValueError(
                f"{path} and {other} have the same seed {document['seed']}: the same events would count twice; "
                "give each job its own seed, further from the next than its number of processes"
            )


def _conditions(document: dict[str, Any]) -> dict[str, object]:
    """Return all that must be the same in files that are added up."""
    settings = [setting for setting in document["settings"] if not setting.startswith("Random:seed")]
    return {"settings": settings} | {
        name: document[name] for name in ("generator", "energy_gev", "edges_gev")
    }


# ------------------------------------------------------------------------------------- fit


def line_shape(masses_gev: Numbers, mass_gev: float, width_gev: float, fall: float) -> Numbers:
    """Return dN/dm at *masses_gev* up to a constant factor; the formula stands at the head of this module."""
    s = masses_gev**2
    away = s - mass_gev**2
    resonance = s / (away**2 + (s * width_gev / mass_gev) ** 2)
    photon, interference = _SHARES
    return _array(masses_gev ** (1 - 2 * fall) / s * (photon + (interference * away + s) * resonance))


def _shares() -> tuple[float, float]:
    """Return the photon's and the interference's share relative to the Z, from the couplings.

    A fermion of charge e and weak isospin a/2 couples to the Z with a (axial) and v = a - 4 e sin2 (vector),
    both in units of 1/(4 sin cos); the muon has e = -1 and a = -1.
    """
    unit = 1 / (16 * _SIN2_THETA_W * (1 - _SIN2_THETA_W))
    muon = -1 + 4 * _SIN2_THETA_W
    photon = interference = boson = 0.0
    for share, charge, axial in ((_UP_SHARE, 2 / 3, 1), (1 - _UP_SHARE, -1 / 3, -1)):
        vector = axial - 4 * charge * _SIN2_THETA_W
        photon += share * charge**2
        interference += share * 2 * unit * -charge * vector * muon
        boson += share * unit**2 * (vector**2 + axial**2) * (muon**2 + 1)
    return photon / boson, interference / boson


_SHARES: Final = _shares()


def _integrals(edges: Numbers, parameters: Numbers, nodes: int = 5) -> Numbers:
    """Integrate the line shape over each bin by Gauss and Legendre's rule."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    centres, halves = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    mass, width, fall = parameters
    masses = centres[:, None] + halves[:, None] * points
    return _array(line_shape(masses, mass, width, fall) @ weights * halves)


def fit_z_mass(spectrum: Histogram, window_gev: tuple[float, float] = _WINDOW_GEV) -> Fit:
    """Fit mass and width of the Z to the spectrum before radiation, within the window.

    Weighted events count as so many plain events as their weights are worth, sum squared over sum of
    squares. Raises ValueError when the spectrum has too few events or misses the peak.
    """
    used = spectrum.within(*window_gev)
    if used.sums.size == 0 or used.edges[0] > _PEAK_GEV[0] or used.edges[-1] < _PEAK_GEV[1]:
        raise ValueError(
            f"the spectrum covers {spectrum.edges[0]:g} to {spectrum.edges[-1]:g} GeV; a fit of the Z needs "
            f"{_PEAK_GEV[0]:g} to {_PEAK_GEV[1]:g} GeV of the window {window_gev[0]:g} to {window_gev[1]:g} GeV"
        )
    counts = used.sums * (used.sums.sum() / max(used.squares.sum(), 1e-300))
    if counts.sum() < _FEWEST_EVENTS:
        raise ValueError(f"found {counts.sum():.0f} events in the window; a fit needs {_FEWEST_EVENTS}")
    parameters, covariance = _most_likely(counts, used.edges, _array([91.0, 2.5, 1.4]))
    expected = _probabilities(used.edges, parameters) * counts.sum()
    chi2, ndf = _chi_squared(counts, expected, parameters.size)
    (mass, width, fall), errors = parameters.tolist(), np.sqrt(np.diag(covariance)).tolist()
    window = float(used.edges[0]), float(used.edges[-1])
    total = float(counts.sum())
    return Fit(mass, errors[0], width, errors[1], fall, errors[2], chi2, ndf, total, window)


def _probabilities(edges: Numbers, parameters: Numbers) -> Numbers:
    integrals = _integrals(edges, parameters)
    return _array(integrals / integrals.sum())


def _most_likely(counts: Numbers, edges: Numbers, start: Numbers) -> tuple[Numbers, Numbers]:
    """Climb to the largest likelihood by Fisher scoring; return the parameters and their covariance.

    The Fisher information (the curvature of the likelihood that is expected on average) is never
    negative, unlike the curvature at hand, so that each step leads uphill; one that goes too far is halved.
    """
    parameters = start
    best = counts @ np.log(_probabilities(edges, parameters))
    for _ in range(100):
        gradient, information = _score(counts, edges, parameters)
        step = np.linalg.solve(information, gradient)
        if gradient @ step < 1e-10:  # in units of one standard deviation squared
            return parameters, _array(np.linalg.inv(information))
        for _ in range(30):
            likelihood = counts @ np.log(_probabilities(edges, parameters + step))
            if likelihood >= best and parameters[1] + step[1] > 0:
                break
            step = step / 2
        parameters, best = parameters + step, likelihood
    raise ValueError(f"the fit did not settle; it was at mass, width and fall {parameters.round(3).tolist()}")


def _score(counts: Numbers, edges: Numbers, parameters: Numbers) -> tuple[Numbers, Numbers]:
    """Return the gradient of the logarithm of the likelihood, and the Fisher information."""
    slopes = np.empty((parameters.size, counts.size))
    for number, shift in enumerate(np.eye(parameters.size) * 1e-4):
        above, below = (_probabilities(edges, parameters + sign * shift) for sign in (1, -1))
        slopes[number] = np.log(above / below) / 2e-4
    weighted = slopes * (counts.sum() * _probabilities(edges, parameters))
    return slopes @ counts, weighted @ slopes.T


def _chi_squared(counts: Numbers, expected: Numbers, free: int) -> tuple[float, int]:
    """Compare in bins joined until each expects enough; return chi squared and degrees of freedom."""
    starts, gathered = [0], 0.0
    for place, value in enumerate(expected):
        if gathered >= _SMALLEST_EXPECTATION and expected[place:].sum() >= _SMALLEST_EXPECTATION:
            starts.append(place)
            gathered = 0.0
        gathered += float(value)
    found, awaited = np.add.reduceat(counts, starts), np.add.reduceat(expected, starts)
    return float(((found - awaited) ** 2 / awaited).sum()), len(starts) - 1 - free


# --------------------------------------------------------------------------------- picture

_BEFORE, _AFTER = "before photon radiation", "after photon radiation"
_INK, _RED, _GREY = "#1a1a1a", "#c8372d", "#8a94a0"
_TICKS: Final = {"direction": "in", "minor.visible": True, "major.size": 7, "minor.size": 3.5}
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "mathtext.fontset": "dejavusans",
    "axes.labelsize": 13,
    "legend.frameon": False,
    "xtick.top": True,
    "ytick.right": True,
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()},
}


def picture(sample: Sample, fit: Fit, path: Path) -> None:
    """Draw the spectrum with the fit, and their ratio below, as a PNG file at *path*."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 7.2), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(
            2, 1, sharex=True, height_ratios=[3.4, 1], gridspec_kw={"hspace": 0.03}
        )
        _draw_spectrum(upper, sample, fit)
        _draw_ratio(lower, sample, fit)
        figure.align_ylabels([upper, lower])
        figure.savefig(path, format="png", dpi=200)


def _shown(spectrum: Histogram) -> Histogram:
    """Join bins to about 1 GeV, the width that suits the eye."""
    return spectrum.merged(max(1, round(1.0 / float(np.diff(spectrum.edges).mean()))))


def _draw_spectrum(axes: Any, sample: Sample, fit: Fit) -> None:
    scale = sample.pb_per_weight
    after, before = _shown(sample.after), _shown(sample.before)
    widths = np.diff(before.edges)
    heights = before.sums * scale / widths
    axes.stairs(after.sums * scale / widths, after.edges, color=_GREY, fill=True, alpha=0.28, label=_AFTER)
    _draw_curve(axes, sample, fit)
    _draw_points(axes, before, scale / widths, label=_BEFORE)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(heights[heights > 0].min() / 3, heights.max() * 6)
    axes.set_xlim(before.edges[0], before.edges[-1])
    axes.set_ylabel(r"d$\sigma$ / d$m_{\mu\mu}$  [pb / GeV]")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper right", fontsize=10.5, borderaxespad=1.0)
    _write_results(axes, sample, fit)


def _draw_curve(axes: Any, sample: Sample, fit: Fit) -> None:
    """Draw the fitted curve, thin where it goes on beyond the window of the fit."""
    low, high = sample.before.edges[0], sample.before.edges[-1]
    edges = np.linspace(low, high, 2001)
    masses, step = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    # The fit speaks of effective events; its share of the window's weight makes it a cross-section.
    window = sample.before.within(*fit.window_gev)
    scale = sample.pb_per_weight * float(window.sums.sum()) / fit.events
    curve = fit.expected(edges) * scale / step
    inside = (masses >= fit.window_gev[0]) & (masses <= fit.window_gev[1])
    axes.plot(masses, curve, color=_RED, linewidth=1.0, linestyle=(0, (4, 2)), zorder=3)
    label = rf"fit, {fit.window_gev[0]:g} to {fit.window_gev[1]:g} GeV"
    axes.plot(masses[inside], curve[inside], color=_RED, linewidth=2.0, label=label, zorder=3)


def _write_results(axes: Any, sample: Sample, fit: Fit) -> None:
    process = r"$pp \rightarrow Z/\gamma^{*} \rightarrow \mu^{+}\mu^{-}$"
    lines = (
        rf"$\sqrt{{s}}$ = {sample.energy_gev / 1000:g} TeV,  {sample.generator}",
        f"{sample.events:,} events from {len(sample.seeds)} processes",
        rf"$\sigma$ = {_with_error(sample.cross_section_pb, sample.cross_section_error_pb)} pb",
        rf"$m_Z$ = {_with_error(fit.mass_gev, fit.mass_error_gev)} GeV",
        rf"$\Gamma_Z$ = {_with_error(fit.width_gev, fit.width_error_gev)} GeV",
        rf"$\chi^2$ / ndf = {fit.chi2:.1f} / {fit.ndf}",
    )
    axes.text(0.035, 0.95, process, transform=axes.transAxes, va="top", fontsize=16, color=_INK)
    for number, line in enumerate(lines):
        colour = _RED if "m_Z" in line else _INK
        axes.text(0.035, 0.87 - 0.06 * number, line, transform=axes.transAxes, va="top", color=colour)


def _draw_ratio(axes: Any, sample: Sample, fit: Fit) -> None:
    shown = _shown(sample.before)
    expected = fit.expected(shown.edges)
    expected *= float(sample.before.within(*fit.window_gev).sums.sum()) / fit.events
    axes.axhline(1.0, color=_RED, linewidth=1.6, zorder=2)
    _draw_points(axes, shown, 1 / expected)
    axes.set_ylim(0.0, 2.0)
    axes.set_yticks([0.5, 1.0, 1.5])
    axes.set_ylabel("sample / fit")
    axes.set_xlabel(r"mass of the muon pair  $m_{\mu\mu}$  [GeV]")


def _draw_points(axes: Any, spectrum: Histogram, scale: Numbers, label: str | None = None) -> None:
    """Draw each bin that is not empty as a point, with the width of the bin and the error of its content."""
    seen = spectrum.sums > 0
    centres, halves = (spectrum.edges[1:] + spectrum.edges[:-1]) / 2, np.diff(spectrum.edges) / 2
    heights, errors = spectrum.sums * scale, np.sqrt(spectrum.squares) * scale
    down = np.minimum(errors, 0.999 * heights)  # a logarithmic scale has no zero to reach down to
    style = {"fmt": "o", "color": _INK, "markersize": 4, "elinewidth": 1.1, "zorder": 4}
    bars = {"xerr": halves[seen], "yerr": (down[seen], errors[seen])}
    axes.errorbar(centres[seen], heights[seen], label=label, **bars, **style)


def _with_error(value: float, error: float) -> str:
    """Write value ± error with the error to two significant digits."""
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


# --------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Combine, fit, draw and say what came out; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="analyse.py",
        description="Combine the histograms of generate.py, fit the mass of the Z boson and draw the spectrum.",
        epilog="Exit codes: 0 done; 1 the histograms cannot be used, and why. Example: "
        "analyse.py output/ --picture z-peak.png",
    )
    parser.add_argument(
        "places", nargs="+", type=Path, metavar="DIR", help="where histogram-*.json files are"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the spectrum into this PNG file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of words")
    asked = parser.parse_args(arguments)
    try:
        sample = combine(find_histograms(asked.places))
        fit = fit_z_mass(sample.before)
        if asked.picture is not None:
            picture(sample, fit, asked.picture)
    except (ValueError, OSError) as error:
        print(f"analyse.py: {error}", file=sys.stderr)
        return 1
    print(_as_json(sample, fit) if asked.json else in_words(sample, fit))
    return 0


def _as_json(sample: Sample, fit: Fit) -> str:
    found = {
        name: getattr(sample, name)
        for name in ("events", "seeds", "cross_section_pb", "cross_section_error_pb")
    }
    return json.dumps({**found, "fit": asdict(fit)}, indent=1)


def in_words(sample: Sample, fit: Fit) -> str:
    """Say in a few lines what the sample and the fit came to."""
    return "\n".join(
        (
            f"{sample.events} events from {len(sample.seeds)} processes, {sample.generator}",
            f"cross-section  {_with_error(sample.cross_section_pb, sample.cross_section_error_pb)} pb",
            f"mass of the Z  {_with_error(fit.mass_gev, fit.mass_error_gev)} GeV",
            f"its width      {_with_error(fit.width_gev, fit.width_error_gev)} GeV",
            f"chi2/ndf       {fit.chi2:.1f}/{fit.ndf} within {fit.window_gev[0]:g} to {fit.window_gev[1]:g} GeV",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
