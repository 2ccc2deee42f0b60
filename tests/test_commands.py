"""Commands: they get what was built for them, and `run` always comes back."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecore import commands
from edgecore.commands import CommandNotFound, CommandResult, run
from edgecore.errors import ActionStopped

SH = "/bin/sh"


def shell(script: str, *, timeout_s: float = 30, **more: object) -> CommandResult:
    return run([SH, "-c", script], timeout_s=timeout_s, **more)  # type: ignore[arg-type]


def ended(pid: int) -> bool:
    """Tell whether a process is gone or only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -------------------------------------------------------------------------------- answers


def test_output_errors_and_exit_code_are_kept_apart() -> None:
    result = shell("echo out; echo err >&2; exit 3")
    assert (3, b"out\n", b"err\n", False) == (
        *(result.exit_code, result.output, result.errors, result.timed_out),
    )
    assert (SH, "-c", "echo out; echo err >&2; exit 3") == result.arguments
    assert "sh ended with exit code 3: err" == result.complaint()


def test_a_signal_is_a_negative_exit_code() -> None:
    assert -signal.SIGTERM == shell("kill -TERM $$").exit_code


def test_arguments_are_taken_as_they_are_and_no_shell_sees_them(tmp_path: Path) -> None:
    words = ["$HOME", "`id`", "; touch x", "a b", "*", "", "-n", "\n", "é", "'\""]
    code = "import sys; sys.stdout.buffer.write(b'\\0'.join(map(__import__('os').fsencode, sys.argv[1:])))"
    result = run([sys.executable, "-c", code, *words], timeout_s=30, directory=tmp_path)
    assert [word.encode() for word in words] == result.output.split(b"\0")
    assert [] == list(tmp_path.iterdir())


def test_bytes_that_are_not_utf_8_become_replacement_characters() -> None:
    assert "a\ufffdb" == shell(r"printf 'a\377b'").text


def test_a_complaint_is_one_line_and_falls_back_to_output_and_to_no_message() -> None:
    assert "sh ended with exit code 1: one; two" == shell("printf 'one\n\n  two \n' >&2; exit 1").complaint()
    assert "sh ended with exit code 2: said" == shell("echo said; exit 2").complaint()
    assert "sh ended with exit code 4: no message" == shell("exit 4").complaint()
    assert len(shell("head -c 5000 /dev/zero | tr '\\0' x >&2; exit 1").complaint()) < 600


def test_ten_megabytes_on_both_outputs_arrive_whole() -> None:
    result = shell("head -c 10485760 /dev/zero & head -c 10485760 /dev/zero >&2; wait")
    assert (0, 10_485_760, 10_485_760) == (result.exit_code, len(result.output), len(result.errors))


def test_input_arrives_whole_and_there_is_none_unless_given() -> None:
    given = os.urandom(1_000_000)
    assert given == run(["/bin/cat"], timeout_s=30, stdin=given).output
    assert b"" == run(["/bin/cat"], timeout_s=30).output


# ---------------------------------------------------------------------------- environment


def test_the_environment_is_built_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    lines = set(run(["/usr/bin/env"], timeout_s=30, environment={"A": "1"}).text.splitlines())
    assert {"A=1", "LC_ALL=C", f"PATH={os.defpath}"} == lines


def test_the_language_of_commands_is_always_c() -> None:
    result = run(["/usr/bin/env"], timeout_s=30, environment={"LC_ALL": "de_DE", "PATH": "/bin"})
    assert {"LC_ALL=C", "PATH=/bin"} == set(result.text.splitlines())


def test_a_command_is_looked_up_on_the_path_that_was_given(tmp_path: Path) -> None:
    program = tmp_path / "hello"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert "hello\n" == run(["hello"], timeout_s=30, environment=path).text
    with pytest.raises(CommandNotFound):
        run(["hello"], timeout_s=30)


def test_a_command_works_in_the_directory_that_was_given(tmp_path: Path) -> None:
    assert f"{tmp_path}\n" == shell("pwd -P", directory=tmp_path).text


