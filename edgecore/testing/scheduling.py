"""Hold a scheduling driver to its contract: every hook by itself, then the fault matrix end to end."""

from __future__ import annotations

from edgecore.testing.faults import FaultMatrix
from edgecore.testing.hook_faults import HookFaults

__all__ = ["SchedulingContract"]


class SchedulingContract(HookFaults, FaultMatrix):
    """Subclass this in your driver's tests, and give it your batch system::

        class TestSlurm(SchedulingContract):
            driver = "slurm"

            @pytest.fixture
            def batch_system(self, tmp_path):
                with FakeBatchSystem(tmp_path / "fake", SlurmDialect, settings={"timeout_s": 2}) as system:
                    yield system

    `driver` is the name under which your package offers it, which must be installed. The batch system is a
    fake one, for which you write down how your commands are understood and answered (a `Dialect`), or a
    real one that you steer yourself (a `BatchSystem` of your own, and ``live = True``). Give the driver a
    short time-out in the settings: each hanging command is waited for.

    What your batch system cannot show, you declare with the reason, for a fault as a whole or for one variant of it::

        cannot = {4: "it has no accounting", (13, Ending.NODE_FAILURE): "it has one node"}

    Tests of these are skipped; the table of coverage (``pytest --fault-table=FILE``) shows the reason. A method of
    `BatchSystem` that is missing for another test is a failure of that test. ``--kills 200 --in-flight 100``
    makes a long campaign of the test that kills the service.
    """
