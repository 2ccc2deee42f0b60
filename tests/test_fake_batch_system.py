"""The fake batch system of the contract tests does what they rely on: it runs, counts, spoils, and leaves nothing."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from record_dialect import RecordDialect

from edgecore.commands import CommandResult, run
from edgecore.models import NativeState, Refusal
from edgecore.processes import user_name
from edgecore.testing.fake import FakeBatchSystem, PlainDialect
from edgecore.testing.fake.records import Condition
from edgecore.testing.site import wait_for
from edgecore.testing.words import Command, Ending, Garbling, SubmitFault, Word

pytestmark = pytest.mark.slow

DEADLINE_S = 30.0


class Plain:
    """A plain batch system with a place for scripts, and its commands as a user runs them."""

    def __init__(self, base: Path, system: FakeBatchSystem) -> None:
        self.base = base
        self.system = system
        self.ledger = base / "ledger.txt"

    def run(self, *arguments: str, timeout_s: float = DEADLINE_S, stdin: bytes = b"") -> CommandResult:
        return run(
            arguments,
            timeout_s=timeout_s,
            environment=self.system.environment,
            directory=self.base,
            stdin=stdin,
        )

    def script(self, text: str, name: str = "script.sh") -> str:
        (self.base / name).write_text(text)
        return str(self.base / name)

    def submit(self, text: str = "exit 0\n", *options: str) -> str:
        result = self.run("fsub", *options, self.script(text))
        assert 0 == result.exit_code, result.complaint()
        return result.text.split()[1]

    def sleeper(self, *options: str) -> str:
        """Submit a job that runs until it is killed, and wait until it does."""
        batch_id = self.submit("trap '' TERM\necho $$ >pid\nwhile true; do sleep 1; done\n", *options)
        wait_for(lambda: (self.base / "pid").exists() and (self.base / "pid").read_text(), DEADLINE_S)
        return batch_id

    def lines(self, command: str = "fstat") -> dict[str, list[str]]:
        """Return the fields that a listing has of each job."""
        result = self.run(command)
        assert 0 == result.exit_code, result.complaint()
        return {line.split("|")[0]: line.split("|")[1:] for line in result.text.splitlines()[1:]}

    def word(self, batch_id: str, command: str = "fstat") -> str:
        return self.lines(command)[batch_id][2]

    def state(self, batch_id: str) -> NativeState:
        return next(job.state for job in self.system.jobs() if job.batch_id == batch_id)

    def wait_state(self, batch_id: str, state: NativeState) -> None:
        wait_for(lambda: self.state(batch_id) is state, DEADLINE_S, self.system.records)

    def wait_all_ended(self) -> None:
        def ended() -> bool:
            return {NativeState.ENDED} >= {job.state for job in self.system.jobs()}

        wait_for(ended, 2 * DEADLINE_S, self.system.records)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Plain]]:
    made: list[FakeBatchSystem] = []

    def make_one(**options: float) -> Plain:
        system = FakeBatchSystem(tmp_path / "fake", PlainDialect, kill_grace_s=0.2, **options)  # type: ignore[arg-type]
        made.append(system)
        return Plain(tmp_path, system)

    yield make_one
    for system in made:
        system.close()
    assert [] == alive_in(tmp_path)


@pytest.fixture
def plain(make: Callable[..., Plain]) -> Plain:
    return make(slots=2)


def alive_in(directory: Path) -> list[str]:
    """Return the processes that work in *directory*, or were started with it as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        if where.startswith(str(directory)) or os.fsencode(directory) in command:
            found.append(f"{entry.name} {where} {command!r}")
    return found


def children(pid: int) -> list[str]:
    """Return the programs that the children of a process run."""
    numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{number}/comm").read_text().strip() for number in numbers]


# ------------------------------------------------------------------------------------ running


