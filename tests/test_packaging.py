"""What is built and installed is complete, and holds nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packages import see

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from that sdist, as a release does."""
    place = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert 0 == result.returncode, result.stdout + result.stderr
    return place


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment of its own that sees our dependencies; answers its directory."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    venv.EnvBuilder(symlinks=True).create(place)
    packages = next(place.glob("lib/python*/site-packages"))
    see(packages, Path(sysconfig.get_path("purelib")))
    (wheel,) = built.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(place / "bin" / "python"),
        "--disable-pip-version-check",
    ]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True, timeout=120
    )
    return place


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def sources() -> set[str]:
    """Return the files of the package in the tree."""
    files = (ROOT / "edgecore").rglob("*")
    return {
        str(path.relative_to(ROOT)) for path in files if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_sdist_has_the_package_and_its_papers_and_nothing_else(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    papers = {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "PKG-INFO"}
    assert sources() | papers == names - {".gitignore"}  # which hatchling always adds
    for other in ("drivers", "tests", "examples", "benchmarks", "docs"):
        assert not any(name.startswith(f"{other}/") for name in names)


def test_the_wheel_has_the_package_its_types_its_licence_and_nothing_else(built: Path) -> None:
    (path,) = built.glob("*.whl")
    assert f"edgecore-{version()}-py3-none-any.whl" == path.name
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    info = f"edgecore-{version()}.dist-info"
    meta = {
        f"{info}/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE", "RECORD")
    }
    assert sources() | meta == names
    assert "edgecore/py.typed" in names


def run(place: Path, directory: Path, *command: str) -> str:
    """Run a program of the environment, away from the source tree."""
    program = [str(place / "bin" / command[0]), *command[1:]]
    result = subprocess.run(program, capture_output=True, text=True, cwd=directory, timeout=60)
    assert 0 == result.returncode, result.stdout + result.stderr
    return result.stdout


def test_what_is_installed_is_imported_from_where_it_was_installed(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "python", "-c", "import edgecore; print(edgecore.__file__)")
    assert where.startswith(str(installed))


def test_the_command_says_its_version(installed: Path, tmp_path: Path) -> None:
    assert version() in run(installed, tmp_path, "edgecore", "--version")
    assert version() in run(installed, tmp_path, "python", "-m", "edgecore", "--version")


def test_the_command_finds_every_built_in_driver_and_layer(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(run(installed, tmp_path, "edgecore", "drivers", "--check", "--json"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {group: points for group, points in project["entry-points"].items() if group != "pytest11"}
    declared = {name for points in groups.values() for name in points}
    found = {each["name"]: each for each in listed if each["package"] == "edgecore"}
    assert declared == set(found)
    assert {version()} == {each["version"] for each in found.values()}


def test_a_site_made_by_the_command_is_read(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "edgecore", "init", "demo")
    assert "no jobs yet" in _jobs(installed, tmp_path)


def _jobs(installed: Path, directory: Path) -> str:
    command = [str(installed / "bin" / "edgecore"), "jobs", "--site", "demo/site.toml"]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=60).stderr
