"""Write the batch script and keep the token that decides whether an attempt may run.

Each attempt has a directory ``run/<attempt>/`` that holds exactly one token: an empty file whose
*name* is the state of the attempt and which only ever moves by ``rename``. Whoever renames it acts;
nobody acts on a read. The batch script takes it from ``ready`` to ``running.<batch id>.<execution>``
and then to ``ended.<exit code>``; the service takes it from ``ready`` to ``revoked``, or from
``running...`` to ``stopped``. So an attempt that the service gave up can never start, and
the end of one that ran is known without the batch system. A restartable application that was told to
stop leaves ``paused.<batch id>.<execution>.<exit code>``: over, unless the same batch id starts again.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import Final

from attrs import evolve, frozen

__all__ = [
    "ABSTAINED",
    "MAX_ATTEMPTS",
    "EndRecord",
    "RunDirectory",
    "ScriptValues",
    "Token",
    "TokenState",
    "attempt_tag",
    "data_directory",
    "job_directory",
    "render_script",
    "run_directory",
]

ABSTAINED: Final = 75
"""Exit code of a batch script that may not run: its batch system must not take it for success."""

_DAY_US: Final = 86_400_000_000
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
MAX_ATTEMPTS: Final = 36 * 36 - 1
"""How many attempts fit into the two base 36 digits at the end of a tag."""


# ------------------------------------------------------------------------------- names


def attempt_tag(job_id: int, attempt: int) -> str:
    """Return the name of an attempt in the batch system: at most 13 characters of a-z 0-9."""
    if not 0 < attempt <= MAX_ATTEMPTS:
        raise ValueError(f"attempt {attempt} is not between 1 and {MAX_ATTEMPTS}")
    return f"e{_base36(job_id)}{_base36(attempt).rjust(2, '0')}"


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text


def job_directory(work: Path, job_id: int) -> Path:
    """Return ``<work>/<yyyymmdd>/<job id>``; the day is that of the id, in UTC."""
    return Path(f"{work}/{_day(job_id // _DAY_US)}/{job_id}")


@functools.cache
def _day(number: int) -> str:
    return f"{datetime.fromtimestamp(number * _DAY_US // 1_000_000, UTC):%Y%m%d}"


def data_directory(work: Path, job_id: int) -> Path:
    """Return the job's working directory, where strangers' files live."""
    return Path(f"{job_directory(work, job_id)}/data")


def run_directory(work: Path, job_id: int, attempt: int) -> RunDirectory:
    """Return the directory of an attempt, which only the service and the batch script write."""
    return RunDirectory(Path(f"{work}/{_day(job_id // _DAY_US)}/{job_id}/run/{attempt}"))


# ------------------------------------------------------------------------------- token


class TokenState(StrEnum):
    """What the name of a token says about its attempt."""

    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"
    REVOKED = "revoked"
    STOPPED = "stopped"


@frozen(kw_only=True)
class Token:
    """The token as a look at the directory showed it; only a rename proves anything."""

    state: TokenState
    file: str
    batch_id: str | None = None
    """The batch id under which the execution runs, when running; or ran, when paused."""
    exit_code: int | None = None
    """The application's exit code, when ended or paused."""
    since: int = 0
    """When it got this name by the file server's clock, microseconds UTC."""


@frozen(kw_only=True)
class EndRecord:
    """What the batch script wrote about the end of an execution."""

    started: int | None = None
    ended: int | None = None
    """Times in microseconds UTC by the execution host's clock."""
    batch_id: str | None = None
    host: str = ""