def test_a_script_runs_in_its_directory_with_its_id_and_a_built_environment(plain: Plain) -> None:
    (plain.base / "there").mkdir()
    batch_id = plain.submit("pwd >out; env >>out\n", "--directory", str(plain.base / "there"))
    plain.wait_state(batch_id, NativeState.ENDED)
    where, *variables = (plain.base / "there" / "out").read_text().splitlines()
    assert str(plain.base / "there") == where
    names = {line.partition("=")[0] for line in variables}
    assert f"FAKE_JOB_ID={batch_id}" in variables
    assert {"PATH", "FAKE_JOB_ID"} == names - {"PWD", "OLDPWD", "SHLVL", "_"}


def test_a_script_is_run_by_the_interpreter_that_it_names(plain: Plain) -> None:
    batch_id = plain.submit("#!/usr/bin/env -S sh -e\nfalse\nexit 0\n")
    plain.wait_state(batch_id, NativeState.ENDED)
    assert "1" == plain.lines("facct")[batch_id][6]


def test_a_script_is_copied_when_it_is_submitted(plain: Plain) -> None:
    plain.system.pause()
    batch_id = plain.submit("exit 7\n")
    plain.script("exit 8\n")
    plain.system.resume()
    plain.wait_state(batch_id, NativeState.ENDED)
    assert "7" == plain.lines("facct")[batch_id][6]


def test_members_of_an_array_have_ids_and_indexes_of_their_own(plain: Plain) -> None:
    number = plain.submit("echo $FAKE_JOB_ID $FAKE_INDEX >>ledger.txt\n", "--array", "0,2,5")
    plain.wait_all_ended()
    expected = {f"{number}_{index} {index}" for index in (0, 2, 5)}
    assert expected == set(plain.ledger.read_text().splitlines())
    assert {f"{number}_{index}" for index in (0, 2, 5)} == set(plain.lines("facct"))


def test_no_more_jobs_run_at_once_than_there_are_slots(plain: Plain) -> None:
    plain.submit("echo + >>ledger.txt; sleep 0.05; echo - >>ledger.txt\n", "--array", "0,1,2,3,4,5,6,7")
    plain.wait_all_ended()
    running = most = 0
    for sign in plain.ledger.read_text().split():
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert 2 == most
    assert [1] * 8 == [job.executions for job in plain.system.jobs()]


def test_an_end_is_on_record_although_nobody_looks(plain: Plain) -> None:
    plain.submit("exit 3\n")
    with sqlite3.connect(plain.system.place / "state.sqlite") as database:
        query = "SELECT condition, exit_code FROM jobs"
        wait_for(lambda: database.execute(query).fetchall() == [("failed", 3)], DEADLINE_S)
    database.close()


def test_a_paused_batch_system_starts_nothing_until_it_is_resumed(plain: Plain) -> None:
    plain.system.pause()
    batch_id = plain.submit()
    assert ("WAIT", "waits for nodes") == (plain.word(batch_id), plain.lines()[batch_id][6])
    assert 0 == plain.system.jobs()[0].executions
    plain.system.resume()
    plain.wait_state(batch_id, NativeState.ENDED)
    assert 1 == plain.system.jobs()[0].executions


def test_a_job_is_ended_at_its_walltime(make: Callable[..., Plain]) -> None:
    plain = make(minute_s=0.3)
    batch_id = plain.sleeper("--minutes", "1")
    plain.wait_state(batch_id, NativeState.ENDED)
    assert "TIME_LIMIT" == plain.word(batch_id, "facct")


def test_what_a_script_leaves_behind_ends_with_it(plain: Plain) -> None:
    batch_id = plain.submit("sleep 600 &\nexit 0\n")
    plain.wait_state(batch_id, NativeState.ENDED)
    wait_for(lambda: not alive_in(plain.base), DEADLINE_S, lambda: alive_in(plain.base))


def test_a_script_that_cannot_be_started_fails(plain: Plain) -> None:
    batch_id = plain.submit("#!/no/such/interpreter\n")
    plain.wait_state(batch_id, NativeState.ENDED)
    assert "FAIL" == plain.word(batch_id, "facct")


