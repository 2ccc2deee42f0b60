"""Submit with Parsl's provider for Slurm, as its executors do; run by the tools' own interpreter."""

from __future__ import annotations

import time

from parsl.launchers import SimpleLauncher
from parsl.providers import SlurmProvider

from benchmarks.peers.common import Asked, answer


def _work(asked: Asked) -> None:
    provider = SlurmProvider(
        partition=asked.partition, walltime="00:05:00", exclusive=False, launcher=SimpleLauncher()
    )
    provider.script_dir = asked.directory
    ids = [provider.submit("/bin/true", 1) for _ in range(asked.jobs)]
    while asked.ends and not all(status.terminal for status in provider.status(ids)):
        time.sleep(asked.poll_s)


answer(_work)
