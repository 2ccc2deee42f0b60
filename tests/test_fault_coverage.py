"""The table of faults says what the tests that are collected show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from edgecore.testing.contract import FAULTS

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "reference" / "fault-coverage.md"
PLACES: Final = ("tests", "drivers", "examples")

NARROW: Final = """
import pytest
from edgecore.testing import Garbling, SchedulingContract

class TestNarrow(SchedulingContract):
    driver = "narrow"
    cannot = {4: "it has no accounting", (7, Garbling.EMPTY): "it always prints a head"}
"""


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Let a pytest of its own collect tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def collected(directory: Path, table: Path, *arguments: str) -> str:
    """Write the table of what a pytest of its own collects over one that is there, and return it."""
    table.touch()
    result = run_pytest(directory, f"--fault-table={table}", *arguments)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    return table.read_text()


def rows(page: str) -> dict[int, str]:
    """Return the cells of each fault."""
    lines = (line.split("|") for line in page.splitlines() if line.startswith("| "))
    return {int(cells[1]): "|".join(cells[3:-1]).strip() for cells in lines if cells[1].strip().isdigit()}


@pytest.mark.slow
def test_the_page_of_fault_coverage_is_up_to_date(tmp_path: Path) -> None:
    files = [path for place in PLACES for path in sorted((ROOT / place).rglob("test_*.py"))]
    named = [str(path) for path in files if "SchedulingContract" in path.read_text()]  # all take a long time
    written = collected(ROOT, tmp_path / "table.md", *named)
    assert written == PAGE.read_text(), (
        "write it anew: pytest --collect-only -q --fault-table=docs/reference/fault-coverage.md"
    )


def test_the_example_driver_shows_every_fault_and_no_driver_leaves_one_out() -> None:
    cells = rows(PAGE.read_text())
    assert list(FAULTS) == list(cells)
    assert {"fake"} == {cell.split(" | ")[0] for cell in cells.values()}
    assert not any("missing" in cell for cell in cells.values())


@pytest.mark.slow
def test_a_fault_that_cannot_be_shown_has_its_reason_in_a_note(tmp_path: Path) -> None:
    (tmp_path / "test_narrow.py").write_text(NARROW)
    page = collected(tmp_path, tmp_path / "table.md", "--strict-markers")
    cells = rows(page)
    assert ["fake", "-[^1]", "fake[^2]"] == [cells[1], cells[4], cells[7]]
    assert "[^1]: it has no accounting" in page
    assert "[^2]: empty: it always prints a head" in page


@pytest.mark.slow
def test_a_table_named_in_a_word_of_its_own_is_refused_with_how_to_name_it(tmp_path: Path) -> None:
    (tmp_path / "test_narrow.py").write_text(NARROW)
    (tmp_path / "elsewhere").mkdir()
    table = tmp_path / "elsewhere" / "table.md"
    table.touch()
    result = run_pytest(tmp_path, "--fault-table", str(table))
    assert pytest.ExitCode.USAGE_ERROR == result.returncode
    assert "--fault-table=FILE" in result.stderr
    assert "" == table.read_text()
