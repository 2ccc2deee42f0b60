"""Follow a page of the documentation literally: write the files that it shows, run its commands, compare.

What a page must look like to be followed:

- A fenced block right below a line that ends with a file's name in backticks and a colon is that file; where the
  line begins with ``Add to``, it is added at its end.
- A fenced block ``console`` holds commands after ``$`` and, below a command, what it prints. Nothing shown:
  nothing compared. Blocks of other languages are not run.
- A command succeeds, unless the one after it is ``echo $?``.
- In what is shown, ``...`` stands for anything within a line, or alone for any lines. Times and our
  ids of jobs are shown as they look, and stand for any other; spaces that align columns may differ.
- All commands of a page run in one shell, in a directory that begins empty.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen
from packages import Environment

from edgecore.builtin.fork_spool import lock_file, supervised

__all__ = ["Block", "Command", "File", "Follower", "blocks", "matches", "steps"]

_FENCE: Final = re.compile(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)
_NAMED: Final = re.compile(r"`([\w./-]+)`[^`\n]*:\s*\Z")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?Z")
_ID: Final = re.compile(r"\b1\d{15}\b")


@frozen
class File:
    """A file that the page tells the reader to write."""

    name: str
    content: str
    added: bool = False
    """Whether the content goes to the end of what is there."""


@frozen
class Command:
    """A command that the page tells the reader to type, and what it shows of the answer."""

    text: str
    shown: str
    fails: bool = False


@frozen
class Block:
    """One fenced block of a page."""

    language: str
    content: str
    before: str
    """The last line before it that is not empty."""


def blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    end = 0
    for found in _FENCE.finditer(page):
        lines = page[end : found.start()].strip().splitlines()
        yield Block(found[2], found[3], lines[-1] if lines else "")
        end = found.end()


def steps(page: str) -> Iterator[File | Command]:
    """Yield what a page tells the reader to do, in its order."""
    for block in blocks(page):
        named = _NAMED.search(block.before)
        if block.language == "console":
            yield from _commands(block.content)
        elif named:
            yield File(named[1], block.content, block.before.startswith("Add to "))


def _commands(content: str) -> Iterator[Command]:
    found: list[Command] = []
    for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        count = 1
        while lines[count - 1].endswith("\\"):
            count += 1
        found.append(Command("\n".join(lines[:count]), "\n".join(lines[count:]).strip()))
    for command, following in zip(found, [*found[1:], None], strict=True):
        fails = following is not None and following.text == "echo $?"
        yield Command(command.text, command.shown, fails)


def matches(shown: str, printed: str) -> bool:
    """Tell whether what was printed is what the page shows."""
    return re.fullmatch(_pattern(_even(shown)), f"{_even(printed)}\n") is not None


def _even(text: str) -> str:
    text = _ID.sub("ID", _TIME.sub("TIME", text))
    return "\n".join(re.sub(r" {2,}", "  ", line).rstrip() for line in text.strip().splitlines())


def _pattern(shown: str) -> str:
    lines = (
        r"(?:.*\n)*?" if line.strip() == "..." else ".*".join(map(re.escape, line.split("..."))) + r"\n"
        for line in shown.splitlines()
    )
    return "".join(lines)


_OFFLINE: Final = {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_QUIET": "1"}
"""How pip installs what a page has made from what is here: an unset isolation is written as 0."""


def _reader(directory: Path) -> Path:
    """Make an environment in which the reader may install things; answers where its commands are."""
    made = Environment.make(directory)
    for name in ("edgecore", "pip"):
        command = made.python.with_name(name)
        command.write_text(f'#!/bin/sh\nexec "{made.python}" -m {name} "$@"\n')
        command.chmod(0o755)
    return made.python.parent


class Follower:
    """Run the steps of a page in a shell of its own; nothing that it started is left behind."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._output = directory.parent / f"{directory.name}.output"
        path = f"{_reader(directory.parent / 'reader-env')}:{os.environ['PATH']}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("EDGECORE")}
        self._shell = subprocess.Popen(
            ["/bin/bash", "--norc", "--noprofile"],
            cwd=directory,
            env={**kept, "PATH": path, "COLUMNS": "200", "LC_ALL": "C.UTF-8", **_OFFLINE},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def follow(self, page: str) -> None:
        """Do what a page says, and assert that everything comes out as it shows."""
        for step in steps(page):
            if isinstance(step, File):
                path = self._directory / step.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a" if step.added else "w", encoding="utf-8") as file:
                    file.write(step.content)
                if step.content.startswith("#!"):
                    path.chmod(0o755)
            else:
                self._run(step)

    def _run(self, command: Command, timeout_s: float = 90) -> None:
        code, printed = self._answer(command.text, timeout_s)
        said = f"$ {command.text}\nended with {code} and printed:\n{printed}{self._logs()}"
        assert command.fails == (code != 0), said
        assert not command.shown or matches(command.shown, printed), f"{said}\nshown:\n{command.shown}"

    def _answer(self, text: str, timeout_s: float) -> tuple[int, str]:
        """Run one command line in the shell; return its exit code and what it printed."""
        self._output.write_text("")
        done = self._output.with_suffix(".done")
        assert self._shell.stdin is not None
        # The commands of a page may hold anything: a file, read by the shell itself, needs no quoting.
        script = self._output.with_suffix(".command")
        script.write_text(f"(exit ${{_code:-0}})\n{text}\n_code=$?\n")
        line = f". '{script}' >>'{self._output}' 2>&1; echo $_code >'{done}.new'; mv '{done}.new' '{done}'\n"
        self._shell.stdin.write(line.encode())
        self._shell.stdin.flush()
        deadline = time.monotonic() + timeout_s
        while not done.exists():
            assert self._shell.poll() is None, f"the shell ended at: {text}"
            assert time.monotonic() < deadline, (
                f"not done after {timeout_s} s: {text}\n{self._output.read_text()}{self._logs()}"
            )
            time.sleep(0.02)
        code = int(done.read_text())
        done.unlink()
        return code, self._output.read_text(errors="replace")

    def _logs(self) -> str:
        found = (path for path in self._directory.rglob("*.log") if path.is_file())
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in found)

    def close(self) -> None:
        """End the shell, what it started, and the batch systems of the sites that were made."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._shell.pid, number)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + 20
            while self._group_lives() and time.monotonic() < deadline:
                self._shell.poll()
                time.sleep(0.02)
        self._shell.wait(20)
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        for spool in self._directory.rglob(".fork"):
            _end_supervisor(spool)

    def _group_lives(self) -> bool:
        try:
            os.killpg(self._shell.pid, 0)
        except ProcessLookupError:
            return False
        return True


def _end_supervisor(spool: Path) -> None:
    """End a batch system that waits for more work, and whatever a page that failed left running in it."""
    if not supervised(spool):
        return
    supervisor = int(lock_file(spool).read_text().split()[0])
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == supervisor:
                os.killpg(int(stat.parent.name), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor, signal.SIGKILL)