def test_a_job_whose_runner_dies_ends_without_an_exit_code(plain: Plain) -> None:
    batch_id = plain.sleeper()
    with sqlite3.connect(plain.system.place / "state.sqlite") as database:
        ((runner,),) = database.execute("SELECT pid FROM runners WHERE busy = 1").fetchall()
    database.close()
    os.kill(runner, signal.SIGKILL)
    plain.wait_state(batch_id, NativeState.ENDED)
    assert ["NODE_FAIL", ""] == [plain.lines("facct")[batch_id][field] for field in (2, 6)]


_MAKER = """
import subprocess, sys, time
from pathlib import Path
from edgecore.testing.fake import FakeBatchSystem, PlainDialect
from edgecore.testing.words import Command
place = Path(sys.argv[1])
system = FakeBatchSystem(place / "fake", PlainDialect, slots=1)
for name in ("first.sh", "second.sh"):
    (place / name).write_text("echo >" + name + ".runs; sleep 600")
    subprocess.run(["fsub", str(place / name)], env=system.environment, check=True, cwd=place, stdout=2)
with system.hanging(Command.QUERY):
    subprocess.Popen(["fstat"], env=system.environment, cwd=place, stdout=subprocess.DEVNULL)
    print("made", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_batch_system_ends_with_the_process_that_made_it(number: int, tmp_path: Path) -> None:
    """A test run that is killed leaves neither jobs nor commands behind, and starts none that still waits."""
    maker = subprocess.Popen([sys.executable, "-c", _MAKER, str(tmp_path)], stdout=subprocess.PIPE)
    with maker:
        assert maker.stdout is not None
        assert b"made\n" == maker.stdout.readline()
        wait_for(lambda: (tmp_path / "first.sh.runs").exists(), DEADLINE_S)
        wait_for(lambda: sum("fstat" in each for each in alive_in(tmp_path)) >= 1, DEADLINE_S)
        maker.send_signal(number)
    wait_for(lambda: not alive_in(tmp_path), DEADLINE_S, lambda: alive_in(tmp_path))
    assert not (tmp_path / "second.sh.runs").exists()


# ----------------------------------------------------------------------------------- steering


def test_a_cancelled_job_gets_term_and_then_kill(plain: Plain) -> None:
    batch_id = plain.sleeper()
    assert 0 == plain.run("fdel", batch_id).exit_code
    plain.wait_state(batch_id, NativeState.ENDED)
    fields = plain.lines("facct")[batch_id]
    assert [f"CANCELLED by {user_name()}", "9"] == [fields[2], fields[7]]


def test_a_job_that_has_another_name_is_left_alone(plain: Plain) -> None:
    plain.system.pause()
    batch_id = plain.submit("exit 0\n", "--name", "mine")
    assert f"fdel: {batch_id}: no such job\n" == plain.run("fdel", f"{batch_id}/other").errors.decode()
    assert "WAIT" == plain.word(batch_id)
    assert 0 == plain.run("fdel", f"{batch_id}/mine").exit_code
    assert {} == plain.lines()
    assert 0 == plain.system.jobs()[0].executions


def test_holds_keep_a_job_from_starting_and_say_whose_they_are(plain: Plain) -> None:
    plain.system.pause()
    ours, theirs = plain.submit(), plain.submit()
    plain.run("fhold", ours)
    plain.system.hold(theirs)
    plain.system.resume()
    held = {batch_id: (fields[2], fields[6]) for batch_id, fields in plain.lines().items()}
    assert {ours: ("HOLD", "held by its user"), theirs: ("HOLD", "held by an administrator")} == held
    plain.run("frls", ours)
    plain.system.release(theirs)
    plain.wait_all_ended()
    assert [1, 1] == [job.executions for job in plain.system.jobs()]


@pytest.mark.parametrize(
    ("ending", "word"),
    [
        (Ending.CANCELLED, "CANCELLED by operator"),
        (Ending.NODE_FAILURE, "NODE_FAIL"),
        (Ending.OUT_OF_MEMORY, "NO_MEMORY"),
        (Ending.TIME_LIMIT, "TIME_LIMIT"),
    ],
)
def test_an_interrupted_job_is_killed_without_a_word(plain: Plain, ending: Ending, word: str) -> None:
    running = plain.sleeper()
    plain.system.pause()
    waiting = plain.submit()
    for batch_id in (running, waiting):
        plain.system.interrupt(batch_id, ending)
    assert [word, word] == [plain.word(batch_id, "facct") for batch_id in (running, waiting)]
    assert [1, 0] == [job.executions for job in plain.system.jobs()]
    wait_for(lambda: not alive_in(plain.base), DEADLINE_S, lambda: alive_in(plain.base))


def test_a_requeued_job_runs_again_under_its_id(plain: Plain) -> None:
    batch_id = plain.submit("echo $$ >>ledger.txt; [ -e go ] || sleep 600\n")
    wait_for(lambda: plain.ledger.exists() and plain.ledger.read_text(), DEADLINE_S)
    (plain.base / "go").touch()
    plain.system.requeue(batch_id)
    plain.wait_state(batch_id, NativeState.ENDED)
    plain.system.requeue(batch_id)
    wait_for(lambda: len(plain.ledger.read_text().split()) == 3, DEADLINE_S)
    plain.wait_state(batch_id, NativeState.ENDED)
    assert [3] == [job.executions for job in plain.system.jobs()]
    assert "DONE" == plain.word(batch_id, "facct")


def test_a_forgotten_job_runs_on_unlisted(plain: Plain) -> None:
    batch_id = plain.submit("until [ -e go ]; do sleep 0.02; done; echo end >ledger.txt\n")
    plain.wait_state(batch_id, NativeState.RUNNING)
    plain.system.forget(batch_id)
    assert [{}, {}] == [plain.lines(), plain.lines("facct")]
    (plain.base / "go").touch()
    wait_for(plain.ledger.exists, DEADLINE_S)
    assert [batch_id] == [job.batch_id for job in plain.system.jobs()]


def test_a_lost_job_never_was_and_its_id_can_be_somebody_elses(plain: Plain) -> None:
    plain.system.pause()
    batch_id = plain.submit()
    plain.system.lose(batch_id)
    plain.system.resume()
    assert [{}, {}] == [plain.lines(), plain.lines("facct")]
    plain.system.give_away(batch_id)
    assert ["analysis", "stranger", "RUN"] == plain.lines()[batch_id][:3]
    assert plain.system.stranger_is_alive(batch_id)
    assert 1 == plain.run("fdel", f"{batch_id}/script.sh").exit_code
    assert plain.system.stranger_is_alive(batch_id)
    plain.run("fdel", batch_id)
    assert not plain.system.stranger_is_alive(batch_id)
    assert [0] == [job.executions for job in plain.system.jobs()]


def test_steering_a_job_that_is_not_there_says_which_are(plain: Plain) -> None:
    plain.submit()
    with pytest.raises(LookupError, match="no job 17; it has: 1"):
        plain.system.hold("17")


# ----------------------------------------------------------------------------------- spoiling


def test_commands_fail_as_often_as_asked(plain: Plain) -> None:
    with plain.system.failing(Command.QUERY, times=2):
        codes = [plain.run(command).exit_code for command in ("fstat", "facct", "fstat", "fstat")]
    assert [111, 0, 111, 0] == codes
    assert [3, 1] == [plain.system.asked(Command.QUERY), plain.system.asked(Command.ACCOUNTING)]


def test_a_failing_command_accepts_nothing(plain: Plain) -> None:
    script = plain.script("exit 0\n")
    with plain.system.failing(Command.SUBMIT):
        assert 111 == plain.run("fsub", script).exit_code
    assert [] == plain.system.jobs()


def test_a_hanging_command_leaves_a_child_with_its_output(plain: Plain) -> None:
    with plain.system.hanging(Command.QUERY):
        process = subprocess.Popen(
            [plain.system.bin / "fstat"],
            stdout=subprocess.PIPE,
            env=plain.system.environment,
            process_group=0,
        )
        wait_for(lambda: "sleep" in children(process.pid), DEADLINE_S)
        process.kill()
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        assert process.stdout.read() is None  # it is not at its end: somebody could still write
        process.wait()
    plain.system.close()
    os.set_blocking(process.stdout.fileno(), True)
    assert b"" == process.stdout.read()
    process.stdout.close()


def test_accounting_can_be_off(plain: Plain) -> None:
    plain.submit()
    with plain.system.without_accounting():
        assert "accounting is switched off" in plain.run("facct").complaint()
        assert 0 == plain.run("fstat").exit_code
    assert 0 == plain.run("facct").exit_code


def test_accounting_can_stay_behind(plain: Plain) -> None:
    plain.system.pause()
    first = plain.submit()
    with plain.system.accounting_behind():
        plain.system.resume()
        plain.submit()
        plain.wait_all_ended()
        assert {first: "WAIT"} == {batch_id: fields[2] for batch_id, fields in plain.lines("facct").items()}
    assert {"DONE"} == {fields[2] for fields in plain.lines("facct").values()}


def test_one_job_can_be_left_out_or_shown_in_another_way(plain: Plain) -> None:
    plain.system.pause()
    number = plain.submit("exit 0\n", "--array", "0,1")
    first, second = f"{number}_0", f"{number}_1"
    with plain.system.unlisted(first):
        assert [{second}, {second}] == [set(plain.lines()), set(plain.lines("facct"))]
    with plain.system.showing(first, Word.UNKNOWN):
        assert ["QUANTUM_FLUX", "WAIT"] == [plain.word(first), plain.word(second)]
    with plain.system.showing(first, Word.DECORATED):
        assert ["WAIT*", "WAIT"] == [plain.word(first), plain.word(second)]
    assert ["WAIT", "WAIT"] == [plain.word(first), plain.word(second)]


@pytest.mark.parametrize("command", ["fstat", "facct"])
def test_only_the_line_of_one_job_is_garbled(plain: Plain, command: str) -> None:
    plain.system.pause()
    number = plain.submit("exit 0\n", "--array", "0,1,2")
    clean = plain.run(command).output.splitlines()
    line = clean[2]
    found = {}
    for how in Garbling:
        with plain.system.garbling(f"{number}_1", how):
            found[how] = plain.run(command).output
    others = [clean[0], clean[1], clean[3]]
    assert b"" == found.pop(Garbling.EMPTY)
    for how, output in found.items():
        assert line not in output, how
        assert others == [each for each in output.splitlines() if each in clean], how
    assert found[Garbling.TRUNCATED].endswith(line[: len(line + b"\n") // 2])
    assert b"\xff" in found[Garbling.NOT_UTF8]
    assert clean == plain.run(command).output.splitlines()


def test_an_accepted_submission_can_be_answered_wrongly(plain: Plain) -> None:
    script = plain.script("exit 0\n")
    with plain.system.spoil_submit(SubmitFault.FAILS_WITH_ID):
        result = plain.run("fsub", script)
        assert (111, "submitted 1\n") == (result.exit_code, result.text)
    with plain.system.spoil_submit(SubmitFault.DIES):
        result = plain.run("fsub", script)
        assert (-signal.SIGKILL, b"") == (result.exit_code, result.output)
    with plain.system.spoil_submit(SubmitFault.HANGS):
        result = plain.run("fsub", script, timeout_s=2)
        assert (None, b"") == (result.exit_code, result.output)
    with plain.system.spoil_submit(SubmitFault.NEVER_RUNS):
        assert "submitted 4\n" == plain.run("fsub", script).text
    for batch_id in "123":
        plain.wait_state(batch_id, NativeState.ENDED)
    assert [1, 1, 1, 0] == [job.executions for job in plain.system.jobs()]
    assert "never: asks for more than there is" == plain.lines()["4"][6]


def test_what_can_never_run_does_not_run_after_a_hold_either(plain: Plain) -> None:
    with plain.system.spoil_submit(SubmitFault.NEVER_RUNS):
        stuck = plain.submit()
    plain.run("fhold", stuck)
    assert "HOLD" == plain.word(stuck)
    plain.run("frls", stuck)
    plain.wait_state(plain.submit(), NativeState.ENDED)
    assert ["WAIT", "never: asks for more than there is"] == [plain.lines()[stuck][field] for field in (2, 6)]


@pytest.mark.parametrize("kind", [Refusal.PERMANENT, Refusal.TRANSIENT])
def test_a_refused_submission_is_not_in_the_queue(plain: Plain, kind: Refusal) -> None:
    script = plain.script("exit 0\n")
    with plain.system.refusing(kind) as words:
        result = plain.run("fsub", script)
    assert words in result.complaint()
    assert 0 != result.exit_code
    assert [] == plain.system.jobs()


def test_the_words_of_a_refusal_are_its_first_line(tmp_path: Path) -> None:
    with (
        FakeBatchSystem(tmp_path / "fake", RecordDialect) as system,
        system.refusing(Refusal.PERMANENT) as words,
    ):
        result = run(["control", "submit"], timeout_s=DEADLINE_S, environment=system.environment)
    assert "Unknown queue" == words
    assert "control ended with exit code 1: Unknown queue; Try --help" == result.complaint()


def test_noise_is_more_than_a_pipe_holds_and_stands_beside_the_answer(plain: Plain) -> None:
    quiet = plain.run("fstat")
    with plain.system.noisy():
        noisy = plain.run("fstat")
    assert (0, quiet.output) == (noisy.exit_code, noisy.output)
    assert b"" == quiet.errors
    assert 65_536 < len(noisy.errors)


def test_a_job_tells_what_was_asked_for_it(plain: Plain) -> None:
    plain.system.pause()
    plain.submit("exit 0\n", "--nodes=2", "--processes=3", "--minutes=17", "--queue=long", "--option=a=b")
    (job,) = plain.system.jobs()
    expected = {"num_nodes": 2, "processes_per_node": 3, "wall_time_minutes": 17, "queue": "long"}
    expected |= {"project": "", "comment": "", "restartable": True, "options": {"a": "b"}}
    assert expected == job.request


# ------------------------------------------------------------------------- crowds and crashes


def test_eight_processes_that_submit_at_once_lose_nothing(plain: Plain) -> None:
    script = plain.script("echo $FAKE_JOB_ID >>ledger.txt\n")
    loop = f"for i in 1 2 3; do fsub {script} || exit 1; done"
    shells = [
        subprocess.Popen(
            ["/bin/sh", "-c", loop],
            env=plain.system.environment,
            stdout=subprocess.PIPE,
            text=True,
            cwd=plain.base,
        )
        for _ in range(8)
    ]
    printed = [line for shell in shells for line in shell.communicate()[0].splitlines()]
    assert [0] * 8 == [shell.returncode for shell in shells]
    plain.wait_all_ended()
    expected = sorted(str(number) for number in range(1, 25))
    assert expected == sorted(line.split()[1] for line in printed)
    assert expected == sorted(plain.ledger.read_text().split())
    assert [1] * 24 == [job.executions for job in plain.system.jobs()]


def test_commands_that_are_killed_leave_a_sound_state(plain: Plain) -> None:
    text = "echo $FAKE_JOB_ID >>ledger.txt\n"
    begun = time.perf_counter()
    plain.submit(text)
    takes_s = time.perf_counter() - begun
    chance = random.Random(1)
    for _ in range(25):
        process = subprocess.Popen(
            [plain.system.bin / "fsub", plain.script(text)],
            env=plain.system.environment,
            stdout=subprocess.DEVNULL,
            cwd=plain.base,
        )
        time.sleep(chance.uniform(0.5, 1.2) * takes_s)  # the moment of its death, not a wait
        process.kill()
        process.wait()
    plain.submit(text)
    plain.wait_all_ended()
    with sqlite3.connect(plain.system.place / "state.sqlite") as database:
        assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
    database.close()
    jobs = plain.system.jobs()
    assert [str(number) for number in range(1, len(jobs) + 1)] == [job.batch_id for job in jobs]
    assert {1} == {job.executions for job in jobs}
    assert sorted(job.batch_id for job in jobs) == sorted(plain.ledger.read_text().split())


def test_ten_thousand_jobs_are_listed_in_a_moment(plain: Plain) -> None:
    plain.system.pause()
    number = plain.submit("exit 0\n", "--array", ",".join(map(str, range(10_000))))
    begun = time.perf_counter()
    assert 10_000 == len(plain.lines())
    assert f"{number}_9999" in plain.lines("facct")
    assert time.perf_counter() - begun < 10


def test_closing_kills_what_runs_and_hangs_and_may_be_done_twice(plain: Plain) -> None:
    plain.sleeper()
    plain.submit("sleep 600 & sleep 600\n")
    with plain.system.hanging(Command.QUERY):
        assert plain.run("fstat", timeout_s=1).timed_out
        plain.system.close()
    plain.system.close()
    assert 111 == plain.run("fstat").exit_code


# ---------------------------------------------------------------------------- other dialects


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Plain]:
    with FakeBatchSystem(tmp_path / "fake", RecordDialect, first_number=12) as system:
        yield Plain(tmp_path, system)


def test_one_executable_may_have_several_kinds_of_commands(records: Plain) -> None:
    with records.system.failing(Command.HOLD):
        assert "12.host\n" == records.run("control", "submit", stdin=b"exit 0\n").text
        assert 1 == records.run("control", "hold", "12.host").exit_code
    assert "control 1.0\n" == records.run("control", "version").text
    assert (3, b"control: what is dance?\n") == _ending(records.run("control", "dance"))
    asked = [records.system.asked(kind) for kind in (Command.SUBMIT, Command.HOLD, Command.QUERY)]
    assert [1, 1, 1] == asked


def _ending(result: CommandResult) -> tuple[int | None, bytes]:
    return result.exit_code, result.errors


def test_a_record_of_several_lines_is_spoilt_as_one(records: Plain) -> None:
    records.system.pause()
    records.run("control", "submit", "2", stdin=b"exit 0\n")
    record = "Job Id: 12[{}].host\n    Name = job\n    state = W\n"
    assert f"{record.format(0)}\n{record.format(1)}\n" == records.run("control", "show").text
    with records.system.garbling("12[0].host", Garbling.TRUNCATED):
        cut = record.format(0)[: len(record.format(0)) // 2]
        assert f"{record.format(1)}\n{cut}" == records.run("control", "show").text
    with records.system.garbling("12[0].host", Garbling.BROKEN_LINE):
        broken, whole = records.run("control", "show").text.split("\n\n", 1)
        assert f"{record.format(1)}\n" == whole
        assert record.format(0).startswith(broken)


def test_an_id_of_an_array_stands_for_its_members_and_unknown_ones_are_told(records: Plain) -> None:
    records.system.pause()
    records.run("control", "submit", "2", stdin=b"exit 0\n")
    shown = records.run("control", "show", "12.host", "99.host")
    assert (153, b"Unknown Job Id 99.host\n") == _ending(shown)
    assert 2 == shown.text.count("Job Id")
    assert "2\n" == records.run("control", "hold", "12.host").text
    assert {Condition.HELD} == {job.condition for job in records.system.records()}


def test_a_listing_may_keep_what_ended(records: Plain) -> None:
    records.run("control", "submit", stdin=b"echo $RECORD_ID >ledger.txt\n")
    records.wait_all_ended()
    assert "12.host\n" == records.ledger.read_text()
    assert "state = C\n" in records.run("control", "show").text
    records.system.forget("12.host")
    assert "\n" == records.run("control", "show").text


def test_what_can_never_run_may_be_held_for_that(records: Plain) -> None:
    with records.system.spoil_submit(SubmitFault.NEVER_RUNS):
        records.run("control", "submit", stdin=b"exit 0\n")
    assert "state = H\n" in records.run("control", "show").text
    records.system.release("12.host")
    assert "state = H\n" in records.run("control", "show").text
