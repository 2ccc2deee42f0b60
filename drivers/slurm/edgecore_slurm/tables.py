"""Hold what Slurm's words mean: states, reasons, refusals, complaints.

Slurm prints words, and these tables are all that the driver knows of them. What is not in a table is not
guessed: a state is unknown, a reason says nothing about hope, and a failed submission may have succeeded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Final

from edgecore.models import NativeState, Refusal

__all__ = ["BY_ITSELF", "HARMLESS", "OWN_OPTIONS", "REFUSALS", "STATES", "is_hold", "never_starts"]

# squeue(1) of 22.05, "JOB STATE CODES"; sacct(1) has the same list. squeue prints a flag, such as COMPLETING,
# instead of the state that it stands beside. The last four of RUNNING and QUEUED are flags of 24.05 and later,
# https://slurm.schedmd.com/job_state_codes.html.
STATES: Final[Mapping[str, NativeState]] = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_FED"), NativeState.QUEUED),
    # "Held job is being requeued", "requeued in a special state" (it is held), "held after ... was deleted".
    **dict.fromkeys(("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"), NativeState.HELD),
    # What has an allocation, though it may not compute at present, or not any more.
    **dict.fromkeys(
        (
            *("RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"),
            *("SUSPENDED", "EXPEDITING", "POWER_UP_NODE", "UPDATE_DB"),
        ),
        NativeState.RUNNING,
    ),
    **dict.fromkeys(
        (
            *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
            *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
        ),
        NativeState.ENDED,
    ),
    # Another cluster of the federation started it: this one knows nothing of it any more.
    "REVOKED": NativeState.UNKNOWN,
    # What failed was a launch; whether that ends the job, the next look tells.
    **dict.fromkeys(("LAUNCH_FAILED", "RECONFIG_FAIL"), NativeState.UNKNOWN),
}
BY_ITSELF: Final = frozenset({"COMPLETED", "FAILED"})
"""Ends about which the exit code says all there is to say."""

# job_state_reason.c and job_scheduler.c; scontrol and newer releases print "_" for " ".
_HELD_BY_PEOPLE: Final = frozenset(
    {"jobhelduser", "jobheldadmin", "job requeued in held state", "reservationdeleted"}
)
_HELD_AFTER_FAILURES: Final = frozenset({"jobholdmaxrequeue", "launch failed requeued held"})
# https://slurm.schedmd.com/job_reason_codes.html and squeue(1), "JOB REASON CODES". Here stands what the job itself
# asks too much of. Not here: limits that others' jobs use up (AssocGrp*, QOSGrp*, *PerUser, *PerAccount), nodes,
# partitions and reservations that may come back, dependencies that may still be met. PartitionConfig, which squeue(1)
# does not list, is what a job has from the start that its partition cannot hold; later it may become a limit by name.
# PartitionNodeLimit may also mean that the nodes are down, which is why what never starts is only taken back after a time.
# What is a sentence here is one in part_mgr.c, for AccountNotAllowed and QOSNotAllowed.
_NEVER: Final = frozenset(
    {
        *("accountnotallowed", "badconstraints", "invalidaccount", "invalidqos", "maxmemperlimit"),
        *("partitionconfig", "partitionnodelimit", "partitiontimelimit", "qosnotallowed"),
        *("dependencyneversatisfied", "job's account not known", "job's qos not known"),
        "job's account not permitted to use this partition",
        "job's qos not permitted to use this partition",
    }
)
_NEVER_LIKE: Final = re.compile(r"(assoc|qos)max\w+per(job|node)(limit)?|qosmin\w+")


def _normal(reason: str) -> str:
    """Return a reason without its details: ``ReqNodeNotAvail, UnavailableNodes:n5``."""
    return re.split(r"[,(:]", reason.lower().replace("_", " "))[0].strip()


@functools.lru_cache(1024)
def is_hold(reason: str) -> bool:
    """Tell whether what waits for this *reason* is held."""
    return _normal(reason) in _HELD_BY_PEOPLE | _HELD_AFTER_FAILURES


@functools.lru_cache(1024)
def never_starts(reason: str) -> bool:
    """Tell whether what waits for this *reason* waits for what will not come by itself."""
    word = _normal(reason)
    return word in _NEVER | _HELD_AFTER_FAILURES or _NEVER_LIKE.fullmatch(word) is not None


# slurm_errno.c, as sbatch prints it, and what sbatch finds out alone. The first that is found decides, so limits stand
# before the general words that follow them. Words about the way to the controller are no refusal.
_FAILED: Final = "Batch job submission failed: "
REFUSALS: Final[Mapping[str, Refusal]] = {
    **dict.fromkeys(
        (
            _FAILED + "Unable to create job record, try again",  # MaxJobCount of the cluster
            _FAILED + "Job violates accounting/QOS policy",  # but see `parse_refusal`
            _FAILED + "Requested account has breached requested QOS usage threshold",
            _FAILED + "Required partition not available (inactive or drain)",
            _FAILED + "Required node not available (down, drained or reserved)",
            _FAILED + "Requested partition configuration not available now",
            _FAILED + "Requested reservation not usable now",
            _FAILED + "Requested operation is presently disabled",
            _FAILED + "Slurm backup controller in standby mode",
            _FAILED + "Invalid job array specification",  # MaxArraySize is smaller than our max_array
        ),
        Refusal.TRANSIENT,
    ),
    **dict.fromkeys(
        (
            _FAILED + "Access/permission denied",
            _FAILED + "Access denied to requested reservation",
            _FAILED + "Core count for reservation node list is not consistent",
            _FAILED + "CPU count specification invalid",
            _FAILED + "Duplicate generic resource (gres) specification",
            _FAILED + "Invalid account or account/partition combination specified",
            _FAILED + "Invalid feature specification",
            _FAILED + "Invalid generic resource (gres) specification",
            _FAILED + "Invalid GRES specification",
            _FAILED + "Invalid license specification",
            _FAILED + "Invalid node name specified",
            _FAILED + "Invalid partition name specified",
            _FAILED + "Invalid preferred feature specification",
            _FAILED + "Invalid qos specification",
            _FAILED + "Invalid time-min specification",
            _FAILED + "Invalid Trackable RESource (TRES) specification",
            _FAILED + "Invalid wckey specification",
            _FAILED + "Job dependency problem",
            _FAILED + "Job size specification needs to be provided",
            _FAILED + "Memory required by task is not available",
            _FAILED + "More processors requested than permitted",
            _FAILED + "Multiple partition job request not supported",
            _FAILED + "No partition specified or system default partition",
            _FAILED + "Node count specification invalid",
            _FAILED + "Pathname of a file, directory or other parameter too long",
            _FAILED + "Requested GRES option unsupported by configured SelectType plugin",
            _FAILED + "Requested more tasks than available processors",
            _FAILED + "Requested node configuration is not available",
            _FAILED + "Requested nodes not in this partition",
            _FAILED + "Requested operation not supported on this system",
            _FAILED + "Requested reservation is invalid",
            _FAILED + "Requested time limit is invalid",
            _FAILED + "Task count specification invalid",
            _FAILED + "Time limit specification required, but not provided",
            _FAILED + "Unspecified error",  # what a site's job_submit plugin refuses, below words of its own
            _FAILED + "User's group not permitted to use this partition",
            # sbatch itself, before it asks anybody.
            "sbatch: error: Batch script is empty",
            "sbatch: error: Batch script contains DOS line breaks",
            "sbatch: error: Invalid --",
            "sbatch: error: Invalid generic resource (gres) specification",
            "sbatch: error: Invalid numeric value",
            "sbatch: error: This does not look like a batch script",
            "sbatch: error: Unable to open file",
            "sbatch: invalid option",
            "sbatch: unrecognized option",
        ),
        Refusal.PERMANENT,
    ),
}

HARMLESS: Final = (
    "Invalid job id specified",
    "Job is no longer pending execution",
    "Job/step already completing or completed",
)
"""What scancel and scontrol say about a job that ended between a look and a request."""

OWN_OPTIONS: Final = frozenset(
    {
        *(
            "account",
            "array",
            "chdir",
            "clusters",
            "comment",
            "job-name",
            "no-requeue",
            "nodes",
            "ntasks-per-node",
        ),
        *("parsable", "partition", "requeue", "test-only", "time", "wait", "wrap"),
    }
)
"""Options of sbatch by which the driver says what a group asks for, or without which it would not work."""
