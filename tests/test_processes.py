"""Processes are known by their start, and have ended when their last thread has."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sites import wait_for
from threads import first_thread_has_ended, outlived

from edgecore.processes import carrying, end_all, process_start

pytestmark = pytest.mark.slow


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose first thread has ended, and that works on."""
    environment = {**os.environ, "EDGECORE_TEST": str(tmp_path)}
    with subprocess.Popen(outlived(tmp_path / "end"), env=environment) as made:
        try:
            wait_for(lambda: first_thread_has_ended(made.pid), 20)
            yield made
        finally:
            made.kill()


def test_a_process_has_ended_when_its_last_thread_has(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert process_start(process.pid) is not None
    (tmp_path / "end").touch()
    # It is still to be waited for: the kernel keeps its number, and nothing of it runs.
    wait_for(lambda: process_start(process.pid) is None, 20)
    assert first_thread_has_ended(process.pid)
    assert 7 == process.wait()


def test_a_process_whose_first_thread_has_ended_is_known_by_its_environment_and_ended(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    mark = f"EDGECORE_TEST={tmp_path}".encode()
    assert [process.pid] == list(carrying([mark]))
    assert 1 == end_all([mark])
    assert [] == list(carrying([mark]))
    assert process_start(process.pid) is None