def test_a_command_inherits_no_open_file(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert str(tmp_path / "open") not in shell("ls -l /proc/$$/fd").text


# ------------------------------------------------------------------------------ not found


@pytest.mark.parametrize("name", ["no-such-command", "/no/such/command"])
def test_a_command_that_is_not_there_is_named_with_where_it_was_looked_for(name: str) -> None:
    with pytest.raises(CommandNotFound, match=rf"cannot run {name}: No such file.*PATH={os.defpath}"):
        run([name], timeout_s=30)


def test_a_file_that_may_not_be_executed_is_not_found(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    with pytest.raises(CommandNotFound, match="Permission denied"):
        run([str(plain)], timeout_s=30)
    with pytest.raises(CommandNotFound, match="Not a directory"):
        run([f"{plain}/x"], timeout_s=30)


def test_a_file_that_is_no_program_is_not_found(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x7fELF garbage")
    garbage.chmod(0o755)
    with pytest.raises(CommandNotFound, match="Exec format error"):
        run([str(garbage)], timeout_s=30)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandNotFound, match=f"No such file or directory \\({tmp_path / 'none'}\\)"):
        run([SH, "-c", "true"], timeout_s=30, directory=tmp_path / "none")


# --------------------------------------------------------------------------------- time-out


@pytest.mark.slow
def test_when_its_time_is_up_the_whole_group_is_killed(tmp_path: Path) -> None:
    script = (
        "sleep 600 & echo $!; (trap '' TERM; sleep 600) & echo $!; echo $$; trap '' TERM INT HUP; sleep 600"
    )
    begun = time.monotonic()
    result = shell(script, timeout_s=1)
    assert time.monotonic() - begun < 10
    assert result.timed_out
    assert result.exit_code is None
    assert "sh gave no answer within 1 s" == result.complaint()
    pids = [int(line) for line in result.text.splitlines()]
    assert 3 == len(pids)
    wait_for(lambda: all(ended(pid) for pid in pids))


@pytest.mark.slow
def test_what_was_said_before_the_time_was_up_is_kept() -> None:
    assert b"half an answer" == shell("printf 'half an answer'; sleep 600", timeout_s=0.5).output


@pytest.mark.slow
@pytest.mark.parametrize("script", ["exec yes", "exec yes >&2", "head -c 200000 /dev/zero"])
def test_a_command_that_floods_us_is_ended_and_half_its_answer_is_none(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_OUTPUT_LIMIT_BYTES", 100_000)
    monkeypatch.setattr(commands, "_ASK_EVERY_S", 0.01)

    result = shell(script)

    assert (-signal.SIGKILL, False) == (result.exit_code, result.timed_out)
    assert "it wrote more than" in result.complaint()
    assert 100_000 >= len(result.output)


def test_a_complaint_is_made_of_what_was_said_first() -> None:
    errors = b"first\n" + b"\n" * 100_000 + b"last\n"
    result = CommandResult(arguments=("x",), exit_code=1, output=b"", errors=errors, duration_s=1)

    assert "x ended with exit code 1: first" == result.complaint()


def test_a_child_that_keeps_the_output_open_does_not_hold_us_up(tmp_path: Path) -> None:
    begun = time.monotonic()
    result = shell("sleep 600 & echo $!")
    assert time.monotonic() - begun < 10
    assert 0 == result.exit_code
    os.kill(int(result.text), signal.SIGKILL)  # a daemon may outlive its starter: this one is ours to end


@pytest.mark.slow
def test_an_exception_in_the_waiting_thread_leaves_no_process_behind(tmp_path: Path) -> None:
    def interrupted() -> bool:
        wait_for(lambda: note.exists() and bool(note.read_text().strip()))
        raise KeyboardInterrupt

    note = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt):
        shell(f"echo $$ >{note}; exec sleep 600", unwanted=interrupted)
    assert ended(int(note.read_text()))


# ---------------------------------------------------------------------------------- waiting


def test_the_end_of_a_command_is_waited_for_and_not_looked_for_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sleeps(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    monkeypatch.setattr(time, "sleep", sleeps)
    assert (3, b"done\n") == ((result := shell("sleep 0.05; echo done; exit 3")).exit_code, result.output)


@pytest.mark.parametrize("problem", [OSError(errno.ENOSYS, "an old kernel"), AttributeError("pidfd_open")])
def test_a_command_is_also_waited_for_where_the_kernel_cannot_tell_its_end(
    problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(pid: int) -> int:
        raise problem

    monkeypatch.setattr(os, "pidfd_open", refused)
    assert 3 == shell("sleep 0.02; exit 3").exit_code
    assert shell("sleep 600", timeout_s=0.05).timed_out


# --------------------------------------------------------------------------------- unwanted


@pytest.mark.slow
def test_a_command_that_nobody_wants_any_more_is_killed_with_all_its_group(tmp_path: Path) -> None:
    note = tmp_path / "pids"

    def unwanted() -> bool:
        return note.exists() and 2 == len(note.read_text().split())

    begun = time.monotonic()
    with pytest.raises(ActionStopped, match="/bin/sh was stopped on the way"):
        shell(f"trap '' TERM; sleep 600 & echo $! $$ >{note}; wait; sleep 600", unwanted=unwanted)
    assert time.monotonic() - begun < 10
    pids = [int(word) for word in note.read_text().split()]
    wait_for(lambda: all(ended(pid) for pid in pids))


@pytest.mark.slow
def test_a_command_may_be_asked_to_end_before_it_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "note"
    asked = tmp_path / "asked"
    stubborn = f"(trap '' TERM; sh -c 'echo $PPID' >{note}; sleep 600; sleep 600)"
    script = f"trap 'touch {asked}; exit 1' TERM; {stubborn} & wait"
    begun = time.monotonic()
    with pytest.raises(ActionStopped):
        shell(script, unwanted=lambda: note.exists() and bool(note.read_text()), ending_s=60)
    assert time.monotonic() - begun < 30
    assert asked.exists()
    wait_for(lambda: ended(int(note.read_text())))


def test_a_command_that_we_may_not_kill_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(group: int, number: int) -> None:
        os.kill(group, signal.SIGKILL)  # for it to leave nothing behind
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", refused)
    assert run(["sleep", "600"], timeout_s=0.01, ending_s=20).timed_out


def test_a_command_that_has_ended_is_answered_although_nobody_wants_it_now() -> None:
    assert (0, b"done\n") == (
        *((result := shell("echo done", unwanted=lambda: True)).exit_code, result.output),
    )


@pytest.mark.parametrize("arguments", [["true", "a\0b"], ["tr\0ue"]])
def test_arguments_that_no_program_can_be_given_are_told_as_an_error_of_ours(arguments: list[str]) -> None:
    with pytest.raises(CommandNotFound, match="correct them where they are configured"):
        run(arguments, timeout_s=10)
