"""Drive Slurm through its commands."""

from edgecore_slurm.driver import SlurmScheduling

__all__ = ["SlurmScheduling"]
