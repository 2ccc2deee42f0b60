"""Share the servers that tests of several packages use, so that there is one of each per process of pytest."""

from __future__ import annotations

from testbed.slurm_fixtures import (
    slurm,
    slurm_accounting,
    slurm_accounting_server,
    slurm_server,
    slurm_strict,
)

__all__ = ["slurm", "slurm_accounting", "slurm_accounting_server", "slurm_server", "slurm_strict"]
