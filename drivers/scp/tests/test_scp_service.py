"""A service that is killed at random times while it moves a job's files by SFTP resumes, and all arrives whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from killed_transfers import KILLS, SIZE_BYTES, check_output, chosen_points, killed_at, lay_out_input
from scp_helpers import proxy
from sites import Site, make_site, wait_for
from testbed.sshd import Sshd, sshd
from testbed.stall import Proxy

from edgecore.models import JobState
from edgecore.processes import carrying, process_start
from edgecore.testing.trees import MEBIBYTE, random_bytes
from edgecore.workplace import programs_of

__all__ = ["proxy", "sshd"]

pytestmark = pytest.mark.slow


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """Where files are on the other side."""
    (tmp_path / "far" / "in").mkdir(parents=True)
    return tmp_path / "far"


@pytest.fixture
def site(sshd: Sshd, proxy: Proxy, far: Path, tmp_path: Path) -> Site:
    """A site that reaches it, and a job that has its input and output there."""
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(sshd.known_as(proxy.port))
    url = f"scp://127.0.0.1:{proxy.port}{quote(str(far))}"
    settings = {
        "prefix": f"{url}/",
        "key_file": str(sshd.key),
        "known_hosts": str(known_hosts),
        "ssh_config": "none",
        "agent": False,
        "openssh_from_mb": 30,  # of the two long files, the longer is for OpenSSH
    }
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    site = make_site(tmp_path / "site", more=f"[[transfer]]\n{table}\n")
    site.send(site.job(input_url=f"{url}/in", output_url=f"{url}/out"))
    return site


def test_a_service_that_is_killed_while_files_are_sent_resumes_and_sends_little_again(
    site: Site, far: Path, proxy: Proxy
) -> None:
    lay_out_input(far / "in")
    points, begun = chosen_points(), proxy.passed_bytes
    with proxy.slow(20e6):  # slower than we are, so that little is on its way at a kill
        killed_at(site, lambda: proxy.passed_bytes - begun, points)
    check_output(site, far / "in", far / "out")
    passed = proxy.passed_bytes - begun
    assert passed < 2 * SIZE_BYTES * 1.05 + KILLS * 16 * MEBIBYTE, f"killed at {points}: {passed}"


def test_what_a_killed_service_had_started_to_move_files_is_ended_by_the_next(
    site: Site, far: Path, proxy: Proxy
) -> None:
    (far / "in" / "long").write_bytes(random_bytes(32 * MEBIBYTE))
    marks = programs_of(site.config.store)
    with proxy.slow(2e6):
        process = site.start()
        try:
            wait_for(lambda: list(carrying(marks)), 120, site.diagnosis)
        finally:
            process.kill()
            process.wait()
        left = {pid: process_start(pid) for pid in carrying(marks)}
        assert left
        with site.service():
            ended: Callable[[], bool] = lambda: all(process_start(pid) != left[pid] for pid in left)  # noqa: E731
            wait_for(ended, 120, site.diagnosis)
            proxy.rate_bytes_s = None
            (job,) = site.wait_settled(1, timeout_s=120)
    assert JobState.JOB_FINISHED is job.state, site.diagnosis()
    assert (far / "in" / "long").read_bytes() == (far / "out" / "long").read_bytes()
