"""Run a whole centre in one directory for a person who wants to try edgecore: Slurm, RabbitMQ over TLS, and where files lie.

That is an SSH server, and a GridFTP server with a MyProxy server from which the site gets its proxy. A site's file for
them is written, with an application and jobs to send, and the commands to try are printed. When it is interrupted,
all of it ends, jobs included. What is not installed is left out.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

from testbed.grid import Grid
from testbed.gridftp import GridFtp, missing_gridftp, running_gridftp
from testbed.myproxy import PASSPHRASE, MyProxy, missing_myproxy, running_myproxy
from testbed.rabbitmq import RabbitMQ, why_missing
from testbed.slurm import Slurm, missing_slurm, running_slurm
from testbed.sshd import Sshd, missing_openssh

__all__ = ["main"]

_SITE: Final = "theta"
"""The one that RabbitMQ's users here are made for."""
_TEXT: Final = """\
# A site on the servers of this testbed: Slurm{others}. It works as long as they run.

site = "theta"
work_directory = "jobs"
store = "site.sqlite"

[messaging]
{messaging}

[scheduling]
driver = "slurm"
poll_interval_s = 1
accounting = {accounting}

[environment.set]
PATH = {path}
SLURM_CONF = {conf}

[[transfer]]
{transfer}

[defaults]
queue = "batch"                # the partition

[launchers.mpi]
arguments = ["srun", "--export=ALL", "-n", "{{processes}}", "--ntasks-per-node", "{{processes_per_node}}"]
"""
_GRID: Final = """
[[transfer]]
{transfer}

[[credential]]                 # the proxy; the command gets later ones from MyProxy before it ends
{credential}
"""
_TRY: Final = """\
The testbed is ready. In another terminal:

  export PATH={bin}:$PATH SLURM_CONF={conf}
  cd {site}
  edgecore doctor site.toml                            # is all there that the site needs?
  edgecore run site.toml                               # the service; then, in a third terminal
  edgecore submit hello.json --site {sender} --wait    # {whose}
{grid}  edgecore jobs --site site.toml --watch

  squeue; sinfo; scontrol show job                     # Slurm: nodes n1 to n{nodes}, partitions batch, short, down
  kill -STOP {controller}; sleep 60; kill -CONT {controller}   # its controller does not answer for a minute

Ctrl-C here ends all of it.
"""


@frozen
class _Bed:
    """What runs."""

    slurm: Slurm
    rabbitmq: RabbitMQ | None = None
    sshd: Sshd | None = None
    gridftp: GridFtp | None = None
    myproxy: MyProxy | None = None
    """There is one where there is a GridFTP server."""


