"""What the page on RabbitMQ tells operators to type is typed, at a real broker."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import pytest
from documentation import Follower
from rabbitmq_helpers import connected, message
from testbed.rabbitmq import RabbitMQ

PAGE: Final = Path(__file__).parents[1] / "docs" / "how-to" / "use-rabbitmq.md"


@pytest.mark.slow
def test_who_does_what_the_page_on_rabbitmq_says_has_a_site_that_works(
    rabbitmq: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "reader"
    place.mkdir()
    own, alice = rabbitmq.authority.client("polaris"), rabbitmq.authority.client("alice")
    for path in (own.certificate, own.key, rabbitmq.authority.file):
        place.joinpath(path.name).write_bytes(path.read_bytes())
        place.joinpath(path.name).chmod(0o600)
    programs = tmp_path / "programs"
    programs.mkdir()
    control = programs / "rabbitmqctl"
    control.write_text(f'#!/bin/sh\nexec {shlex.join(rabbitmq.control_command)} "$@"\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    address = "broker.example.gov:5671"
    page = PAGE.read_text(encoding="utf-8")
    assert f"amqps://{address}/" in page
    follower = Follower(place)
    try:
        follower.follow(page.replace(address, f"localhost:{rabbitmq.tls}"))
    finally:
        follower.close()
    settings = {**rabbitmq.settings(), **rabbitmq.files(alice), "may_declare": False}
    with connected(settings) as submitter:
        report = submitter.send(messages=[message("status", "balsam_job_status"), message("job", "polaris")])
    assert {"status"} == set(report.unroutable), "a submitter writes to sites, and to nobody else"
