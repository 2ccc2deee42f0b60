"""The example of a site with Slurm and RabbitMQ fits together: its file, the unit of systemd, the crontab."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from places import DEADLINE_S, Live

from edgecore.config import SiteConfig, read_site
from edgecore.drivers import find_driver
from edgecore.serial import structure

EXAMPLE: Final = Path(__file__).parents[1] / "examples" / "balsam"
SITE: Final = "/etc/edgecore/lumi.toml"
PROGRAM: Final = "/opt/edgecore/bin/edgecore"


@pytest.fixture(scope="module")
def site() -> SiteConfig:
    return read_site(EXAMPLE / "slurm-rabbitmq.toml")


@pytest.mark.slow
def test_the_site_with_slurm_and_rabbitmq_is_accepted_by_its_drivers(site: SiteConfig) -> None:
    structure(find_driver("scheduling", site.scheduling.driver), site.scheduling.settings, source="example")
    messaging = {**site.messaging.settings, "url": site.messaging.url}
    structure(find_driver("messaging", site.messaging.scheme), messaging, source="example")
    for entry in site.transfer:
        structure(find_driver("transfer", entry.scheme), entry.settings, source="example")


def test_what_the_site_with_slurm_leaves_to_be_switched_on_is_accepted_too(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(
        re.sub(r"^#(?=\w)", "", (EXAMPLE / "slurm-rabbitmq.toml").read_text(), flags=re.MULTILINE)
    )
    config = read_site(path)
    assert ("SLURM_CONF",) == config.environment.inherit
    driver = find_driver("scheduling", "slurm")
    assert (
        structure(driver, config.scheduling.settings, source="example").commands_directory == "/opt/slurm/bin"
    )


# ------------------------------------------------------------------------------------ the unit


@pytest.fixture(scope="module")
def unit() -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in (EXAMPLE / "balsam.service").read_text().splitlines():
        key, mark, value = line.partition("=")
        if mark and not line.startswith("#"):
            found[key] += value.split()
    return found


def test_the_unit_lets_the_service_write_where_its_site_writes(
    unit: Mapping[str, Sequence[str]], site: SiteConfig
) -> None:
    assert [PROGRAM, "run", SITE] == unit["ExecStart"]
    writable = [Path(place) for place in unit["ReadWritePaths"]]
    assert site.log.file is not None
    assert site.metrics.file is not None
    for place in (site.work_directory, site.store.parent, site.log.file.parent, site.metrics.file.parent):
        assert any(place.is_relative_to(one) for one in writable), place
    mounted = [Path(place) for place in unit["RequiresMountsFor"]]
    for place in (site.work_directory, site.store):
        assert any(place.is_relative_to(one) for one in mounted), place


def test_the_unit_lets_the_service_drain_and_starts_it_again_unless_a_file_must_be_corrected(
    unit: Mapping[str, Sequence[str]], site: SiteConfig
) -> None:
    assert int(unit["TimeoutStopSec"][0]) > site.timing.drain_s
    assert (["mixed"], ["on-failure"], ["2"]) == (
        unit["KillMode"],
        unit["Restart"],
        unit["RestartPreventExitStatus"],
    )


def test_every_paragraph_of_the_unit_says_why(unit: Mapping[str, Sequence[str]]) -> None:
    lines = (EXAMPLE / "balsam.service").read_text().splitlines()
    obvious = {"Description", "User", "Group", "ExecStart", "WantedBy", "After"}
    for before, line in itertools.pairwise(lines):
        key = line.partition("=")[0]
        if key in unit and key not in obvious:
            assert before.startswith("#") or before.partition("=")[0] in unit, f"why {line}"


# --------------------------------------------------------------------------------- the crontab


@pytest.mark.slow
def test_the_lines_of_the_crontab_are_silent_while_all_is_well_and_tell_what_is_not(tmp_path: Path) -> None:
    live = Live(tmp_path)

    def cron() -> list[str]:
        said = []
        for line in (EXAMPLE / "crontab").read_text().splitlines():
            if found := re.fullmatch(r"(?:[\d*/]+ ){5}(.+)", line):
                command = found[1].replace(PROGRAM, f"{shlex.quote(sys.executable)} -m edgecore")
                done = subprocess.run(
                    ["/bin/sh", "-c", command.replace(SITE, str(live.file))],
                    capture_output=True,
                    text=True,
                    timeout=DEADLINE_S,
                    check=True,
                )
                said.append(done.stdout + done.stderr)
        return said

    with live.service("-m", "edgecore", "run", str(live.file)):
        assert ["", ""] == cron()[:2]
        text = live.file.read_text().replace('driver = "fork"', 'driver = "slurmm"')
        live.file.write_text(f"{text}\n[retention]\nkeep_days = 30\nkeep_failed_days = 3\n")
        start, hourly, weekly = cron()
        assert ("", True, True) == (start, "FAILURE" in hourly, "keeps directories of failed" in weekly)
