"""How far a transfer is: told cheaply by the service, seen by other processes, gone at its end."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve
from places import Place
from scripted import Edge, ScriptedTransfer

from edgecore import batch, progress
from edgecore.cli import following, watching
from edgecore.cli import moving as words
from edgecore.cli.following import Followed, Looks
from edgecore.cli.jobs import Choice
from edgecore.clock import Clock
from edgecore.models import Job, TransferUpdate
from edgecore.models import JobState as S
from edgecore.progress import Progress, Teller, progress_of, sized
from edgecore.reader import Reader

URL = "file:///far/away"
OLD_US = 600_000_000


@define(eq=False)
class Hands(Clock):
    """A clock whose hands a test moves."""

    at: float = 1000.0
    set_back_s: float = 0.0

    def monotonic(self) -> float:
        return self.at

    def now(self) -> int:
        return round((self.at - self.set_back_s) * 1e6)


def update(size_bytes: int, total_bytes: int | None = 1000) -> TransferUpdate:
    return TransferUpdate(files=2, size_bytes=size_bytes, total_bytes=total_bytes)


@pytest.fixture
def job(place: Place) -> Job:
    return place.keep(S.CREATED, input_url=URL, output_url=URL)


@pytest.fixture
def directory(place: Place, job: Job) -> Path:
    path = batch.job_directory(place.config.work_directory, job.id)
    path.mkdir(parents=True)
    return path


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing become too old while a test runs, however busy the machine is."""
    monkeypatch.setattr(progress, "_OLD_US", OLD_US)


# ------------------------------------------------------------------------------------ telling


def test_a_transfer_that_takes_less_than_a_second_writes_nothing(directory: Path) -> None:
    clock = Hands()
    teller = Teller(directory, "in", clock)
    for _ in range(100):
        clock.at += 0.009
        teller.tell(update(10))
    assert [] == os.listdir(directory)
    teller.close()


