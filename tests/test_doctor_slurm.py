"""A doctor looks at a real Slurm as the service will use it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from attrs import evolve
from examined import FAILURE, OK, WARNING, added, examined
from places import Place
from testbed.slurm import Slurm

from edgecore.config import SiteConfig
from edgecore.doctor import drivers
from edgecore.models import Finding

pytestmark = pytest.mark.slow


@pytest.fixture
def site(place: Place, slurm: Slurm) -> Iterator[SiteConfig]:
    """A site with a partition of its own, which tests change."""
    slurm.run("scontrol", "create", "PartitionName=doctor", "Nodes=n1,n2", "MaxTime=01:00:00")
    text = place.file.read_text()
    assert 'driver = "fork"' in text
    place.file.write_text(text.replace('driver = "fork"', 'driver = "slurm"\naccounting = false'))
    variables = {**slurm.environment, "PATH": f"{slurm.environment['PATH']}:/usr/sbin"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in variables.items()]
    try:
        yield added(place, "\n".join(["\n[environment.set]", *lines, '\n[defaults]\nqueue = "doctor"\n']))
    finally:
        slurm.run("scontrol", "delete", "PartitionName=doctor")


def scheduled(config: SiteConfig) -> dict[str, Finding]:
    checks = drivers.driver_checks(config, evolve(config.context, examining=True), ())
    return examined((one for one in checks if one.title == "scheduling"), "scheduling")


def test_what_a_real_partition_gives_is_compared_with_what_a_site_allows(
    site: SiteConfig, slurm: Slurm
) -> None:
    found = scheduled(site)
    assert {OK} == {finding.level for finding in found.values()}, found
    assert "doctor is up: at most 2 nodes and 60 minutes for one job" == found["partition"].message
    assert "Slurm enforces no accounts here: it takes any name" == found["account"].message

    greedy = evolve(site, limits=evolve(site.limits, max_nodes=3))
    warned = scheduled(greedy)["partition doctor"]
    assert WARNING is warned.level
    assert "[limits] max_nodes = 3; doctor gives one job at most 2 nodes" in warned.message

    slurm.run("scontrol", "update", "PartitionName=doctor", "State=DRAIN")
    assert "doctor is DRAIN" in scheduled(site)["partition doctor"].message

    elsewhere = evolve(site, defaults=evolve(site.defaults, queue="docter"))
    assert FAILURE is scheduled(elsewhere)["partition"].level
