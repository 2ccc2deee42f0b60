"""The private Slurm of the tests comes up whole, meets no other, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from testbed.slurm import Slurm, running_slurm

from edgecore.processes import carrying
from edgecore.testing.site import DEADLINE_S, wait_for

pytestmark = pytest.mark.slow


def _processes(directory: Path) -> list[int]:
    return list(carrying([f"SLURM_CONF={directory}/slurm.conf".encode()]))


def _run_forever(slurm: Slurm) -> int:
    """Start a job that runs until it is killed; return its process id."""
    script = slurm.directory / "job.sh"
    script.write_text(f"#!/bin/sh\necho $$ >{slurm.directory}/job.new\nmv job.new job.pid\nexec sleep 600\n")
    slurm.run("sbatch", "-o", "/dev/null", str(script))
    pid = slurm.directory / "job.pid"
    wait_for(pid.exists, DEADLINE_S, lambda: slurm.run("squeue"))
    return int(pid.read_text())


def test_nothing_of_a_cluster_outlives_a_test_that_fails_not_even_a_job_whose_node_was_killed(
    tmp_path: Path,
) -> None:
    with contextlib.suppress(ZeroDivisionError), running_slurm(tmp_path / "slurm", nodes=1) as slurm:
        job = _run_forever(slurm)
        slurm.slurmd["n1"].kill()
        assert job in _processes(slurm.directory)
        raise ZeroDivisionError
    assert [] == _processes(tmp_path / "slurm")
    assert not os.path.exists(f"/proc/{job}")


def test_a_cluster_that_does_not_come_up_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="NoSuchKey"),
        running_slurm(tmp_path / "slurm", settings={"NoSuchKey": 1}),
    ):
        pytest.fail("it came up")
    assert [] == _processes(tmp_path / "slurm")


def test_two_clusters_side_by_side_do_not_meet(slurm: Slurm, tmp_path: Path) -> None:
    with running_slurm(tmp_path / "slurm", nodes=1) as other:
        _run_forever(other)
        assert "" == slurm.run("squeue", "-h")
        assert slurm.conf.read_text() != other.conf.read_text()


def test_a_cluster_is_in_order_again_whatever_was_done_to_it(slurm: Slurm) -> None:
    _run_forever(slurm)
    slurm.slurmd["n2"].kill()
    slurm.kill_controller()
    slurm.munged.stop()
    slurm.clear()
    assert "" == slurm.run("squeue", "-h")
    assert {"idle"} == set(slurm.run("sinfo", "-h", "-N", "-p", "batch", "-o", "%T").split())


def test_a_frozen_controller_does_afterwards_what_it_was_asked(slurm: Slurm) -> None:
    with slurm.frozen_controller():
        assert slurm.controller.alive
    assert slurm.run("scontrol", "ping").endswith("is UP")


def test_accounting_knows_what_has_ended(slurm_accounting: Slurm) -> None:
    number = slurm_accounting.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "exit 3")

    def accounted() -> bool:
        return "FAILED|3:0" == slurm_accounting.run("sacct", "-XnP", "-j", number, "-o", "State,ExitCode")

    wait_for(accounted, DEADLINE_S, lambda: slurm_accounting.run("squeue", "-t", "all"))
