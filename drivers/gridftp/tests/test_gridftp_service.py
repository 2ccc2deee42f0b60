"""A service that is killed in the middle of a GridFTP transfer, and started again, carries no file twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest
from sites import Site, make_site, wait_for
from testbed.gridftp import GridFtp, grid, gridftp, gridftp_needed

from edgecore.models import JobState
from edgecore.processes import carrying
from edgecore.workplace import programs_of

__all__ = ["grid", "gridftp", "gridftp_needed"]

pytestmark = pytest.mark.slow

_FILES = 150
_CARRIED = 120
"""So many of them the client carries before it is halted."""
_SETTLED = 100
"""So many of these get their final names by then: they are settled by the hundred, when a later one has begun."""
_DEADLINE_S = 60

_CLIENT = """#!/bin/sh
# Runs the real client. While the gate is shut, it carries some files of its list, and then waits.
client={client} base={base}
list="$base/list.$$"
cat >"$list"
case $(head -n 1 "$list") in file:*) gate=out ;; *) gate=in ;; esac
echo "$gate $(wc -l <"$list")" >>"$base/asked"
if [ -e "$base/$gate.shut" ]; then
    head -n {carried} "$list" | "$client" "$@" || exit 1
    touch "$base/$gate.waits"
    while [ -e "$base/$gate.shut" ]; do sleep 0.05; done
    exit 1
fi
exec "$client" "$@" <"$list"
"""


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """Where files are on the other side."""
    for number in range(_FILES):
        path = tmp_path / "far" / "in" / f"{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%03d" % number * 1000)
    return tmp_path / "far"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Where the client that can be halted notes what it was asked for."""
    base, real = tmp_path / "client", shutil.which("globus-url-copy")
    base.mkdir()
    program = base / "globus-url-copy"
    program.write_text(_CLIENT.format(client=real, base=base, carried=_CARRIED))
    program.chmod(0o755)
    return base


@pytest.fixture
def site(gridftp: GridFtp, far: Path, base: Path, tmp_path: Path) -> Site:
    """A site whose one job has its input and output on the server."""
    assert gridftp.grid is not None
    url = gridftp.url + quote(str(far))
    site = make_site(
        tmp_path / "site",
        environment={"PATH": f"{base}:{os.environ['PATH']}"},
        more=f'[[transfer]]\nprefix = "{url}/"\nproxy = "{gridftp.proxy}"\n'
        f'authorities = "{gridftp.grid.authorities}"\noptions = ["-dcstack", "{gridftp.stack}"]\n',
    )
    site.send(site.job(input_url=f"{url}/in", output_url=f"{url}/out"))
    return site


def _inodes(site: Site, pattern: str) -> dict[str, int]:
    """Return the files that have their final names; one that is carried again is another file."""
    return {
        path.name: path.stat().st_ino
        for path in site.base.parent.glob(pattern)
        if not path.name.startswith(".")
    }


def _killed(site: Site, gate: Path, pattern: str) -> dict[str, int]:
    """Run a service, and kill it while its client waits and a hundred files have their final names; return these."""
    process = site.start()
    try:
        wait_for(gate.with_suffix(".waits").exists, _DEADLINE_S, site.diagnosis)
        wait_for(lambda: len(_inodes(site, pattern)) == _SETTLED, _DEADLINE_S, site.diagnosis)
    finally:
        process.kill()
        process.wait()
    gate.unlink()
    return _inodes(site, pattern)


def test_a_service_that_is_killed_in_the_middle_of_a_stage_in_and_a_stage_out_carries_no_file_twice(
    site: Site, base: Path
) -> None:
    gates = {base / "in.shut": "site/work/*/*/data/*", base / "out.shut": "far/out/*"}
    for gate in gates:
        gate.touch()

    before = {pattern: _killed(site, gate, pattern) for gate, pattern in gates.items()}
    with site.service():
        (job,) = site.wait_settled(1, timeout_s=_DEADLINE_S)

    assert JobState.JOB_FINISHED is job.state, site.diagnosis()
    assert {job.id: 1} == site.starts()
    now = {pattern: _inodes(site, pattern) for pattern in gates.values()}
    for pattern, settled in before.items():
        assert settled == {name: now[pattern][name] for name in settled}
    came, went = _FILES, len(now["far/out/*"])  # what the job printed goes out, too
    assert [
        f"in {came}",
        f"in {came - _CARRIED}",
        f"out {went}",
        f"out {went - _CARRIED}",
    ] == (base / "asked").read_text().splitlines()
    assert [] == list(carrying(programs_of(site.config.store)))
