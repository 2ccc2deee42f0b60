"""The fault matrix: each way in which a batch system is known to lie, through a whole running Balsam."""

from __future__ import annotations

from edgecore.testing.ending_faults import EndingFaults
from edgecore.testing.listing_faults import ListingFaults
from edgecore.testing.submit_faults import SubmitFaults

__all__ = ["FaultMatrix"]


class FaultMatrix(ListingFaults, SubmitFaults, EndingFaults):
    """Run jobs through a service in a process of its own while its batch system misbehaves.

    Each test is marked with the number of its fault, ``@pytest.mark.fault(7, variant)``. The end that
    is expected is always the true one.
    """
