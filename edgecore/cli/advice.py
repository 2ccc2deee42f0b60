"""Say what a person does about a job: now, and when it has failed.

All of it is tables: what to do in a state, and what a kind of failure means, who can mend it, and how. A kind is
found by the step that failed, the exit code, and the words of whoever refused; the first row that fits counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from attrs import frozen

from edgecore.models import Intent, Job, JobState
from edgecore.states import AT_BATCH_SYSTEM, SETTLED

__all__ = ["FAILURES", "NEXT", "Failure", "failure", "next_step"]

_S = JobState
_ENDS: Final = "Nothing: the service ends it as JOB_FAILED, and says why."

NEXT: Final[Mapping[JobState, str]] = {
    _S.CREATED: "Nothing: its input is to be staged in.",
    _S.STAGED_IN: "Nothing: it is to be prepared for its submission.",
    _S.STAGE_IN_FAILED: _ENDS,
    _S.PREPROCESSED: "Nothing: it waits for its turn to be submitted.",
    _S.PREPROCESS_FAILED: _ENDS,
    _S.SUBMITTING: "Nothing: it is being submitted; if the answer got lost, it is looked for by its tag.",
    _S.SUBMITTED: "Nothing: the batch system has it. To take it back: edgecore cancel {id}",
    _S.SUBMIT_FAILED: _ENDS,
    _S.SUBMIT_DISABLED: "A dry run ends here. To submit it when that is over: edgecore retry {id}",
    _S.QUEUED: "Nothing: the batch system starts it when there is room. To take it back: edgecore cancel {id}",
    _S.HELD: "Look at the reason: the batch system holds it. If you held it: edgecore release {id}",
    _S.RUNNING: "Nothing: it runs. To end it: edgecore cancel {id}",
    _S.LOST: "Look whether it lives, by its batch id. If you know that it does not: edgecore retry {id} "
    "runs it again, edgecore cancel {id} gives it up",
    _S.EXECUTION_FINISHED: "Nothing: its output is to be looked at.",
    _S.EXECUTION_FAILED: "Nothing: it is tried again, or what there is is staged out and the job ends.",
    _S.POSTPROCESSED: "Nothing: its output is to be staged out.",
    _S.POSTPROCESS_FAILED: _ENDS,
    _S.STAGED_OUT: "Nothing: it is about to finish.",
    _S.STAGE_OUT_FAILED: _ENDS,
    _S.JOB_FINISHED: "Nothing: it is done.",
    _S.JOB_FAILED: "Correct the cause (what was staged in lies in data/ of its directory); then edgecore retry {id} "
    "resumes it at the step that failed. If the input was corrected at its URL: edgecore retry {id} --from-start",
    _S.JOB_CANCELLED: "Nothing: it is over. Submit it again if it is wanted after all.",
    _S.JOB_REJECTED: "Correct the definition and submit it again.",
}
"""State -> what a person does about it."""

_STUCK: Final = (
    "The batch system says that it will never start it as it is, for the reason above. Correct the cause there, or take "
    "it back: edgecore cancel {id}. Otherwise it fails after the time that [timing] stuck_after_s of the site says."
)


def next_step(job: Job) -> str:
    """Return what a person does about the job now."""
    if job.state not in SETTLED and job.intent is Intent.HELD:
        return f"It is kept from starting, as asked. To let it go on: edgecore release {job.id}"
    if job.state not in SETTLED and job.intent is Intent.CANCELLED:
        return "Nothing: it is being cancelled."
    if job.state in AT_BATCH_SYSTEM and job.attempt is not None and job.attempt.stuck is not None:
        return _STUCK.format(id=job.id)
    found = failure(job)
    text = NEXT[job.state] if found is None else found.todo
    return text.format(id=job.id, application=job.definition.application)


# ------------------------------------------------------------------------------- what failed


@frozen(kw_only=True)
class Failure:
    """One kind of failure: what it means, who can mend it, and how."""

    kind: str
    """A word for machines, which stays."""
    step: JobState
    words: str = ""
    """A regular expression that the reason must match, in any case; empty for any reason."""
    codes: frozenset[int] = frozenset()
    """The exit codes of this kind; empty for any."""
    who: str
    """Who can mend it: the submitter, the operator of this site, or nobody, where a retry is enough."""
    means: str
    todo: str


_LATER: Final = "When it is mended: edgecore retry {id}"
_ANEW: Final = "Correct the definition and submit it again"
_AT_URL: Final = "then: edgecore retry {id} --from-start, which fetches it anew"
_SUBMITTER, _OPERATOR, _NOBODY = "submitter", "operator", "nobody"
_TRANSFERS: Final = (
    (_S.STAGE_IN_FAILED, "input", "input_url"),
    (_S.STAGE_OUT_FAILED, "output", "output_url"),
)
_BEFORE_SUBMISSION: Final = (_S.STAGE_IN_FAILED, _S.PREPROCESS_FAILED, _S.SUBMIT_FAILED)
_AFTER_EXECUTION: Final = (_S.POSTPROCESS_FAILED, _S.STAGE_OUT_FAILED)
_PROGRAM_STEPS: Final = (_S.PREPROCESS_FAILED, _S.POSTPROCESS_FAILED)


def _everywhere(step: JobState) -> Iterator[Failure]:
    """Give the kinds that more than one step can meet."""
    if step in _BEFORE_SUBMISSION:
        yield Failure(
            kind="too-late", step=step, words="was not to be submitted after", who=_SUBMITTER,
            means="The time that its sender set as not_after passed before it was submitted.",
            todo=f"{_ANEW}, with a later not_after.",
        )  # fmt: skip
    yield Failure(
        kind="application-gone", step=step, words="is not registered any more", who=_OPERATOR,
        means="The operator took its application out of the catalogue while it was on its way.",
        todo=f"See edgecore apps list, and edgecore apps add FILE.toml. {_LATER}",
    )  # fmt: skip
    yield Failure(
        kind="disk-full", step=step, words="no space left|quota", who=_OPERATOR,
        means="A disk is full, or a quota is used up.",
        todo=f"Make room where the reason says. {_LATER}",
    )  # fmt: skip


def _of_transfers(step: JobState, what: str, key: str) -> Iterator[Failure]:
    comes = step is _S.STAGE_IN_FAILED
    yield Failure(
        kind="too-large", step=step, words="max_transfer_bytes", who=_SUBMITTER,
        means=f"Its {what} is larger than this site allows for one job.",
        todo=f"Use less {what}, or ask the operator for a larger max_transfer_bytes; then: edgecore retry {{id}}",
    )  # fmt: skip
    yield Failure(
        kind="url-not-allowed", step=step, words="not below a prefix", who=_OPERATOR,
        means=f"Its {key} is not among those that this site allows any more.",
        todo=f"Look at [[transfer]] in the site's file. {_LATER}",
    )  # fmt: skip
    yield Failure(
        kind="not-logged-in", step=step, words=r"host key|to log in|passphrase|\(publickey", who=_OPERATOR,
        means="The host's key, or this site's own, is not the one that was agreed on.",
        todo=f"Do what the reason says, and try it with edgecore doctor. {_LATER}",
    )  # fmt: skip
    yield Failure(
        kind="permission", step=step, words="permission denied|not permitted|access denied|authenticat|credential",
        who=_OPERATOR,
        means=f"The service may not {'read' if comes else 'write'} there.",
        todo=f"Ask who owns the storage at {key} to let the service's account in. {_LATER}",
    )  # fmt: skip
    yield Failure(
        kind=f"{what}-missing" if comes else "target-missing", step=step, who=_SUBMITTER,
        words="no such file|does not exist|not found",
        means="What should be fetched is not there." if comes else "The place where it should go is not there.",
        todo=f"Put it at {key}, {_AT_URL}. If {key} is wrong: submit the job again with the right one."
        if comes else f"Make the place at {key}; then: edgecore retry {{id}}",
    )  # fmt: skip
    yield Failure(
        kind="storage-away", step=step, words="^gave up after", who=_NOBODY,
        means="The storage failed again and again for a reason that may pass.",
        todo="When the storage answers again: edgecore retry {id}, which resumes what was begun.",
    )  # fmt: skip
    yield Failure(
        kind=f"{what}-refused", step=step, who=_SUBMITTER,
        means=f"The storage refused its {what} for good, for the reason above.",
        todo=f"Correct what lies at {key}, {_AT_URL}." if comes
        else f"Correct the place at {key}; then: edgecore retry {{id}}",
    )  # fmt: skip


def _of_programs(step: JobState) -> Iterator[Failure]:
    again = " and runs the application again" if step is _S.POSTPROCESS_FAILED else ""
    yield Failure(
        kind="program-slow", step=step, words="gave no answer within", who=_OPERATOR,
        means="A program of the operator's took longer than script_timeout_s of the application.",
        todo=f"Look why, or raise script_timeout_s and register the application anew. {_LATER}",
    )  # fmt: skip
    yield Failure(
        kind="program-unusable", step=step, words="cannot run|config_script", who=_OPERATOR,
        means="A program of the operator's cannot be run, or does not answer as it must.",
        todo=f"Repair the program that the reason names. {_LATER}",
    )  # fmt: skip
    yield Failure(
        kind="program-refused", step=step, words="ended with exit code", who=_SUBMITTER,
        means="A program of the operator's looked at the job and refused it; its last words are in the reason.",
        todo="Correct what it complains about in data/ of its directory: edgecore retry {id}; or at its input_url, "
        f"{_AT_URL}{again}. If its words say nothing, ask the operator.",
    )  # fmt: skip


_SUBMITTING: Final = (
    Failure(
        kind="never-starts", step=_S.SUBMIT_FAILED, words="^given up", who=_SUBMITTER,
        means="The batch system took it and would not start it, or not in the time that this site allows.",
        todo=f"{_ANEW}, with another queue, fewer nodes or less walltime, as the reason says. If the reason is gone: "
        "edgecore retry {id}",
    ),
    Failure(
        kind="too-many-attempts", step=_S.SUBMIT_FAILED, words="attempts were made", who=_OPERATOR,
        means="So many attempts never started that the service gave up.",
        todo="Look in the history why they did not start, and at the batch system; then submit the job again.",
    ),
    Failure(
        kind="launcher-gone", step=_S.SUBMIT_FAILED, words="the site has no launcher", who=_OPERATOR,
        means="Its application names a launcher that the site's file does not have any more.",
        todo=f"Correct [launchers] in the site's file, or the application. {_LATER}",
    ),
    Failure(
        kind="name-taken", step=_S.SUBMIT_FAILED, words="the input has a directory", who=_SUBMITTER,
        means="Its input holds a directory where its output must go.",
        todo="Rename it in data/ of the job's directory: edgecore retry {id}",
    ),
    Failure(
        kind="account", step=_S.SUBMIT_FAILED, words="account|project|allocation|charge", who=_OPERATOR,
        means="The batch system refused it for the project or account that it would be charged to.",
        todo=f"{_ANEW} with a valid project, or ask the operator whether that of the site is valid: "
        "edgecore retry {id}",
    ),
    Failure(
        kind="refused", step=_S.SUBMIT_FAILED, who=_SUBMITTER,
        means="The batch system refused it for good: its queue, shape or options are wrong here.",
        todo=f"{_ANEW}, as the reason says. If the batch system was wrong: edgecore retry {{id}}",
    ),
)  # fmt: skip

_LOOK: Final = "Look at what it printed, which edgecore job {id} shows"
_EXECUTION: Final = (
    Failure(
        kind="memory", step=_S.EXECUTION_FAILED, words=r"out[ _-]?of[ _-]?memory|\boom\b", who=_SUBMITTER,
        means="It used more memory than it was given.",
        todo=f"{_ANEW} with more nodes or fewer processes_per_node, or correct the input: edgecore retry {{id}}",
    ),
    Failure(
        kind="walltime", step=_S.EXECUTION_FAILED, words=r"time ?limit|timeout|wall ?time", who=_SUBMITTER,
        means="It ran longer than it had asked for.",
        todo=f"{_ANEW} with a larger wall_time_minutes, or with less work. A retry would run as long again.",
    ),
    Failure(
        kind="node", step=_S.EXECUTION_FAILED, words=r"node[ _]?fail|boot[ _]?fail|preempt|node .*down", who=_NOBODY,
        means="The node failed under it, or the batch system needed the node for others.",
        todo="Nothing was wrong with it: edgecore retry {id}. Retries of its own: retries in the definition.",
    ),
    Failure(
        kind="removed", step=_S.EXECUTION_FAILED, words=r"cancel|deleted|removed|\bscancel\b|\bqdel\b",
        who=_OPERATOR,
        means="Somebody ended it in the batch system.",
        todo="Ask whom the reason names, or the operators of the batch system. To run it again: edgecore retry {id}",
    ),
    Failure(
        kind="not-started", step=_S.EXECUTION_FAILED, words="^ended before it started", who=_OPERATOR,
        means="The batch system ended it before it began.",
        todo="Look at the reason and at what the batch system logged in run/ of its directory. To try it again: "
        "edgecore retry {id}",
    ),
    Failure(
        kind="declared-dead", step=_S.EXECUTION_FAILED, words="declared dead", who=_NOBODY,
        means="It was lost, and an operator declared it dead.",
        todo="To run it again: edgecore retry {id}",
    ),
    Failure(
        kind="not-executable", step=_S.EXECUTION_FAILED, codes=frozenset({126}), who=_OPERATOR,
        means="The application's program, or one that it calls, cannot be executed on its node.",
        todo=f"Look at edgecore apps show {{application}} and at the program. {_LATER}",
    ),
    Failure(
        kind="program-missing", step=_S.EXECUTION_FAILED, codes=frozenset({127}), who=_OPERATOR,
        means="The application's program, or one that it calls, was not found on its node.",
        todo=f"Look at edgecore apps show {{application}}, and which modules [script] prologue loads. {_LATER}",
    ),
    Failure(
        kind="killed", step=_S.EXECUTION_FAILED, codes=frozenset({137, 265}), who=_SUBMITTER,
        means="It was killed, most often for using too much memory, or by the batch system at the end of its walltime.",
        todo=f"{_LOOK}; compare its memory and its walltime with what it asked for. If both were enough: "
        "edgecore retry {id}",
    ),
    Failure(
        kind="terminated", step=_S.EXECUTION_FAILED, codes=frozenset({143, 271, 130}), who=_SUBMITTER,
        means="It was told to end, most often by the batch system at the end of its walltime.",
        todo=f"If its walltime was too short: submit it again with a larger wall_time_minutes. {_LOOK}. "
        "To run it again: edgecore retry {id}",
    ),
    Failure(
        kind="crashed", step=_S.EXECUTION_FAILED, codes=frozenset({132, 134, 135, 136, 139}), who=_SUBMITTER,
        means="The application crashed.",
        todo=f"{_LOOK}. If its input made it crash: correct it in data/ of its directory, edgecore retry {{id}}. "
        "Otherwise it is a fault of the application: tell who wrote it.",
    ),
    Failure(
        kind="interrupted", step=_S.EXECUTION_FAILED, words="^interrupted", who=_NOBODY,
        means="The batch system ended it, and it could not say how far it was.",
        todo="To run it again: edgecore retry {id}. If that happens again, ask the operators of the batch system.",
    ),
    Failure(
        kind="application", step=_S.EXECUTION_FAILED, who=_SUBMITTER,
        means="The application itself ended with an error.",
        todo=f"{_LOOK}. Correct its input in data/ of its directory: edgecore retry {{id}}; or at its input_url, "
        f"{_AT_URL}.",
    ),
)  # fmt: skip

_NO_SETTINGS: Final = Failure(
    kind="settings-missing", step=_S.PREPROCESS_FAILED, words="there is no such file in", who=_SUBMITTER,
    means="The file that its config_file or scheduler_config names is not in its input.",
    todo=f"Put it at its input_url, {_AT_URL}. If its name is wrong: submit the job again with the right one.",
)  # fmt: skip
_SETTINGS: Final = Failure(
    kind="settings", step=_S.PREPROCESS_FAILED, who=_SUBMITTER,
    means="A value in its config_file or scheduler_config is not what the application or the site allows.",
    todo="Correct the file that the reason names in data/ of its directory: edgecore retry {id}; or at its "
    f"input_url, {_AT_URL}. What is allowed: edgecore apps show {{application}}",
)  # fmt: skip
_AFTERWARDS: Final = Failure(
    kind="postprocess", step=_S.POSTPROCESS_FAILED, who=_OPERATOR,
    means="What follows the execution failed; its output lies in data/ of its directory.",
    todo=f"Look at the reason. {_LATER}, which does not run the application again.",
)  # fmt: skip

FAILURES: Final[tuple[Failure, ...]] = (
    *(kind for step in (*_BEFORE_SUBMISSION, *_AFTER_EXECUTION) for kind in _everywhere(step)),
    *(kind for step, what, key in _TRANSFERS for kind in _of_transfers(step, what, key)),
    *(kind for step in _PROGRAM_STEPS for kind in _of_programs(step)),
    _NO_SETTINGS,
    _SETTINGS,
    *_SUBMITTING,
    *_EXECUTION,
    _AFTERWARDS,
)
"""Every kind of failure; the first that fits counts, and the last of each step fits anything."""


def failure(job: Job) -> Failure | None:
    """Return what kind of failure ended a job; None where none did."""
    if job.state is not _S.JOB_FAILED or job.failed_state is None:
        return None
    attempt = job.attempt if job.failed_state in (_S.EXECUTION_FAILED, _S.SUBMIT_FAILED) else None
    code = attempt.exit_code if attempt is not None else None
    texts = [job.message.split("; and its output was not staged out: ")[0], attempt.reason if attempt else ""]
    return next((each for each in FAILURES if _fits(each, job.failed_state, texts, code)), None)


def _fits(kind: Failure, step: JobState, texts: list[str], code: int | None) -> bool:
    said = any(re.search(kind.words, text, re.IGNORECASE) for text in texts)
    return kind.step is step and said and (not kind.codes or code in kind.codes)
