"""Hold the reference workload to its physics: the generator, its launcher, and the fit of the Z."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecore.models import Application
from edgecore.serial import structure

ATLAS = Path(__file__).resolve().parents[1] / "examples" / "atlas"
CARD = ATLAS / "input" / "zmumu.cmnd"
DEADLINE_S = 60.0


def _load(name: str) -> Any:
    """Import a program of the example, which is no package, from its file."""
    spec = importlib.util.spec_from_file_location(f"atlas_{name}", ATLAS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _needs(package: str) -> None:
    """Skip on a laptop without the demonstration's packages; fail where everything must be tested."""
    if importlib.util.find_spec(package) is None:
        reason = f"{package} is not installed: pip install --group demo"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="module")
def generate() -> Any:
    return _load("generate")


@pytest.fixture(scope="module")
def analyse() -> Any:
    _needs("numpy")
    return _load("analyse")


# ------------------------------------------------------------------------------ generator


def _generator_command(*arguments: str) -> list[str]:
    return [sys.executable, str(ATLAS / "generate.py"), "--card", str(CARD), *arguments]


def _environment(**more: str) -> dict[str, str]:
    """Build an environment without a process number of our own surroundings."""
    return {"PATH": os.defpath, "LC_ALL": "C", **more}


def _run(command: list[str], directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=directory,
        env=_environment(**environment),
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate 50 events with the seed 7 and 50 with the seed 8, through the launcher."""
    _needs("pythia8mc")
    directory = tmp_path_factory.mktemp("two-processes")
    launcher = [sys.executable, str(ATLAS / "spread.py"), "2"]
    ended = _run([*launcher, *_generator_command("--events", "50", "--seed", "7")], directory)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("complete: cross-section") == 2
    return directory


def _rows(path: Path) -> list[dict[str, float]]:
    with gzip.open(path, "rt", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_each_process_writes_its_records_and_histogram_under_its_own_seed(two_processes: Path) -> None:
    expected = ["events-7.csv.gz", "events-8.csv.gz", "histogram-7.json", "histogram-8.json"]
    assert expected == sorted(path.name for path in two_processes.iterdir())


@pytest.mark.slow
def test_pairs_have_the_mass_that_was_asked_for_and_lose_some_of_it_by_radiation(two_processes: Path) -> None:
    rows = _rows(two_processes / "events-7.csv.gz") + _rows(two_processes / "events-8.csv.gz")
    assert [*range(1, 51), *range(1, 51)] == [row["event"] for row in rows]
    assert all(60.0 <= row["m_before"] <= 120.0 for row in rows)
    assert all(row["m_after"] <= row["m_before"] * 1.0001 for row in rows)
    assert any(row["m_after"] < row["m_before"] - 0.1 for row in rows)


@pytest.mark.slow
def test_the_muons_that_are_recorded_make_up_the_mass_after_radiation(two_processes: Path) -> None:
    for row in _rows(two_processes / "events-7.csv.gz"):
        turned = math.cosh(row["eta_minus"] - row["eta_plus"]) - math.cos(row["phi_minus"] - row["phi_plus"])
        massless = math.sqrt(2 * row["pt_minus"] * row["pt_plus"] * turned)
        assert massless == pytest.approx(row["m_after"], abs=0.01)


@pytest.mark.slow
def test_the_histograms_hold_every_event_of_the_records(two_processes: Path, analyse: Any) -> None:
    document = json.loads((two_processes / "histogram-8.json").read_text())
    rows = _rows(two_processes / "events-8.csv.gz")
    before = analyse.Histogram.of([row["m_before"] for row in rows], document["edges_gev"])
    assert before.sums.tolist() == document["before_radiation"]["sum_of_weights"]
    after = document["after_radiation"]
    assert sum(after["sum_of_weights"]) + after["below"] + after["above"] == 50
    assert (document["seed"], document["events"], document["energy_gev"]) == (8, 50, 13000.0)
    assert "Random:seed = 8" in document["settings"]
    assert re.fullmatch(r"PYTHIA 8\.\d+", document["generator"])


@pytest.mark.slow
def test_pythia_reports_the_leading_order_cross_section(two_processes: Path, analyse: Any) -> None:
    sample = analyse.combine(analyse.find_histograms([two_processes]))
    assert sample.events == 100
    assert abs(sample.cross_section_pb - 1460) < 5 * sample.cross_section_error_pb
    assert 20 < sample.cross_section_error_pb < 200


@pytest.mark.slow
def test_one_seed_makes_the_same_bytes_and_another_other_events(two_processes: Path, tmp_path: Path) -> None:
    ended = _run(_generator_command("--events", "50", "--seed", "7", "--process", "1"), tmp_path)
    assert ended.returncode == 0, ended.stderr
    for name in ("events-8.csv.gz", "histogram-8.json"):
        assert (two_processes / name).read_bytes() == (tmp_path / name).read_bytes()
    seven, eight = (_rows(two_processes / f"events-{seed}.csv.gz") for seed in (7, 8))
    assert not {row["m_before"] for row in seven} & {row["m_before"] for row in eight}


@pytest.mark.slow
def test_a_terminated_generator_ends_with_143_and_leaves_nothing(tmp_path: Path) -> None:
    _needs("pythia8mc")
    command = _generator_command("--events", "1000000", "--seed", "7")
    with subprocess.Popen(
        command, cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            said = next(line for line in process.stdout if line.startswith("event "))  # it is in full swing
            assert re.match(r"event \d+ of 1000000, \d+ events/s, cross-section \d+ \+- \d+ pb", said)
            assert [path.name for path in tmp_path.iterdir()] == [".events-7.csv.gz.partial"]
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == 143
    assert "stopped by SIGTERM" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        ("WeakSingleBoson:ffbar2gmZZ = on", "PYTHIA does not know the setting"),
        ("WeakSingleBoson:ffbar2gmZ = on\n23:onMode = off\n23:onIfAny = 11", "has no muon pair"),
    ],
)
def test_a_card_that_makes_no_muon_pairs_ends_without_output(
    card: str, complaint: str, tmp_path: Path
) -> None:
    _needs("pythia8mc")
    (tmp_path / "card").write_text(card + "\nPartonLevel:MPI = off\nHadronLevel:all = off\n")
    ended = _run(_generator_command("--card", "card", "--events", "5", "--seed", "1"), tmp_path)
    assert ended.returncode in (1, 2)
    assert complaint in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["card"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("Init:plugins = {/tmp/evil.so::Evil}", "found 'Init:plugins = {/tmp/evil.so::Evil}'"),
        ("Init:plugins = evil", "may not set Init:plugins"),
        ("include = /etc/passwd", "found 'include = /etc/passwd'"),
        ("PDF:pSet = LHAGrid1:/etc/passwd", "plain words"),
        ("Beams:LHEF = events", "may not set Beams:LHEF"),
        ("Random:seed = 4", "may not set Random:seed"),
        ("WeakSingleBoson:ffbar2gmZ", "Group:name = value"),
    ],
)
def test_a_card_may_only_hold_physics(generate: Any, tmp_path: Path, line: str, complaint: str) -> None:
    card = tmp_path / "card.cmnd"
    card.write_text(f"! a comment\n\n{line}\n")
    with pytest.raises(generate.Refused, match=re.escape(complaint)) as caught:
        generate.read_card(card)
    assert "card.cmnd, line 3: " in str(caught.value)


def test_a_card_loses_its_comments_and_keeps_its_settings(generate: Any) -> None:
    settings = generate.read_card(CARD)
    assert settings[0] == "WeakSingleBoson:ffbar2gmZ = on"
    assert "23:onIfAny = 13" in settings
    assert all(re.fullmatch(r"[A-Za-z0-9]+:[A-Za-z0-9]+ = [a-z0-9]+", setting) for setting in settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        (["--events", "0", "--seed", "1"], {}, "--events 0"),
        (["--events", "1", "--seed", "0"], {}, "--seed 0"),
        (["--events", "1", "--seed", "900000000"], {"EDGECORE_PROCESS": "1"}, "process number 1"),
        (["--events", "1", "--seed", "1"], {"SLURM_PROCID": "x"}, "SLURM_PROCID='x'"),
        (["--events", "1", "--seed", "1", "--mass-min", "120"], {}, "must rise in this order"),
        (["--events", "1", "--seed", "1", "--mass-max", "nan"], {}, "must rise in this order"),
        (["--events", "1", "--seed", "1", "--card", "none.cmnd"], {}, "cannot read the card none.cmnd"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_exit_code_2(
    arguments: list[str], environment: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    ended = _run(_generator_command(*arguments), tmp_path, **environment)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_application_entry_declares_what_the_generator_takes(generate: Any) -> None:
    entry = structure(Application, tomllib.loads((ATLAS / "zmumu-generate.toml").read_text()), source="entry")
    assert entry.launcher == "spread"
    names = {name for argument in entry.arguments for name in re.findall(r"\{(\w+)\}", argument)}
    assert names == set(entry.parameters)
    values = {"events": 10, "seed": 3} | {
        name: parameter.default
        for name, parameter in entry.parameters.items()
        if parameter.default is not None
    }
    asked = generate.parser().parse_args([argument.format(**values) for argument in entry.arguments[1:]])
    assert (asked.events, asked.seed, asked.energy) == (10, 3, 13000.0)
    assert asked.card == Path(CARD.name)


# ------------------------------------------------------------------------------- launcher


def _spread(directory: Path, count: int, script: str) -> list[str]:
    program = directory / "program.py"
    program.write_text(
        "import os, signal, sys, time\nnumber = int(os.environ['EDGECORE_PROCESS'])\n" + script
    )
    return [sys.executable, str(ATLAS / "spread.py"), str(count), sys.executable, str(program)]


@pytest.mark.slow
def test_the_launcher_numbers_its_processes_and_runs_them_at_the_same_time(tmp_path: Path) -> None:
    # Each waits until it sees all the others; one after the other they would wait for ever.
    script = (
        "open(f'here-{number}', 'x').close()\n"
        f"end = time.monotonic() + {DEADLINE_S}\n"
        "while sum(name.startswith('here-') for name in os.listdir()) < 3:\n"
        "    if time.monotonic() > end: sys.exit(9)\n"
        "    time.sleep(0.01)\n"
    )
    assert _run(_spread(tmp_path, 3, script), tmp_path).returncode == 0
    assert {"here-0", "here-1", "here-2"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit([0, 5, 6][number])", 5),
        ("os.kill(os.getpid(), signal.SIGKILL) if number == 2 else None", 137),
    ],
)
def test_the_launcher_ends_with_the_first_code_that_is_not_zero(
    script: str, code: int, tmp_path: Path
) -> None:
    assert _run(_spread(tmp_path, 3, script), tmp_path).returncode == code


@pytest.mark.slow
def test_the_launcher_waits_for_all_processes_even_when_one_fails(tmp_path: Path) -> None:
    script = "sys.exit(4) if number == 0 else (time.sleep(0.3), open('late', 'x').close())\n"
    assert _run(_spread(tmp_path, 2, script), tmp_path).returncode == 4
    assert (tmp_path / "late").exists()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["2"], ["0", "true"], ["-1", "true"], ["two", "true"]])
def test_the_launcher_explains_how_it_is_called(arguments: list[str], tmp_path: Path) -> None:
    ended = _run([sys.executable, str(ATLAS / "spread.py"), *arguments], tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: spread.py N PROGRAM")


@pytest.mark.slow
def test_the_launcher_names_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    ended = _run([sys.executable, str(ATLAS / "spread.py"), "2", str(tmp_path / "none")], tmp_path)
    assert ended.returncode == 127
    assert f"cannot start {tmp_path / 'none'}: No such file" in ended.stderr


@pytest.mark.slow
def test_the_launcher_passes_sigterm_on_and_waits_for_the_processes_to_tidy_up(tmp_path: Path) -> None:
    script = (
        "def stop(*_):\n"
        "    open(f'tidy-{number}', 'x').close()\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "open(f'ready-{number}', 'x').close()\n"
        f"time.sleep({DEADLINE_S})\n"
    )
    with subprocess.Popen(_spread(tmp_path, 2, script), cwd=tmp_path, env=_environment()) as process:
        try:
            _wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 143
        finally:
            process.kill()
    assert sorted(path.name for path in tmp_path.glob("tidy-*")) == ["tidy-0", "tidy-1"]


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come about in time"
        time.sleep(0.01)


# ---------------------------------------------------------------------------- combination


def _document(seed: int, **changes: Any) -> dict[str, Any]:
    spectrum = {"sum_of_weights": [1.0, 2.0, 4.0], "sum_of_weights_squared": [1.0, 2.0, 8.0]}
    return {
        "format": "zmumu-histogram-1",
        "generator": "PYTHIA 8.317",
        "seed": seed,
        "events": 100,
        "energy_gev": 13000.0,
        "settings": ["WeakSingleBoson:ffbar2gmZ = on", f"Random:seed = {seed}"],
        "cross_section_pb": 1500.0,
        "cross_section_error_pb": 60.0,
        "edges_gev": [80.0, 85.0, 90.0, 95.0],
        "before_radiation": spectrum,
        "after_radiation": spectrum,
        **changes,
    }


def _written(directory: Path, *documents: dict[str, Any]) -> list[Path]:
    paths = [directory / str(number) / f"histogram-{number}.json" for number in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
    return paths


def test_runs_are_added_up_and_cross_sections_weighted_with_their_events(
    analyse: Any, tmp_path: Path
) -> None:
    large = _document(2, events=300, cross_section_pb=1400.0, cross_section_error_pb=30.0)
    paths = _written(tmp_path, _document(1), large)
    sample = analyse.combine(paths)
    assert sample.seeds == (1, 2)
    assert sample.events == 400
    assert sample.cross_section_pb == pytest.approx((100 * 1500 + 300 * 1400) / 400)
    assert sample.cross_section_error_pb == pytest.approx(math.hypot(100 * 60, 300 * 30) / 400)
    assert sample.before.sums.tolist() == [2.0, 4.0, 8.0]
    assert sample.before.squares.tolist() == [2.0, 4.0, 16.0]
    assert sample.pb_per_weight * 14 == pytest.approx(sample.cross_section_pb)
    assert paths == analyse.find_histograms([tmp_path])


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (_document(1), "the same seed 1: the same events would count twice"),
        (_document(2, energy_gev=8000.0), "differ in energy_gev"),
        (_document(2, settings=["WeakZ0:gmZmode = 2", "Random:seed = 2"]), "differ in settings"),
        (_document(2, edges_gev=[80.0, 86.0, 90.0, 95.0]), "differ in edges_gev"),
        (_document(2, format="else"), "is not a histogram of generate.py"),
    ],
)
def test_what_does_not_belong_together_is_not_added_up(
    analyse: Any, tmp_path: Path, document: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        analyse.combine(_written(tmp_path, _document(1), document))


def test_an_empty_directory_is_named_as_the_reason(analyse: Any, tmp_path: Path, capsys: Any) -> None:
    assert analyse.main([str(tmp_path)]) == 1
    assert "no histogram-*.json found" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ fit

EDGES = [60.0 + 0.25 * number for number in range(241)]


def _breit_wigner(mass: float, width: float) -> Callable[[float], float]:
    """Return the relativistic Breit-Wigner with a little photon, falling with the mass, as a density in m."""

    def density(m: float) -> float:
        s = m * m
        return (s / ((s - mass * mass) ** 2 + (s * width / mass) ** 2) + 1.83 / s) / (m * m)

    return density


def _drawn(density: Callable[[float], float], count: int, seed: int) -> list[float]:
    """Draw masses from a density by inverting its distribution function on a fine grid."""
    import numpy as np

    grid = np.linspace(60.0, 120.0, 60_001)
    heights = np.array([density(mass) for mass in grid.tolist()])
    reached = np.concatenate(([0.0], np.cumsum((heights[1:] + heights[:-1]) / 2)))
    drawn: list[float] = np.interp(
        np.random.default_rng(seed).random(count), reached / reached[-1], grid
    ).tolist()
    return drawn


@pytest.mark.parametrize(("mass", "width"), [(91.19, 2.5), (90.3, 3.2), (92.0, 1.8)])
def test_the_fit_finds_mass_and_width_of_a_breit_wigner(analyse: Any, mass: float, width: float) -> None:
    masses = _drawn(_breit_wigner(mass, width), 20_000, seed=5)
    fit = analyse.fit_z_mass(analyse.Histogram.of(masses, EDGES))
    assert abs(fit.mass_gev - mass) < 3 * fit.mass_error_gev
    assert abs(fit.width_gev - width) < 3 * fit.width_error_gev
    assert 0.008 < fit.mass_error_gev < 0.02
    assert fit.ndf > 50
    assert abs(fit.chi2 - fit.ndf) < 4 * math.sqrt(2 * fit.ndf)


@pytest.mark.slow
def test_the_errors_of_the_fit_are_as_large_as_its_scatter(analyse: Any) -> None:
    import numpy as np

    truth = (91.19, 2.5, 1.45)
    masses = _drawn(lambda mass: float(analyse.line_shape(np.float64(mass), *truth)), 60 * 2000, seed=11)
    fits = [
        analyse.fit_z_mass(analyse.Histogram.of(masses[start : start + 2000], EDGES))
        for start in range(0, len(masses), 2000)
    ]
    for value, error, true in (
        ("mass_gev", "mass_error_gev", truth[0]),
        ("width_gev", "width_error_gev", truth[1]),
        ("fall", "fall_error", truth[2]),
    ):
        pulls = np.array([(getattr(fit, value) - true) / getattr(fit, error) for fit in fits])
        assert abs(pulls.mean()) < 4 / math.sqrt(len(pulls))
        assert 0.7 < pulls.std() < 1.35


def test_weights_that_are_all_alike_change_neither_fit_nor_error(analyse: Any) -> None:
    plain = analyse.Histogram.of(_drawn(_breit_wigner(91.19, 2.5), 2000, seed=3), EDGES)
    weighted = analyse.Histogram(plain.edges, 7 * plain.sums, 49 * plain.squares)
    for name in ("mass_gev", "mass_error_gev", "width_gev", "events", "chi2"):
        expected = getattr(analyse.fit_z_mass(plain), name)
        assert expected == pytest.approx(getattr(analyse.fit_z_mass(weighted), name))


def test_the_fit_expects_as_many_events_as_it_was_given(analyse: Any) -> None:
    spectrum = analyse.Histogram.of(_drawn(_breit_wigner(91.19, 2.5), 2000, seed=4), EDGES)
    fit = analyse.fit_z_mass(spectrum)
    used = spectrum.within(*fit.window_gev)
    assert (used.edges[0], used.edges[-1]) == fit.window_gev == (66.0, 116.0)
    assert used.sums.sum() == fit.events == pytest.approx(fit.expected(used.edges).sum())


def test_a_spectrum_without_the_peak_or_with_too_few_events_is_refused(analyse: Any) -> None:
    with pytest.raises(
        ValueError, match="the spectrum covers 95 to 110 GeV; a fit of the Z needs 86 to 96 GeV"
    ):
        analyse.fit_z_mass(analyse.Histogram.of([100.0] * 80, [95.0, 100.0, 110.0]))
    with pytest.raises(ValueError, match="found 3 events in the window; a fit needs 50"):
        analyse.fit_z_mass(analyse.Histogram.of([91.0] * 3, EDGES))


@pytest.mark.slow
def test_the_line_shape_is_that_of_the_generator(generate: Any, analyse: Any) -> None:
    """Fit 60,000 pairs without radiation and recoil, which PYTHIA makes fast, to 0.01 GeV."""
    _needs("pythia8mc")
    import pythia8mc

    card = [setting for setting in generate.read_card(CARD) if not setting.startswith("PartonLevel")]
    run = generate.Run(
        events=60_000, seed=1, mass_min_gev=60, mass_max_gev=120, energy_gev=13_000, card=tuple(card)
    )
    pythia = pythia8mc.Pythia("", False)
    for setting in ("Print:quiet = on", *run.settings(), "PartonLevel:all = off"):
        assert pythia.readString(setting), setting
    assert pythia.init()

    def masses() -> Iterator[float]:
        for _ in range(run.events):
            assert pythia.next()
            yield pythia.process[5].m()

    fit = analyse.fit_z_mass(analyse.Histogram.of(masses(), EDGES))
    assert fit.mass_error_gev < 0.01
    assert abs(fit.mass_gev - pythia.particleData.m0(23)) < 3.5 * fit.mass_error_gev
    assert abs(fit.width_gev - pythia.particleData.mWidth(23)) < 3.5 * fit.width_error_gev
    assert abs(fit.chi2 - fit.ndf) < 4 * math.sqrt(2 * fit.ndf)


# -------------------------------------------------------------------------------- picture


@pytest.mark.slow
def test_the_command_fits_prints_and_draws(analyse: Any, tmp_path: Path) -> None:
    _needs("matplotlib")
    documents = []
    for seed in (1, 2):
        counts = analyse.Histogram.of(_drawn(_breit_wigner(91.19, 2.5), 1000, seed), EDGES).sums.tolist()
        spectrum = {"sum_of_weights": counts, "sum_of_weights_squared": counts}
        changes = {
            "edges_gev": EDGES,
            "before_radiation": spectrum,
            "after_radiation": spectrum,
            "events": 1000,
        }
        documents.append(_document(seed, **changes))
    _written(tmp_path, *documents)
    command = [sys.executable, "-W", "error", str(ATLAS / "analyse.py"), "."]
    drawn = _run([*command, "--json", "--picture", "z.png"], tmp_path, HOME=str(tmp_path))
    assert drawn.returncode == 0, drawn.stderr
    result = json.loads(drawn.stdout)
    assert abs(result["fit"]["mass_gev"] - 91.19) < 0.2
    assert (result["events"], result["seeds"], result["cross_section_pb"]) == (2000, [1, 2], 1500.0)
    png = (tmp_path / "z.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == (1600, 1440)
    assert 50_000 < len(png) < 1_000_000
    words = _run(command, tmp_path)
    assert f"mass of the Z  {result['fit']['mass_gev']:.3f} ± " in words.stdout
