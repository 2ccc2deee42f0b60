"""A service that is killed at random times while file:// moves a job's files resumes, and all arrives whole."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from killed_transfers import (
    KILLS,
    SIZE_BYTES,
    check_output,
    chosen_points,
    killed_at,
    lay_out_input,
)
from sites import make_site

from edgecore.testing.trees import MEBIBYTE


def held(*places: Path) -> int:
    """Return how many bytes lie in files below, whole or in part."""
    found = 0
    for place in places:
        for directory, _, names in os.walk(place):
            for name in names:
                try:
                    found += os.lstat(os.path.join(directory, name)).st_size
                except FileNotFoundError:  # renamed meanwhile
                    continue
    return found


def bytes_written(process: subprocess.Popen[bytes]) -> int:
    """Return how many bytes a process has written so far."""
    lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


@pytest.mark.slow
def test_a_service_that_is_killed_while_files_are_copied_resumes_and_writes_little_again(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path / "site")
    files = site.files("job")
    source, target = site.base / "data/job", site.base / "data/out-job"
    lay_out_input(source)
    site.send(site.job(**files))
    points, written = chosen_points(), list[int]()
    work = site.config.work_directory
    killed_at(
        site,
        lambda: held(work, target),
        points,
        lambda process: written.append(bytes_written(process)),
    )
    check_output(site, source, target)
    assert KILLS + 1 == len(written)
    assert sum(written) < 2 * SIZE_BYTES + (KILLS + 1) * 8 * MEBIBYTE, f"killed at {points}: {written}"