def test_it_is_written_at_most_every_second_and_gone_at_the_end(
    place: Place, job: Job, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = Hands(), []
    monkeypatch.setattr(Teller, "_write", lambda self, last: written.append(last.size_bytes))
    teller = Teller(directory, "in", clock)
    for step in range(1000):
        clock.at += 0.01
        teller.tell(update(step))
    assert 9 <= len(written) <= 10
    monkeypatch.undo()
    clock.at += 1
    teller.still()
    assert ["progress.json"] == os.listdir(directory)
    teller.close()
    assert [] == os.listdir(directory)
    teller.close()


def test_a_transfer_is_seen_also_after_the_clock_was_set_back(
    place: Place, job: Job, directory: Path
) -> None:
    clock = Hands(at=100_000)
    teller = Teller(directory, "in", clock)
    clock.set_back_s = 7200
    for step in range(3):
        clock.at += 1
        teller.tell(update(100 * step))
    found = progress_of(place.config.work_directory, job, clock.now())
    assert found is not None
    assert (clock.now(), 100.0) == (found.began + 2_000_000, found.rate)


def test_rate_and_remaining_time_are_those_of_the_last_seconds(
    place: Place, job: Job, directory: Path
) -> None:
    clock = Hands()
    teller = Teller(directory, "in", clock)
    teller.tell(update(0, 10_000))
    clock.at += 1
    teller.tell(update(5_000, 10_000))  # what a former try had brought
    clock.at += 1
    teller.tell(update(5_000, 10_000))
    early = progress_of(place.config.work_directory, job, clock.now())
    assert early is not None
    assert (2500.0, None) == (early.rate, early.remaining_s), "the first seconds tell nothing of the rest"
    for step in range(30):
        clock.at += 1
        teller.tell(update(5_000 + 100 * (step + 1), 10_000))
    found = progress_of(place.config.work_directory, job, clock.now())
    assert found is not None
    assert (100.0, 20.0, 0.8) == (found.rate, found.remaining_s, found.fraction)
    assert (round(1000e6), clock.now()) == (found.began, found.told)
    for _ in range(20):  # its manifest is computed
        clock.at += 1
        teller.still()
    found = progress_of(place.config.work_directory, job, clock.now())
    assert found is not None
    assert (0.0, None) == (found.rate, found.remaining_s)


@pytest.mark.parametrize("trap", [os.mkfifo, lambda path: path.symlink_to("victim")])
def test_what_a_job_put_in_its_place_neither_holds_us_up_nor_leads_elsewhere(
    trap: Callable[[Path], object], place: Place, job: Job, directory: Path
) -> None:
    (directory / "victim").write_text("precious")
    trap(directory / "progress.json.new")
    clock = Hands()
    teller = Teller(directory, "in", clock)
    for _ in range(3):
        clock.at += 1
        teller.tell(update(1))
    assert progress_of(place.config.work_directory, job, clock.now()) is not None
    assert "precious" == (directory / "victim").read_text()


@pytest.mark.parametrize("change", [{"rate": 1e-320}, {"began": 2**62}, {"began": -(2**62)}, {"rate": 1e308}])
def test_numbers_that_nobody_of_us_wrote_do_no_harm(
    change: dict[str, Any], place: Place, job: Job, directory: Path
) -> None:
    clock = Clock()
    good = {"direction": "in", "began": clock.now(), "told": clock.now(), "files": 1, "size_bytes": 1}
    document = {**good, "total_bytes": 2, "rate": 1.0, **change}
    (directory / "progress.json").write_text(json.dumps(document))
    words.progress_fields(place.config, job)
    words.message_of(place.config, job)


def test_a_full_disk_does_not_stop_a_transfer_for_this(tmp_path: Path) -> None:
    clock = Hands()
    teller = Teller(tmp_path / "not there", "in", clock)
    for _ in range(3):
        clock.at += 1
        teller.tell(update(1))
    teller.close()


# ------------------------------------------------------------------------------------- seeing


def written(directory: Path, **more: Any) -> Progress:
    """Leave what a service writes."""
    now = Clock().now()
    values: dict[str, Any] = {"direction": "in", "began": now - 9_000_000, "told": now, "files": 3}
    values |= {"size_bytes": 580_000_000, "total_bytes": 1_000_000_000, "rate": 42e6, **more}
    (directory / "progress.json").write_text(json.dumps(values))
    return Progress(**values)


@pytest.mark.parametrize(
    "state", [S.STAGED_IN, S.RUNNING, S.POSTPROCESSED, S.EXECUTION_FAILED, S.STAGE_IN_FAILED, S.JOB_FINISHED]
)
def test_what_is_left_behind_says_nothing_of_a_job_that_has_moved_on(
    state: S, place: Place, job: Job, directory: Path
) -> None:
    left = written(directory)
    assert left == progress_of(place.config.work_directory, job, left.told)
    assert None is progress_of(place.config.work_directory, evolve(job, state=state), left.told)


def test_what_is_old_broken_or_a_link_is_not_seen(place: Place, job: Job, directory: Path) -> None:
    work = place.config.work_directory
    left = written(directory)
    assert None is progress_of(work, job, left.told + OLD_US)
    assert None is progress_of(work, job, left.told - OLD_US)
    file = directory / "progress.json"
    for text in ("", "{", "[]", '{"direction": "in"}', json.dumps({"size_bytes": -1}), "\xff", "[" * 60_000):
        file.write_text(text, encoding="latin-1")
        assert None is progress_of(work, job, left.told)
    written(directory)
    file.rename(directory / "elsewhere")
    file.symlink_to("elsewhere")
    assert None is progress_of(work, job, left.told)


def test_a_job_with_nothing_to_stage_costs_no_look_at_the_disk(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = place.keep(S.CREATED)
    monkeypatch.setattr(os, "open", None)
    assert None is progress_of(place.config.work_directory, job, 0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "58 % of 1.0 GB, 3 files, 42.0 MB/s, 10 s left"),
        ({"rate": None}, "58 % of 1.0 GB, 3 files"),
        ({"rate": 0.0}, "58 % of 1.0 GB, 3 files, 0 bytes/s"),
        ({"total_bytes": None}, "580.0 MB, 3 files, 42.0 MB/s"),
        ({"total_bytes": 0, "size_bytes": 0}, "0 bytes, 3 files, 42.0 MB/s, 0 ms left"),
        ({"size_bytes": 2_000_000_000}, "100 % of 1.0 GB, 3 files, being checked"),
    ],
)
def test_it_is_said_in_words(more: dict[str, Any], said: str, directory: Path) -> None:
    assert said == words.progress_words(written(directory, **more))


