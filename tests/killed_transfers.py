"""Kill services while they move a job's files, and see what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sites import Site, wait_for

from edgecore import batch
from edgecore.manifest import MANIFEST
from edgecore.models import JobState
from edgecore.testing.trees import MEBIBYTE, content_of, random_bytes

__all__ = ["SIZE_BYTES", "check_output", "chosen_points", "killed_at", "lay_out_input"]

_SIZES: Final = {"long": 32 * MEBIBYTE, "sub/short": 16 * MEBIBYTE}
SIZE_BYTES: Final = sum(_SIZES.values())
_LONG_S: Final = 120.0
KILLS: Final = 3


def lay_out_input(place: Path) -> None:
    """Make a long file, a shorter one, and many small ones."""
    for number, (name, size) in enumerate(_SIZES.items()):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(random_bytes(size, number))
    (place / "many").mkdir()
    for number in range(200):
        (place / "many" / f"{number}").write_bytes(b"%d" % number)


def chosen_points() -> list[int]:
    """Return after how many bytes services are killed, on the way in and on the way out."""
    chance = random.Random(time.time_ns())
    return sorted(chance.randrange(MEBIBYTE, 2 * SIZE_BYTES - MEBIBYTE) for _ in range(KILLS))


def killed_at(
    site: Site,
    moved: Callable[[], int],
    points: list[int],
    dying: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
) -> None:
    """Run services of which each is killed when so many bytes have *moved*, and one that is not.

    *dying* sees each of them, stopped, at its last moment.
    """
    for point in points:
        process = site.start()
        try:
            wait_for(lambda: moved() >= point, _LONG_S, site.diagnosis)  # noqa: B023 - called at once
        finally:
            process.send_signal(signal.SIGSTOP)
            dying(process)
            process.kill()
            process.wait()
    with site.service() as process:
        site.wait_settled(1, timeout_s=_LONG_S)
        dying(process)


def check_output(site: Site, source: Path, target: Path) -> None:
    """Check that the job ran once, and that all of its input came in and went out whole, as its manifest says."""
    (job,) = site.jobs()
    assert JobState.JOB_FINISHED is job.state, site.diagnosis()
    assert {job.id: 1} == site.starts()
    wanted, found = (content_of(root, modes=False, times=False) for root in (source, target))
    printed = {name for name in found if name.startswith((b"stdout.", b"stderr."))}
    assert len(printed) == 2
    assert wanted == {name: what for name, what in found.items() if name not in printed}
    manifest = batch.run_directory(site.config.work_directory, job.id, 1).path / MANIFEST
    listed = {line["name"]: line["checksum"] for line in map(json.loads, manifest.read_bytes().splitlines())}
    for name in _SIZES:
        digest = hashlib.sha256((target / name).read_bytes()).hexdigest()
        assert f"sha256:{digest}" == listed[name]
    assert 204 == len(listed) - len([name for name in listed if name == "app.cfg"])
    assert [] == [name for _, _, names in os.walk(target) for name in names if name.endswith("-part")]
