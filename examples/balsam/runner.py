"""Run a site's service from a program of your own, with a listener beside it.

This is what `edgecore run` does, in the few lines that are yours to change: read the site's file, say
where the log goes, hand over what should hear of the jobs, and run until SIGTERM or Ctrl-C.
"""

import argparse
import logging
from pathlib import Path

import edgecore


class Announcer(edgecore.Lifecycle):
    """Print every job that finished; one that fails to print stops no job."""

    @edgecore.hookimpl
    def job_changed(self, job: edgecore.Job) -> None:
        """Hear of a change that is durable."""
        if job.state is edgecore.JobState.JOB_FINISHED:
            print(f"finished: {job.name} (job {job.public_id} of {job.owner})", flush=True)


def main() -> None:
    """Run the site whose file is the first argument."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("site", type=Path, help="the site's file, such as config.toml")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        edgecore.run_site(options.site, plugins=[Announcer()])
    except edgecore.EdgeError as error:
        # 2: a file must be corrected, and what supervises us need not try again; 1: it may.
        code = 2 if isinstance(error, edgecore.errors.ConfigurationError) else 1
        parser.exit(code, f"error: {error}\n")


if __name__ == "__main__":
    main()
