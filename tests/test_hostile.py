"""Hostile input gets nowhere: a real service, whatever may be sent to it, and what came of each."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import frozen
from click.testing import CliRunner
from hostile_cases import CONTENTS, DEFINITIONS, OPTIONS, SECRET, Case, recorder
from hostile_files import FILES
from sites import Site, make_site, stop

from edgecore.cli import cli
from edgecore.models import Delivery, Job, JobState, OutgoingMessage

pytestmark = pytest.mark.slow

CASES: Final[Sequence[Case]] = [*DEFINITIONS, *FILES]
ENVIRONMENT: Final = {
    *("HOME", "LANG", "LOGNAME", "OLDPWD", "PATH", "PWD", "USER"),
    *("EDGECORE_FORK_ID", "EDGECORE_FORK_SPOOL"),
}
OURS: Final = {
    *("EDGECORE_ATTEMPT", "EDGECORE_JOB_ID", "EDGECORE_JOB_NAME", "EDGECORE_NODES"),
    *("EDGECORE_PROCESSES_PER_NODE", "EDGECORE_SITE"),
}
DEADLINE_S: Final = 240.0


def here(value: Any, base: Path) -> Any:
    """Put the directory of the test in place of ``@/``, wherever text stands."""
    if isinstance(value, str):
        return value.replace("@/", f"{base}/")
    if isinstance(value, bytes):
        return value.replace(b"@/", os.fsencode(base) + b"/")
    if isinstance(value, Mapping):
        return {here(key, base): here(item, base) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(here(item, base) for item in value)
    return value


@frozen
class Outcome:
    """What a service made of everything that was sent to it."""

    site: Site
    jobs: Mapping[int, Job]
    """By the number of the case."""
    contents: Mapping[str, Job]
    """By the name of what was no definition."""
    statuses: Sequence[Mapping[str, Any]]
    letters: Sequence[Delivery]
    """The dead letters."""
    before: Mapping[str, object]
    """The tree of the site before."""


def tree(place: Path) -> dict[str, object]:
    """Return every name below a directory with what it is and holds; no link is followed."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk(place):
        for name in (*folders, *names):
            path = Path(folder, name)
            info = path.lstat()
            content: object = ""
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(place))] = (stat.S_IFMT(info.st_mode), content)
    return found


def lay_out(base: Path) -> Site:
    """Make the site with its secrets and a place in which no command may leave anything."""
    site = make_site(base, slots=8, more=f"[limits]\nmax_nodes = 8\n{OPTIONS}")
    for name in ("records", "canary", "application", "elsewhere", "data-evil"):
        (base / name).mkdir()
    for name in ("secret.cfg", "elsewhere/out.cfg", "data-evil/app.cfg"):
        (base / name).write_text(f"text = {SECRET}\n")
    (base / "application" / "inner").symlink_to(base / "elsewhere")
    (base / "application" / "private.pem").write_text(f"-----BEGIN-----\n{SECRET}\n")
    (base / "application" / "private.json").write_text(json.dumps({SECRET: 1, "text": SECRET}))
    (base / "application" / "private.cfg").write_text(f"events = {SECRET}\n")
    site.add(recorder(base))
    return site