@frozen
class RunDirectory:
    """Keep the token, the batch script and the end record of one attempt."""

    path: Path

    @property
    def script(self) -> Path:
        """The batch script."""
        return self.path / "batch.sh"

    def prepare(self, script: bytes) -> None:
        """Make the directory with its script and a token `ready`, before the intent.

        Doing it again before the intent is committed changes nothing but the script. It is not durable before
        `make_durable`: a file system commits what was done in many directories at once.
        """
        # Nobody else may write what runs as the service's account, whatever the umask allows.
        self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
        self.path.mkdir(0o700, exist_ok=True)
        self.script.write_bytes(script)
        if self.token() is None:
            os.close(os.open(self.path / TokenState.READY, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def make_durable(self) -> None:
        """Wait until the token outlives a loss of power; before the intent is committed."""
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def token(self) -> Token | None:
        """Look for the token; None when there is none to be seen."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return None
        for name in names:
            token = _parse_token(name)
            if token is None:
                continue
            try:
                since = os.stat(self.path / name).st_ctime_ns // 1000
            except FileNotFoundError:  # it moved on between the two looks
                return self.token()
            return evolve(token, since=since)
        return None

    def revoke(self) -> bool:
        """Move the token from `ready` to `revoked`; tell whether the attempt can never start now."""
        return self._move(TokenState.READY, TokenState.REVOKED)

    def stop(self, token: Token) -> bool:
        """Move a running or paused token to `stopped`; tell whether that execution is fenced now."""
        return self._move(token.file, TokenState.STOPPED)

    def abandon(self) -> bool:
        """Leave a token `revoked` where none can be found, on an operator's word."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.token() is not None:
            return False
        (self.path / TokenState.REVOKED).touch(0o600)
        return True

    def _move(self, before: str, after: str) -> bool:
        try:
            os.rename(self.path / before, self.path / after)
        except FileNotFoundError:
            # A file server that lost its reply says this of a rename that worked.
            return (self.path / after).exists()
        return True

    def end_record(self) -> EndRecord:
        """Read what the script wrote about its end; empty where it is missing or damaged."""
        try:
            record = json.loads((self.path / "end.json").read_bytes())
            return EndRecord(
                started=int(record["started"]) * 1_000_000,
                ended=int(record["ended"]) * 1_000_000,
                batch_id=str(record["batch_id"]),
                host=str(record["host"]),
            )
        except (OSError, ArithmeticError, ValueError, KeyError, TypeError):
            return EndRecord()


def _parse_token(name: str) -> Token | None:
    word, _, rest = name.partition(".")
    if name in (TokenState.READY, TokenState.REVOKED, TokenState.STOPPED):
        return Token(state=TokenState(name), file=name)
    if word == TokenState.RUNNING and rest:
        return Token(state=TokenState.RUNNING, file=name, batch_id=rest.rpartition(".")[0])
    if word == TokenState.PAUSED and rest.count(".") > 1 and rest.rpartition(".")[2].isdecimal():
        batch_id, _, code = rest.rsplit(".", 2)
        return Token(state=TokenState.PAUSED, file=name, batch_id=batch_id, exit_code=int(code))
    if word == TokenState.ENDED and rest.isdecimal():
        return Token(state=TokenState.ENDED, file=name, exit_code=int(rest))
    return None


# ------------------------------------------------------------------------------- script


@frozen(kw_only=True)
class ScriptValues:
    """Everything that a batch script is made from; all but the site's own text is quoted."""

    title: str
    """One line for people: site, job, attempt."""
    run: Path
    data: Path
    attempt: int
    batch_id_text: str
    """Shell text of the driver."""
    restartable: bool
    command: Sequence[str]
    """Launcher and application as one argument list."""
    environment: Mapping[str, str]
    prologue: str = ""
    """Shell text of the site's operator, before the application: modules, limits."""
    epilogue: str = ""
    """Shell text of the site's operator, after the application, in a shell of its own."""


# External commands: mv to take the token, sh to learn a process id, date twice, mv to give it back; sleep only
# when a file server makes us wait.
#
# Two shells, because a shell cannot be told a signal and keep an exit code: one that waits in the foreground hears
# of no signal, and bash loses the code of a child that ends while a signal interrupts the `wait` builtin. So
# this script forwards signals, and a child of it runs the application in the foreground and tells its end.
_SCRIPT: Final = Template(r"""#!/bin/sh
# $title
# Written by edgecore. The token in this directory decides whether this script may run.
run=$run
data=$data
restartable=$restartable
batch_id="$batch_id_text"
execution=$$$$
read -r execution 2>/dev/null </proc/sys/kernel/random/uuid
read -r host 2>/dev/null </proc/sys/kernel/hostname
mine="running.$$batch_id.$$execution"
told="$$run/told.$$execution"
pid_file="$$run/pid.$$execution"
interrupted=

# The application notes its process id and then looks whether we were told; we do so the other way round.
forward() {
    interrupted=1
    true 2>/dev/null >"$$told"
    pid=
    read -r pid 2>/dev/null <"$$pid_file"
    [ -z "$$pid" ] || kill -TERM "$$pid" 2>/dev/null
}
trap forward TERM INT

leave() {
    printf '%s %s %s\n' "$$batch_id" "$$execution" "$$1" >>note.txt
    exit $abstained
}

# A rename that says "no such file" may have worked: the look afterwards tells.
claim() {
    for try in 1 2 3 4 5 6 7 8 9 10; do
        mv ready "$$mine" 2>/dev/null && return 0
        [ -e "$$mine" ] && return 0
        for token in ended.* revoked stopped; do
            [ -e "$$token" ] && leave "found $$token"
        done
        for token in running.* paused.*; do
            [ -e "$$token" ] || continue
            owner=$${token#*.}
            case $$token in paused.*) owner=$${owner%.*} ;; esac
            [ "$${owner%.*}" = "$$batch_id" ] || leave "found $$token of another batch id"
            [ "$$restartable" = yes ] || leave "found $$token, may not start again"
            mv "$$token" "$$mine" 2>/dev/null && return 0
            [ -e "$$mine" ] && return 0
        done
        sleep 1
    done
    leave "found no token"
}

give_back() {
    for try in 1 2 3 4 5 6 7 8 9 10; do
        cd "$$run" 2>/dev/null  # a file system that was mounted anew is another one behind the same name
        mv "$$mine" "$$1" 2>/dev/null && return 0
        [ -e "$$1" ] && return 0
        [ -e "$$mine" ] || leave "ended with $$code after it was stopped"
        sleep "$$try"
    done
    leave "ended with $$code and could not say so"
}

# The site's text runs in shells of its own: what it sets, or an exit, cannot cost us the end.
run_application() {
    (
        sh -c 'echo "$$PPID"' 2>/dev/null >"$$pid_file"
        [ ! -e "$$told" ] || exit 143
$environment
$prologue
        exec $command
    ) >>stdout.$attempt.txt 2>>stderr.$attempt.txt </dev/null
    code=$$?
    true 2>/dev/null >"$$pid_file"  # from now on the number may be anybody's
    (
        :
$epilogue
    )
}

live() {
    started=$$(date -u +%s)
    code=126
    if cd "$$data"; then
        run_application
    fi
    # A batch system signals one process after the other: the application may have ended before we are told.
    [ "$$restartable" = no ] || [ "$$code" -eq 0 ] || [ -e "$$told" ] || sleep 1
    trap '' TERM INT  # nor shall date or mv be ended by what is meant for the application
    cd "$$run" || exit $abstained
    [ -e "$$mine" ] || leave "ended with $$code after it was stopped"
    # A batch system that takes an execution off its nodes to start it again says TERM first. That is no end.
    if [ "$$restartable" = yes ] && [ "$$code" -ne 0 ] && [ -e "$$told" ]; then
        give_back "paused.$$batch_id.$$execution.$$code"
        exit "$$code"
    fi
    printf '{"exit_code": %d, "batch_id": "%s", "host": "%s", "started": %d, "ended": %d}\n' \
        "$$code" "$$batch_id" "$$host" "$$started" "$$(date -u +%s)" >end.json
    give_back "ended.$$code"
    exit "$$code"
}

cd "$$run" || exit $abstained
[ -z "$$interrupted" ] || leave "told to stop before the start"
claim
(
    # Heard only when the application has ended; not ignored, since that would be inherited.
    trap 'true 2>/dev/null >"$$told"' TERM INT
    live
) &
child=$$!
wait "$$child"
code=$$?
while [ -n "$$interrupted" ] && kill -0 "$$child" 2>/dev/null; do
    wait "$$child"
    code=$$?
done
trap '' TERM INT
while read -r line; do  # whatever token stands there then: it is another execution's
    case $$line in *" $$execution "*) exit $abstained ;; esac
done 2>/dev/null <note.txt
for token in ended.* paused.*; do
    [ -e "$$token" ] && exit "$${token##*.}"
done
exit "$$code"
""")


def render_script(values: ScriptValues) -> bytes:
    """Return the batch script, a POSIX shell script in which every value is quoted."""
    text = _SCRIPT.substitute(
        title=" ".join(values.title.split()),
        run=shlex.quote(str(values.run)),
        data=shlex.quote(str(values.data)),
        attempt=values.attempt,
        restartable="yes" if values.restartable else "no",
        batch_id_text=values.batch_id_text,
        abstained=ABSTAINED,
        environment="\n".join(
            f"export {key}={shlex.quote(value)}" for key, value in values.environment.items()
        ),
        prologue=values.prologue.rstrip(),
        command=shlex.join(values.command),
        epilogue=values.epilogue.rstrip(),
    )
    return os.fsencode(text)
