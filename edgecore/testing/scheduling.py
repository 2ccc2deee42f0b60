"""Hold a scheduling driver to its contract: every hook by itself, then the fault matrix end to end."""

from __future__ import annotations

from edgecore.testing.faults import FaultMatrix

__all__ = ["SchedulingContract"]


class SchedulingContract(FaultMatrix):
    """x"""
