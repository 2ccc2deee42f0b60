"""The numbers that a service writes for Prometheus: that they are true, and that they cost nothing."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families
from scripted import Edge, ScriptedTransfer
from sites import make_site, wait_for

from edgecore.clock import Clock
from edgecore.config import MetricsTable, SiteConfig
from edgecore.errors import ConfigurationError, TransferInterrupted, TransferRefused
from edgecore.metrics import open_metrics
from edgecore.models import JobState, OutgoingMessage, Refusal
from edgecore.reader import Reader

S = JobState


class Numbers:
    """What a metrics file says."""

    def __init__(self, file: Path) -> None:
        self._found = {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(file.read_text())
            for sample in family.samples
        }

    def __call__(self, name: str, *labels: str) -> float | None:
        return self._found.get((f"edgecore_{name}", labels))


@pytest.fixture
def file(edge: Edge, tmp_path: Path) -> Path:
    """Let the site write metrics, and say where."""
    file = tmp_path / "edgecore.prom"
    edge.config = evolve(edge.config, metrics=MetricsTable(file=file, interval_s=0.1))
    return file


def test_the_way_of_jobs_is_counted(edge: Edge, file: Path) -> None:
    edge.start()
    edge.send("good")
    edge.send("bad", "fails", retries=1)
    edge.send("refused", "no-such-application")
    edge.wait("good", S.JOB_FINISHED)
    edge.wait("bad", S.JOB_FAILED)
    edge.wait("refused", S.JOB_REJECTED)
    edge.until(lambda: edge.broker.acknowledged == 3)
    with Reader(edge.config.store) as reader:
        edge.until(lambda: not reader.outbox(0, 1))
    edge.stop()

    found = Numbers(file)
    assert [1, 1, 1, 0] == [
        found("jobs", state) for state in (S.JOB_FINISHED, S.JOB_FAILED, S.JOB_REJECTED, S.QUEUED)
    ]
    assert [3, 2] == [found("attempts_total"), found("failures_total", "execution")]
    assert [2, 1, 3] == [
        found("transitions_total", state) for state in (S.CREATED, S.JOB_FINISHED, S.SUBMITTING)
    ]
    assert [3, 2, 1] == [
        found("deliveries_total"),
        found("deliveries_settled_total", "accept"),
        found("deliveries_settled_total", "refuse"),
    ]
    assert [len(edge.broker.sent), 0] == [found("messages_published_total"), found("outbox_messages")]
    assert 3 == found("submissions_total", "submitted")
    assert 3 == found("submit_seconds_count")
    assert edge.scheduling.count("observe") == found("listing_seconds_count", "observe")
    commits, operations = found("store_commit_operations_count"), found("store_commit_operations_sum")
    assert commits is not None
    assert operations is not None
    assert 10 < commits <= operations


@pytest.mark.slow
def test_what_fails_is_counted_by_its_step_and_its_kind(edge: Edge, file: Path) -> None:
    transfer = edge.transfer = ScriptedTransfer()
    edge.start()
    transfer.errors.extend([TransferInterrupted("broke off"), TransferRefused("no such file")])
    edge.send("refused", **edge.input("refused"))
    edge.wait("refused", S.JOB_FAILED)
    edge.send("moved", **{**edge.input("moved"), "config_file": None})
    edge.wait("moved", S.JOB_FINISHED)
    edge.scheduling.refuse(Refusal.PERMANENT, "no such queue")
    edge.send("unwanted")
    edge.wait("unwanted", S.JOB_FAILED)
    edge.stop()

    found = Numbers(file)
    assert [1, 1, None] == [found("failures_total", step) for step in ("stage_in", "submit", "stage_out")]
    assert [2, 1, 1] == [
        found("transfer_failures_total", "in"),
        found("transfer_seconds_count", "in"),
        found("transfer_seconds_count", "out"),
    ]
    assert [1, 1] == [found("transferred_bytes_total", way) for way in ("in", "out")]
    assert 1 == found("submissions_total", "permanent")


@pytest.mark.slow
def test_a_silent_batch_system_and_its_alarm_are_seen_while_they_last(edge: Edge, file: Path) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait_entry()
    edge.scheduling.down = "maintenance"
    edge.wait_alarm("batch system")
    edge.until(lambda: Numbers(file)("alarms_active") == 1)
    assert (Numbers(file)("listing_failures_total", "observe") or 0) > 0
    assert (Numbers(file)("last_success_timestamp_seconds", "engine") or 0) > 1_700_000_000
    before = Numbers(file)("last_success_timestamp_seconds", "listing") or 0

    edge.scheduling.down = ""
    edge.wait_alarm("batch system", cleared=True)
    edge.until(lambda: Numbers(file)("alarms_active") == 0)
    assert 1 == Numbers(file)("alarms_total")
    edge.until(lambda: (Numbers(file)("last_success_timestamp_seconds", "listing") or 0) > before)


@pytest.mark.slow
def test_messages_that_nobody_takes_are_counted(edge: Edge, file: Path) -> None:
    edge.start()
    relay = edge.site.relay()
    bad = OutgoingMessage(exchange="hpc", key="testsite", body=b"{", message_id="1", reply_to="status.nobody")
    relay.send(messages=[bad])
    relay.close()
    edge.until(lambda: file.exists() and Numbers(file)("messages_unroutable_total") == 1)


@pytest.mark.slow
def test_the_backlog_is_seen_while_the_broker_is_away(edge: Edge, file: Path) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    entry = edge.wait_entry()
    edge.broker.down = "away"
    edge.scheduling.start(entry)
    edge.wait("job", S.JOB_FINISHED)
    edge.until(lambda: (Numbers(file)("outbox_messages") or 0) >= 3)
    edge.broker.down = ""
    edge.until(lambda: Numbers(file)("outbox_messages") == 0)


def test_the_file_says_whether_the_service_works_and_which_one_it_is(edge: Edge, file: Path) -> None:
    edge.start()
    edge.until(lambda: file.exists() and Numbers(file)("up") == 1)
    edge.stop()

    assert 0 == Numbers(file)("up")
    assert 'edgecore_build_info{python="' in file.read_text()
    assert [file.name] == [path.name for path in file.parent.glob("*.prom*")]  # nothing temporary is left


@pytest.mark.slow
def test_a_file_that_cannot_be_written_is_said_once_and_written_later(
    edge: Edge, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "exporter"
    place.mkdir()
    edge.config = evolve(edge.config, metrics=MetricsTable(file=place / "edge.prom", interval_s=0.02))
    edge.start()
    edge.until(lambda: (place / "edge.prom").exists())
    place.rename(tmp_path / "away")
    edge.until(lambda: "metrics cannot be written" in caplog.text)
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    assert 1 == caplog.text.count("metrics cannot be written")
    place.mkdir()
    edge.until(lambda: (place / "edge.prom").exists())


def test_without_the_library_the_key_and_the_remedy_are_named(
    edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    config = evolve(edge.config, metrics=MetricsTable(file=tmp_path / "edge.prom"))
    with pytest.raises(ConfigurationError, match=r"metrics\.file.*pip install 'edgecore\[metrics\]'"):
        open_metrics(config, Clock())


def test_a_place_that_is_not_there_is_refused_at_the_start(edge: Edge, tmp_path: Path) -> None:
    config: SiteConfig = evolve(edge.config, metrics=MetricsTable(file=tmp_path / "none" / "edge.prom"))
    with pytest.raises(ConfigurationError, match=r"metrics\.file.*cannot write in .*none"):
        open_metrics(config, Clock())


def test_a_site_without_metrics_has_no_thread_for_them(edge: Edge) -> None:
    edge.start()
    assert [] == [each.name for each in threading.enumerate() if each.name == "edgecore-metrics"]


@pytest.mark.slow
def test_a_service_that_writes_metrics_opens_no_socket(tmp_path: Path) -> None:
    file = tmp_path / "edgecore.prom"
    site = make_site(tmp_path / "site", more=f'[metrics]\nfile = "{file}"\ninterval_s = 0.2')
    with site.service() as process:
        site.send(site.job())
        site.wait_settled(1)
        wait_for(lambda: file.exists() and Numbers(file)("jobs", S.JOB_FINISHED) == 1, 20)
        place = Path(f"/proc/{process.pid}/fd")
        opened = [os.readlink(place / name) for name in os.listdir(place) if (place / name).is_symlink()]
        assert [] == [link for link in opened if link.startswith("socket:")]
        assert process.poll() is None