def test_sizes_are_for_people() -> None:
    assert ["0 bytes", "999 bytes", "1.0 kB", "2.5 MB", "3.0 GB", "4.0 TB"] == [
        sized(number) for number in (0, 999, 1000, 2.5e6, 3e9, 4e12)
    ]


def test_lists_and_a_job_show_it_in_words_and_to_machines(place: Place, job: Job, directory: Path) -> None:
    written(directory)
    assert "staging in: 58 % of 1.0 GB" in place.run("jobs").stdout
    assert (
        "transfer     58 % of 1.0 GB, 3 files, 42.0 MB/s, 10 s left\n" in place.run("job", str(job.id)).stdout
    )
    for document in (
        json.loads(place.run("jobs", "--json").stdout)[0],
        json.loads(place.run("job", str(job.id), "--json").stdout),
    ):
        progress = document["progress"]
        assert (0.58, 10.0, 42e6) == (progress["fraction"], progress["remaining_s"], progress["rate"])
        assert progress["told"].endswith("Z")
    (directory / "progress.json").unlink()
    assert "staging" not in place.run("jobs").stdout
    assert json.loads(place.run("job", str(job.id), "--json").stdout)["progress"] is None


@pytest.mark.parametrize("width", [120, 80, 40, 10])
def test_the_bar_fits_the_terminal_or_stays_away(width: int, directory: Path) -> None:
    rich_console = pytest.importorskip("rich.console")
    file = io.StringIO()
    terminal = rich_console.Console(file=file, force_terminal=True, width=width, color_system=None)
    terminal.print(words.progress_line("CREATED for 5.0 s", written(directory), width))
    (line,) = file.getvalue().splitlines()
    assert len(line) <= width
    assert ("━" in line) == (width >= 80)
    if width >= 80:
        assert line.startswith("CREATED for 5.0 s  ━")
        assert line.rstrip().endswith("58 % of 1.0 GB, 3 files, 42.0 MB/s, 10 s left")


def test_who_waits_or_watches_sees_it_move(place: Place, job: Job, directory: Path) -> None:
    rich_console = pytest.importorskip("rich.console")
    written(directory)
    terminal = rich_console.Console(
        file=io.StringIO(), force_terminal=True, width=140, height=24, color_system=None
    )
    followed = [Followed("one", lambda: job, job=job)]
    with Reader(place.config.store) as reader:
        looks = Looks(reader, place.config)
        for picture in (
            following._picture(place.config, followed, terminal),
            following._picture(place.config, followed * 2, terminal),
            watching._picture(looks, Choice(limit=20), terminal),
        ):
            with terminal.capture() as captured:
                terminal.print(picture)
            assert "58 % of 1.0 GB, 3 files, 42.0 MB/s, 10 s left" in captured.get()
        assert [job.id] == [found.id for found, _ in watching._transfers(looks, Choice(limit=20))]
        assert [] == list(watching._transfers(looks, Choice(limit=20, owner="nobody")))


def test_where_nothing_can_be_drawn_over_it_is_a_line_now_and_then(
    place: Place,
    job: Job,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written(directory)
    teller = following._Plain(place.config, several=True)
    followed = [Followed("one", lambda: job, job=job)]
    teller.present(followed)
    assert "" == capsys.readouterr().out
    monkeypatch.setattr(following, "PLAIN_EVERY_S", 0.0)
    teller.present(followed)
    assert "Z  staging in          one  58 % of 1.0 GB, 3 files" in capsys.readouterr().out


# ------------------------------------------------------------------------------- in a service


@pytest.mark.slow
def test_a_slow_transfer_of_a_service_is_seen_and_leaves_nothing(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.progress._EVERY_S", 0.05)
    edge.transfer = ScriptedTransfer(slow=True)
    edge.start()
    edge.send(input_url=f"file://{edge.site.base}/data/x")
    work, clock = edge.config.work_directory, Clock()
    edge.until(lambda: progress_of(work, edge.job(), clock.now()) is not None)
    edge.transfer.slow = False
    edge.wait("job", S.JOB_FINISHED)
    assert [] == list(batch.job_directory(work, edge.job().id).glob("progress*"))