def definition(case: Case, number: int, site: Site) -> dict[str, Any]:
    """Stage what the case brings, and return what is to be sent."""
    document = {
        "name": f"case-{number}",
        "site": "testsite",
        "application": "record",
        "argo_job_id": number,
    }
    if case.files:
        place = site.base / "data" / f"case-{number}"
        place.mkdir()
        for name, text in here(case.files, site.base).items():
            (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        case.lay(place, site.base)
        document["input_url"] = f"file://{place}"
    return {**document, **here(case.definition, site.base)}


def messages(site: Site) -> Iterator[OutgoingMessage]:
    bodies = {
        f"case-{number}": json.dumps(definition(case, number, site)).encode()
        for number, case in enumerate(CASES)
    }
    bodies |= {f"content-{number}": body for number, (body, _) in enumerate(contents(site).values())}
    for message_id, body in bodies.items():
        yield OutgoingMessage(exchange="hpc", key="testsite", body=body, message_id=message_id)


def contents(site: Site) -> Mapping[str, tuple[bytes, str]]:
    found: Mapping[str, tuple[bytes, str]] = here(CONTENTS, site.base)
    return found


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Send all of it to one service whose own environment holds what no job may see."""
    site = lay_out(tmp_path_factory.mktemp("hostile") / "site")
    relay = site.relay()
    relay.send(messages=list(messages(site)))
    before = tree(site.base)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BASH_ENV", "ENV", "IFS", "LD_LIBRARY_PATH", "PYTHONPATH", "TOKEN"):
            patch.setenv(name, SECRET)
        service = site.start()
    try:
        site.wait_settled(len(CASES) + len(CONTENTS), DEADLINE_S)
        site.wait_published()
    finally:
        stop(service)
    letters = relay.receive(queue="testsite.rejected", limit=10_000, timeout_s=0)
    relay.close()
    jobs = site.jobs()
    digests = {hashlib.sha256(body).hexdigest(): name for name, (body, _) in contents(site).items()}
    return Outcome(
        site=site,
        jobs={number: job for job in jobs if (number := number_of(job)) is not None},
        contents={name: job for job in jobs for digest, name in digests.items() if digest in job.message},
        statuses=site.statuses(),
        letters=letters,
        before=before,
    )


def number_of(job: Job) -> int | None:
    """Return the number of the case that became the job, by whichever of its two marks is sound."""
    word, _, number = job.name.partition("-")
    return int(number) if word == "case" else job.definition.argo_job_id


# ------------------------------------------------------------------------------------ each case


def fault(case: Case, job: Job | None, site: Site) -> str:
    """Say what is not as it must be with a case; nothing when all is."""
    if job is None:
        return "became no job"
    if case.refused:
        return refusal_fault(case, job, site)
    if case.options:  # which `fork` has none of
        taken = job.plan is not None and dict(job.plan.options) == here(case.options, site.base)
        return "" if taken and "has no options, but was given" in job.message else f"is told {job.message}"
    if job.state is not JobState.JOB_FINISHED:
        return f"is {job.state}: {job.message}"
    record = site.base / "records" / str(job.id)
    got = Path(f"{record}.arguments").read_bytes().split(b"\0")[1:-1]
    if got != [argument.encode() for argument in here(case.arguments, site.base)]:
        return f"got the arguments {got}"
    return environment_fault(job, Path(f"{record}.environment")) or directory_fault(job, site)


def refusal_fault(case: Case, job: Job, site: Site) -> str:
    expected = JobState.JOB_FAILED if case.files else JobState.JOB_REJECTED
    if job.state is not expected:
        return f"is {job.state}: {job.message}"
    if (site.base / "records" / f"{job.id}.arguments").exists():
        return "ran"
    missing = [words for words in here(case.refused, site.base) if words not in job.message]
    return f"is told {job.message!r} without {missing}" if missing else ""


def environment_fault(job: Job, record: Path) -> str:
    got = dict(pair.split("=", 1) for pair in record.read_bytes().decode().split("\0")[:-1])
    if not OURS <= set(got) <= OURS | ENVIRONMENT:
        return f"got the environment {sorted(got)}"
    if got["EDGECORE_JOB_NAME"] != job.name or got["PATH"].startswith("/tmp"):
        return f"got the environment {got}"
    return ""


def directory_fault(job: Job, site: Site) -> str:
    (directory,) = site.config.work_directory.glob(f"*/{job.id}")
    if stat.S_IMODE(directory.stat().st_mode) & 0o077:
        return "has a directory that others can enter"
    data = directory / "data"
    for name in ("stdout.1.txt", "stderr.1.txt"):
        if not stat.S_ISREG((data / name).lstat().st_mode) or (data / name).stat().st_size:
            return f"has a {name} that is not its own"
    if job.definition.input_url is None:
        return ""
    staged = tree(Path(job.definition.input_url.removeprefix("file://")))
    now = tree(data)
    changed = [
        name
        for name in {*staged, *now} - {"stdout.1.txt", "stderr.1.txt"}
        if staged.get(name) != now.get(name)
    ]
    return f"changed {changed} of its input" if changed else ""


def test_every_case_is_refused_by_name_or_is_only_text(outcome: Outcome) -> None:
    assert 300 < len(CASES)
    faults = {
        case.name: fault(case, outcome.jobs.get(number), outcome.site) for number, case in enumerate(CASES)
    }
    assert "" == "\n".join(f"{name}: {said}" for name, said in faults.items() if said)


def test_what_is_no_definition_is_told_with_message_id_and_digest(outcome: Outcome) -> None:
    assert set(CONTENTS) == set(outcome.contents)
    for number, (name, (body, words)) in enumerate(contents(outcome.site).items()):
        job = outcome.contents[name]
        assert JobState.JOB_REJECTED is job.state
        assert words in job.message, name
        assert f"(message id content-{number}, sha256 {hashlib.sha256(body).hexdigest()})" in job.message


# ----------------------------------------------------------------------------------- all around


def test_nothing_is_made_changed_or_told_outside_of_the_jobs_directories(outcome: Outcome) -> None:
    base = outcome.site.base
    after = tree(base)
    ours = ("work", "records", "store.sqlite", "queues.sqlite", "service.log")
    strange = {
        name
        for name in {*outcome.before, *after}
        if outcome.before.get(name) != after.get(name) and not name.startswith(ours)
    }
    assert set() == strange
    assert [] == os.listdir(base / "canary")
    assert not Path("/canary").exists()


def test_no_secret_comes_out(outcome: Outcome) -> None:
    base = outcome.site.base
    secret = SECRET.encode()
    # The log is the operator's, who may know what stands in the application's own files.
    for place in (base / "work", base / "records", *base.glob("*.sqlite*")):
        for path in place.rglob("*") if place.is_dir() else [place]:
            if not path.is_symlink() and path.is_file():
                assert secret not in path.read_bytes(), path
    assert SECRET not in json.dumps(outcome.statuses)


def test_the_log_holds_no_line_that_a_stranger_wrote(outcome: Outcome) -> None:
    text = outcome.site.log
    assert "Traceback" not in text
    assert [] == [line for line in text.split("\n") if not line.isprintable()]
    assert [] == [line for line in text.split("\n") if line.startswith(("touch", "#SBATCH", "wrap"))]


def test_the_operator_finds_in_the_log_what_a_sender_is_not_told(outcome: Outcome) -> None:
    assert "cannot be prepared: private.pem: line 1: found '-----BEGIN-----'" in outcome.site.log
    assert f"line 2: found '{SECRET}'" in outcome.site.log


# -------------------------------------------------------------------------------- what is rejected


def rejected(outcome: Outcome) -> dict[int, Job]:
    return {job.id: job for job in outcome.site.jobs() if job.state is JobState.JOB_REJECTED}


def test_every_rejected_definition_is_told_to_its_sender_with_all_reasons(outcome: Outcome) -> None:
    told = [status for status in outcome.statuses if status["state"] == "JOB_REJECTED"]
    assert sorted(job.message for job in rejected(outcome).values()) == sorted(s["message"] for s in told)
    assert {1} == {status["sequence"] for status in told}


def test_every_rejected_definition_is_a_dead_letter_with_its_reason(outcome: Outcome) -> None:
    letters = {letter.message_id: letter for letter in outcome.letters}
    jobs = rejected(outcome).values()
    assert len(jobs) == len(outcome.letters) == len(letters)
    reasons = {letter.reason for letter in outcome.letters}
    for job in jobs:
        assert job.message.rpartition(" (message id ")[0] in reasons
    for number, case in enumerate(CASES):
        if case.refused and not case.files:
            letter = letters[f"case-{number}"]
            assert json.loads(letter.body)["argo_job_id"] == case.definition.get("argo_job_id", number)


def edgecore(outcome: Outcome, *arguments: str) -> str:
    result = CliRunner().invoke(cli, [*arguments, "--site", str(outcome.site.file)])
    assert 0 == result.exit_code, result.output
    return result.output


def test_an_operator_sees_what_was_rejected_and_why(outcome: Outcome) -> None:
    jobs = rejected(outcome)
    listed = json.loads(edgecore(outcome, "jobs", "--state", "JOB_REJECTED", "--limit", "10000", "--json"))
    assert {job_id: job.message for job_id, job in jobs.items()} == {
        row["id"]: row["message"] for row in listed
    }
    for job in (next(iter(jobs.values())), *outcome.contents.values()):
        shown = edgecore(outcome, "job", str(job.id))
        assert "JOB_REJECTED" in shown
        assert job.message.rpartition("sha256 ")[2].rstrip(")") in shown
        assert all(line.isprintable() for line in shown.split("\n"))
    assert all(line.isprintable() for line in edgecore(outcome, "jobs", "--limit", "10000").split("\n"))
