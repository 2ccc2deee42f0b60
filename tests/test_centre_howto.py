"""What the page on putting Balsam at a centre tells people to type is typed, beside a real Slurm and a real RabbitMQ."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import pytest
from documentation import Follower
from testbed.rabbitmq import RabbitMQ
from testbed.slurm import Slurm

PAGE: Final = Path(__file__).parents[1] / "docs" / "how-to" / "put-balsam-at-your-centre.md"
PLACES: Final = ("/etc/edgecore", "/var/lib/edgecore", "/var/log/edgecore", "/projects/edge")
ADDRESS: Final = "broker.example.gov:5671"


def adapted(page: str, place: Path, *, port: int) -> str:
    """Return the page for a reader whose places are below *place*, whose broker is here, and who is impatient."""
    changes = {
        **{name: f"{place}{name}" for name in PLACES},
        ADDRESS: f"localhost:{port}",
        '#pass = ["SLURM_CONF"]': 'pass = ["SLURM_CONF"]',
        'driver = "slurm"': 'driver = "slurm"\npoll_interval_s = 0.5',
    }
    for old, new in changes.items():
        assert old in page
        page = page.replace(old, new)
    return page


@pytest.mark.slow
def test_who_puts_balsam_at_a_centre_as_the_page_says_has_a_site_that_works(
    rabbitmq: RabbitMQ, slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tmp_path / "reader"
    for name in ("reader", "programs", *PLACES, "/var/lib/edgecore/metrics", "/projects/edge/data"):
        (tmp_path / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name, content in rabbitmq.authority.files().items():
        (reader / name).write_bytes(content)
    control = tmp_path / "programs" / "rabbitmqctl"
    control.write_text(f'#!/bin/sh\nexec {shlex.join(rabbitmq.control_command)} "$@"\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", str(control.parent), prepend=":")
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    follower = Follower(reader)
    try:
        follower.follow(adapted(PAGE.read_text(encoding="utf-8"), tmp_path, port=rabbitmq.tls))
    finally:
        follower.close()
