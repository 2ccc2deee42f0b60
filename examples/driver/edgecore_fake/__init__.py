"""Drive the fake batch system: the example of a scheduling driver."""

from edgecore_fake.driver import FakeScheduling

__all__ = ["FakeScheduling"]
