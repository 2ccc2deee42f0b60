"""Whoever starts the testbed has a site on real servers that runs a job, and nothing of it when it is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
from testbed.gridftp import missing_gridftp
from testbed.myproxy import missing_myproxy
from testbed.slurm import need_slurm

from edgecore.testing.site import stop, wait_for

ROOT: Final = Path(__file__).parents[1]
LONG_S: Final = 120.0


def _of(directory: Path) -> list[str]:
    """Return the processes that have a file of *directory* among their arguments or in their environment."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            process = Path("/proc", name)
            command = (process / "cmdline").read_bytes()
            if os.fsencode(directory) in command + (process / "environ").read_bytes():
                found.append(f"{name} {command!r}")
    return found


@contextlib.contextmanager
def _running(command: Sequence[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        yield process
    finally:
        stop(process, LONG_S)


@pytest.mark.slow
def test_a_job_goes_through_the_testbed_of_which_nothing_is_left_when_it_is_interrupted(
    tmp_path: Path,
) -> None:
    need_slurm()
    bed, said, log = tmp_path / "bed", tmp_path / "said", tmp_path / "log"
    edgecore = [sys.executable, "-m", "edgecore"]
    command = [sys.executable, "-m", "tests.testbed", "--directory", str(bed)]
    with _running(command, said) as testbed:
        wait_for(lambda: "Ctrl-C here ends" in said.read_text(), LONG_S, said.read_text)
        assert 5 < len(_of(bed))
        site = bed / "site"
        sender = site / ("sender.toml" if (site / "sender.toml").exists() else "site.toml")
        with _running([*edgecore, "run", str(site / "site.toml")], log):
            jobs = sorted(map(str, site.glob("hello*.json")))
            submit = ["submit", *jobs, "--site", str(sender), "--wait", "--timeout", "100"]
            sent = subprocess.run(
                [*edgecore, *submit], capture_output=True, text=True, timeout=LONG_S, check=False
            )
        assert sent.returncode == 0, f"{sent.stdout}{sent.stderr}{log.read_text()}"
        for job in jobs:
            greeting = site / "data" / f"{Path(job).stem}-output" / "greeting.txt"
            assert "Hello, World!\n" == greeting.read_text()
        assert (site / "hello-grid.json").exists() is not bool(missing_gridftp() or missing_myproxy())
        testbed.send_signal(signal.SIGINT)
        assert 0 == testbed.wait(LONG_S), said.read_text()
    assert [] == _of(bed)
