"""Say in a log record which job it is about, in fields that machines can select by.

The library only writes records; who runs it decides where they go and how they look. `edgecore run`
writes the fields with ``format = "json"`` in the site's ``[log]``.
"""

from __future__ import annotations

from edgecore.models import Job

__all__ = ["about"]


def about(job: Job) -> dict[str, object]:
    """Return the ``extra=`` fields of a record about *job*: whose it is, and which execution of it."""
    attempt = job.attempt
    return {
        "job": job.id,
        "job_id": job.public_id,
        "owner": job.owner,
        "state": job.state,
        "attempt": attempt.number if attempt else 0,
        "batch_id": attempt.batch_id if attempt else None,
    }
