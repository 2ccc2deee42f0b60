"""Wake-ups: between threads, between processes, and what is left of those who died."""

from __future__ import annotations

import fcntl
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from edgecore.wakeup import Bell, ring

LONG_S = 20.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "bells"


@pytest.fixture
def bell(place: Path) -> Iterator[Bell]:
    with closing(Bell(place)) as bell:
        yield bell


def test_a_ring_before_the_wait_is_not_missed_and_counts_once(place: Path, bell: Bell) -> None:
    for _ in range(5):
        ring(place)
    assert bell.wait(LONG_S)
    assert not bell.wait(0)


def test_a_wait_without_a_ring_ends_after_its_time(bell: Bell) -> None:
    begun = time.monotonic()
    assert not bell.wait(0.1)
    assert 0.1 <= time.monotonic() - begun < LONG_S


def test_a_thread_wakes_a_waiting_thread(bell: Bell) -> None:
    timer = threading.Timer(0.05, bell.ring)
    timer.start()
    assert bell.wait(LONG_S)
    timer.join()


def test_ringing_where_nobody_ever_waited_is_nothing(place: Path) -> None:
    ring(place)
    assert not place.exists()


def test_every_waiter_of_a_directory_is_woken_and_no_other(place: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        here = [stack.enter_context(closing(Bell(place))) for _ in range(3)]
        elsewhere = stack.enter_context(closing(Bell(tmp_path / "other")))
        ring(place)
        assert [True] * 3 == [bell.wait(LONG_S) for bell in here]
        assert not elsewhere.wait(0)


def test_a_full_bell_never_holds_up_who_rings(place: Path, bell: Bell) -> None:
    for _ in range(70_000):  # more than a FIFO takes
        bell.ring()
    ring(place)
    assert bell.wait(LONG_S)
    assert not bell.wait(0)


def test_a_closed_bell_leaves_nothing_and_waits_for_nothing(place: Path) -> None:
    bell = Bell(place)
    bell.close()
    bell.close()
    bell.ring()
    assert not bell.wait(LONG_S)
    assert [] == list(place.iterdir())


def test_only_its_owner_may_ring_or_hear(place: Path, bell: Bell) -> None:
    (fifo,) = place.iterdir()
    assert 0o600 == stat.S_IMODE(fifo.stat().st_mode)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_what_lies_there_and_is_no_bell_is_left_alone(place: Path, bell: Bell, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (place / "link").symlink_to(target)
    ring(place)
    assert bell.wait(LONG_S)
    assert "precious" == target.read_text()


_WAITER = """
import sys
from pathlib import Path
from edgecore.wakeup import Bell
bell = Bell(Path(sys.argv[1]))
print("waits", flush=True)
for _ in range(int(sys.argv[2])):
    print("woken" if bell.wait(60) else "slept", flush=True)
"""


def waiter(place: Path, times: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITER, str(place), str(times)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "waits\n" == process.stdout.readline()
    return process


@pytest.mark.slow
def test_processes_wake_each_other_at_once(place: Path) -> None:
    waiting = [waiter(place, 5) for _ in range(3)]
    try:
        for _ in range(5):
            ring(place)
            for process in waiting:
                assert process.stdout is not None
                assert "woken\n" == process.stdout.readline()
    finally:
        for process in waiting:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_the_bell_of_a_killed_process_is_removed_by_the_next_ring_and_others_are_woken(
    place: Path, bell: Bell
) -> None:
    dead = waiter(place, 1)
    dead.kill()
    dead.communicate()
    assert 2 == len(list(place.iterdir()))
    ring(place)
    assert bell.wait(LONG_S)
    assert 1 == len(list(place.iterdir()))


@pytest.mark.slow
def test_a_bell_is_never_seen_before_it_can_be_rung(place: Path) -> None:
    """Ring all the time while bells are made: none may be taken for that of a dead process."""
    place.mkdir()
    done = threading.Event()

    def always() -> None:
        while not done.is_set():
            ring(place)

    ringing = threading.Thread(target=always)
    ringing.start()
    try:
        for _ in range(300):
            with closing(Bell(place)) as bell:
                assert bell.wait(LONG_S)
    finally:
        done.set()
        ringing.join()


def test_a_command_that_is_started_inherits_no_bell(place: Path, bell: Bell) -> None:
    (fifo,) = place.iterdir()
    code = "import os; print([os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=False
    )
    assert str(fifo) not in output.stdout
    assert os.path.basename(fifo) not in output.stdout


def test_a_bell_is_heard_also_in_a_process_with_thousands_of_open_files(place: Path, bell: Bell) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft <= 1100:
        pytest.skip(f"this process may open {soft} files only")
    high = fcntl.fcntl(bell._fd, fcntl.F_DUPFD_CLOEXEC, 1100)  # select() ends at 1023
    os.close(bell._fd)
    bell._fd = high
    ring(place)
    assert bell.wait(LONG_S)
