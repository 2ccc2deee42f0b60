"""What the page on putting Balsam at a centre tells people to type is typed, beside a real Slurm and a real RabbitMQ."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from documentation import Follower
from testbed.rabbitmq import RabbitMQ
from testbed.slurm import Slurm

import edgecore

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


# ------------------------------------------------------------------------------------ at night

SUBJECTS: Final = (
    re.compile(r'raise_once\(f?"([^"{]+)'),
    re.compile(r'Silence\(\s*subject="([^"]+)"'),
    re.compile(r'^(?:STORE|_UNROUTABLE|_TELLING): Final = "([^"]+)"', re.MULTILINE),
    re.compile(r'unusable, expiry = f"([^"{]+)'),
    re.compile(r'unusable, expiry = f"[^"]+", f"([^"{]+)'),
)
"""How the subjects of alarms stand in the code, up to what is filled in."""


def subjects() -> Iterator[str]:
    for path in Path(str(edgecore.__file__)).parent.rglob("*.py"):
        for pattern in SUBJECTS:
            yield from pattern.findall(path.read_text(encoding="utf-8"))


def test_the_page_says_of_every_alarm_what_to_do_at_night() -> None:
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| alarm | what it is | what to do |\n")
    told = {
        name
        for row in table.partition("\n\n")[0].splitlines()
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    found = set(subjects())
    assert {
        "batch system",
        "message broker",
        "status messages",
        "store",
        "host",
        "alarm program",
        "job ",
    } <= found
    assert [] == [name for name in found if not any(each.startswith(name) for each in told)]