@click.command()
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep everything in DIR, which must be new or empty. [default: a temporary one, removed at the end]",
)
@click.option("--nodes", default=4, show_default=True, help="How many nodes Slurm has.")
@click.option(
    "--accounting", is_flag=True, help="Run slurmdbd and its database, too, so that there is sacct."
)
@click.option(
    "--only-slurm",
    is_flag=True,
    help="Leave RabbitMQ, SSH, GridFTP and MyProxy servers out, as if not installed.",
)
def main(directory: Path | None, nodes: int, accounting: bool, only_slurm: bool) -> None:
    """Run Slurm, RabbitMQ, SSH, GridFTP and MyProxy servers on loopback, and write a site's file for them.

    Prints the commands to try, and runs until it is interrupted. Needs what `make packages` installs.
    """
    if words := missing_slurm(accounting=accounting):
        raise click.ClickException(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        base = _directory(stack, directory)
        bed = _started(stack, base, nodes=nodes, accounting=accounting, only_slurm=only_slurm)
        _make_site(base / "site", bed)
        click.echo(_advice(base / "site", bed))
        while True:
            signal.pause()


def _directory(stack: contextlib.ExitStack, wanted: Path | None) -> Path:
    if wanted is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgecore-testbed-")))
    if wanted.exists() and any(wanted.iterdir()):
        raise click.UsageError(f"{wanted} is not empty; name a new directory")
    wanted.mkdir(parents=True, exist_ok=True)
    return wanted.absolute()


def _started(
    stack: contextlib.ExitStack, base: Path, *, nodes: int, accounting: bool, only_slurm: bool
) -> _Bed:
    click.echo("starting Slurm ...", err=True)
    slurm = stack.enter_context(running_slurm(base / "slurm", nodes=nodes, accounting=accounting))
    rabbitmq = sshd = gridftp = myproxy = None
    if (words := "left out" if only_slurm else why_missing()) == "":
        click.echo("starting RabbitMQ ...", err=True)
        rabbitmq = stack.enter_context(_running_rabbitmq(_made(base / "rabbitmq")))
    else:
        click.echo(f"no RabbitMQ ({words}): the site's queue is a file", err=True)
    if (words := "left out" if only_slurm else missing_openssh()) == "":
        sshd = Sshd(_made(base / "sshd")).make().start()
        stack.callback(sshd.stop)
    else:
        click.echo(f"no SSH server ({words}): jobs bring their files by file://", err=True)
    if (words := "left out" if only_slurm else missing_gridftp() or missing_myproxy()) == "":
        click.echo("starting GridFTP and MyProxy ...", err=True)
        grid = Grid(_made(base / "grid"))
        gridftp = stack.enter_context(running_gridftp(_made(base / "gridftp"), grid))
        myproxy = stack.enter_context(running_myproxy(_made(base / "myproxy"), grid))
        myproxy.deposit()
    else:
        click.echo(f"no GridFTP server ({words}): nothing by gsiftp://", err=True)
    return _Bed(slurm, rabbitmq, sshd, gridftp, myproxy)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@contextlib.contextmanager
def _running_rabbitmq(directory: Path) -> Iterator[RabbitMQ]:
    server = RabbitMQ(directory)
    try:
        server.start()
        yield server
    finally:
        server.close()


# ------------------------------------------------------------------------------------- the site


def _make_site(place: Path, bed: _Bed) -> None:
    """Make a site as `edgecore init` does, with these servers in its file, and one of who sends jobs."""
    edgecore = [sys.executable, "-m", "edgecore", "init", str(place), "--site", _SITE]
    subprocess.run(edgecore, check=True, stdout=subprocess.DEVNULL)
    data = place / "data"
    url = f"file://{data}"
    if bed.sshd is not None:
        url = f"scp://127.0.0.1:{bed.sshd.port}{data}"
        (bed.sshd.directory / "known_hosts").write_text(bed.sshd.known_as(bed.sshd.port))
    grid = "" if bed.gridftp is None else f"{bed.gridftp.url}{data}"
    others = _grid_tables(place, bed, f"{grid}/") if grid else ""
    (place / "site.toml").write_text(_site_file(bed, url, _messaging(place, bed, _SITE)) + others)
    if bed.rabbitmq is not None:
        sender = _site_file(bed, url, _messaging(place, bed, "physicist"))
        (place / "sender.toml").write_text(sender + others)
    job = json.loads((place / "hello.json").read_text())
    for name, where in (("hello", url), ("hello-grid", grid)):
        if where:
            job |= {
                "name": name,
                "input_url": f"{where}/hello/",
                "output_url": f"{where}/{name}-output/",
            }
            (place / f"{name}.json").write_text(json.dumps(job, indent=1) + "\n")


def _site_file(bed: _Bed, url: str, messaging: Mapping[str, Any]) -> str:
    transfer = {"prefix": f"{url}/"}
    if bed.sshd is not None:
        transfer |= {"key_file": str(bed.sshd.key), "known_hosts": str(bed.sshd.directory / "known_hosts")}
    servers = (("RabbitMQ", bed.rabbitmq), ("an SSH server", bed.sshd), ("GridFTP, MyProxy", bed.gridftp))
    others = [name for name, server in servers if server]
    return _TEXT.format(
        others="".join(f", {name}" for name in others),
        messaging=_toml(messaging),
        transfer=_toml(transfer),
        accounting=json.dumps(bed.slurm.slurmdbd is not None),
        path=json.dumps(bed.slurm.environment["PATH"]),
        conf=json.dumps(str(bed.slurm.conf)),
    )


def _grid_tables(place: Path, bed: _Bed, prefix: str) -> str:
    """Return the tables for the GridFTP server; the passphrase for MyProxy and a first proxy lie where they say."""
    assert bed.gridftp is not None
    assert bed.myproxy is not None
    authorities, proxy = str(bed.myproxy.grid.authorities), str(place / "proxy")
    passphrase = place / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text(f"{PASSPHRASE}\n")
    renew = [
        str(Path(sys.executable).parent / "edgecore-myproxy-renew"), "--server", bed.myproxy.address,
        "--user", "alice", "--passphrase-file", str(passphrase), "--authorities", authorities,
    ]  # fmt: skip
    stack = ["-dcstack", bed.gridftp.stack]
    subprocess.run([*renew, "--file", proxy], check=True, stdout=subprocess.DEVNULL)
    transfer = {"prefix": prefix, "proxy": proxy, "authorities": authorities, "options": stack}
    credential = {"name": "grid", "file": proxy, "needed_by": [prefix], "renew": renew}
    return _GRID.format(transfer=_toml(transfer), credential=_toml(credential))


def _messaging(place: Path, bed: _Bed, user: str) -> Mapping[str, Any]:
    if bed.rabbitmq is None:
        return {"url": f"sqlite://{place}/queues.sqlite"}
    return {**bed.rabbitmq.settings(user), "may_declare": False}


def _toml(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def _advice(place: Path, bed: _Bed) -> str:
    told = bed.rabbitmq is not None
    sender = "sender.toml" if told else "site.toml"
    grid = f"  edgecore submit hello-grid.json --site {sender} --wait    # its files by gsiftp://\n"
    return _TRY.format(
        bin=Path(sys.executable).parent,
        conf=bed.slurm.conf,
        site=place,
        sender=sender,
        grid=grid if bed.gridftp is not None else "",
        whose="as a user who may only ask for jobs" if told else "to the queue of this site",
        nodes=len(bed.slurm.slurmd),
        controller=bed.slurm.controller_pid,
    )
