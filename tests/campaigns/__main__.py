"""Run a campaign, or give the account of one: ``python -m campaigns run|account DIRECTORY``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from attrs import evolve
from testbed.rabbitmq import RabbitMQ, why_missing
from testbed.slurm import missing_slurm, running_slurm

from campaigns.account import account_of, as_json, as_table
from campaigns.storm import LONG, SETTINGS, SHORT, Plan, Storm

__all__ = ["main"]


def main() -> int:
    """Do what the command line says; return 0 where every promise was kept, 1 where one was broken."""
    parser = argparse.ArgumentParser(prog="python -m campaigns", description=__doc__)
    parser.add_argument("command", choices=("run", "account"))
    parser.add_argument("directory", type=Path, help="of the campaign; for a run a new one")
    parser.add_argument("--json", action="store_true", help="print the account as JSON")
    parser.add_argument("--short", action="store_true", help="the form that the test suite has")
    parser.add_argument("--seed", type=int, default=LONG.seed)
    options = parser.parse_args()
    if options.command == "run":
        if missing := why_missing() or missing_slurm():
            parser.error(missing)
        run(options.directory.absolute(), evolve(SHORT if options.short else LONG, seed=options.seed))
    account = account_of(options.directory.absolute())
    print(as_json(account) if options.json else as_table(account))
    return 0 if account.good else 1


def run(base: Path, plan: Plan) -> None:
    """Run a campaign on servers of its own."""
    base.mkdir(parents=True)
    begun = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} s  {words}", file=sys.stderr, flush=True)

    (base / "rabbitmq").mkdir()
    rabbitmq = RabbitMQ(base / "rabbitmq")
    try:
        rabbitmq.start()
        with running_slurm(base / "slurm", settings=SETTINGS) as slurm:
            say("servers are up")
            Storm(base, plan, rabbitmq, slurm, say).run()
    finally:
        rabbitmq.close()
    say(f"over; all of it is in {base}")


if __name__ == "__main__":
    sys.exit(main())
