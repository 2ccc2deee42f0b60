"""Obtain or renew a grid proxy from a MyProxy server: ``edgecore-myproxy-renew``, for the ``renew`` of a credential.

``myproxy-logon`` does the talking, in one of three ways: with a passphrase from a file; with our own certificate and
the proxy that we still have, which must not have expired; or with our own certificate alone, where the server trusts
it so far. What it brings is judged before it takes the place of the old proxy, in one step: who uses
the file meanwhile sees the one or the other. A signal to stop ends the tool first, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from attrs import frozen

from edgecore import commands
from edgecore.certificates import Judgement, judge, utc
from edgecore.errors import ActionStopped, EdgeError

__all__ = ["NotRenewed", "Request", "advice_on", "logon_command", "main", "renew"]

_PROGRAM: Final = "edgecore-myproxy-renew"
_TOOL: Final = "myproxy-logon"
_FILE: Final = "EDGECORE_CREDENTIAL_FILE"
_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NOWHERE: Final = "/nonexistent"
_LEFT_OVER_S: Final = 3600.0
_LONGEST_PASSPHRASE: Final = 1024

_ADVICE: Final = (
    (
        r"certificate has expired",
        "what has expired cannot be renewed: put a new proxy there, or use --passphrase-file",
    ),
    (
        # One wrong passphrase of 256 decrypts to something, which then is no key.
        r"invalid credential passphrase|Bad password|PAM authentication|asn1 encoding routines",
        "compare the passphrase with the one that myproxy-init was given",
    ),
    (
        r"No credentials exist",
        "have its owner store one: myproxy-init, with the same user (-l) and name (-k)",
    ),
    (
        r"No credentials for renewal|no passphrase|authentication failed|not authorized",
        "the server must know our certificate as one that may renew: myproxy-init -R, and authorized_renewers there",
    ),
    (
        r"[Uu]nable to connect|Connection refused|resolve",
        "is the server's name right, does it run, is a firewall between?",
    ),
    (
        r"CA certificate|verify|subject|target name",
        "compare --authorities and --server-subject with the server's certificate",
    ),
)
"""What the tool says (MyProxy 6.2) -> what to do; the first that fits."""
_KEPT_LOCKED: Final = (
    "this one is kept with a passphrase: give it (--passphrase-file), or have its owner store one for those who renew "
    "(myproxy-init -n -R), and name it (--credential)"
)


class NotRenewed(EdgeError):
    """There is no new proxy, and the old one is untouched."""


@frozen(kw_only=True)
class Request:
    """What is to be had from which server."""

    server: str
    port: int = 7512
    user: str
    file: Path
    """Where the proxy is, and where the new one goes."""
    credential: str = ""
    """The name under which the server keeps it; empty for the one without a name."""
    hours: int = 12
    passphrase_file: Path | None = None
    certificate: Path | None = None
    """Our own, for servers that let us renew; with its key."""
    key: Path | None = None
    authorities: Path | None = None
    server_subject: str = ""
    voms: tuple[str, ...] = ()
    timeout_s: float = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Renew as the command line says; return the exit code: 0, or 1 with the reason on standard error.

    A signal to stop is 128 and its number, as in a shell.
    """
    request = _parsed(arguments)
    try:
        with _told_to_stop() as told:
            found = renew(request, unwanted=lambda: bool(told))
    except ActionStopped:
        sys.stderr.write(f"{_PROGRAM}: stopped by {told[0].name}; {request.file} is as it was\n")
        return 128 + told[0]
    except EdgeError as error:
        sys.stderr.write(f"{_PROGRAM}: {error}\n")
        return 1
    sys.stdout.write(f"{request.file}: a proxy for {found.subject}, which expires at {utc(found.expires)}\n")
    return 0


@contextmanager
def _told_to_stop() -> Iterator[list[signal.Signals]]:
    """Give the signals to stop that came, instead of dying of them while the tool runs; on the main thread.

    What is ignored stays so: who started us under nohup does not want us to end with the terminal.
    """
    told: list[signal.Signals] = []

    def heard(number: int, _: FrameType | None) -> None:
        told.append(signal.Signals(number))

    stops = [each for each in _STOPS if signal.getsignal(each) is not signal.SIG_IGN]
    former = [(each, signal.signal(each, heard)) for each in stops]
    try:
        yield told
    finally:
        for each, handler in former:
            signal.signal(each, handler)


def renew(request: Request, unwanted: Callable[[], bool] = lambda: False) -> Judgement:
    """Put a new proxy into the place of the old one, and say what it is.

    Raises NotRenewed, CommandNotFound, and ActionStopped once *unwanted* says so, with the old proxy in its place.
    """
    target = Path(os.path.realpath(request.file))
    if target.is_dir():
        raise NotRenewed(f"{request.file} is a directory: name the proxy's file in it (--file)")
    if request.certificate and (
        reason := judge(request.certificate, request.key or request.certificate).reason(_now())
    ):
        raise NotRenewed(f"our own certificate cannot be used: {reason}")
    try:
        with _own_directory(target) as directory:
            return _renew(request, target, directory / "proxy", unwanted)
    except OSError as error:
        raise NotRenewed(f"cannot put a new proxy into {target.parent}: {error.strerror}") from error


def _renew(request: Request, target: Path, fresh: Path, unwanted: Callable[[], bool]) -> Judgement:
    old, asked = judge(target), f"{request.user} at {request.server}:{request.port}"
    with_old = not old.reason(_now()) and old.is_proxy
    result = commands.run(
        logon_command(request, fresh, target if with_old else None),
        timeout_s=request.timeout_s,
        environment=_environment(request),
        stdin=_passphrase(request.passphrase_file),
        unwanted=unwanted,
    )
    if result.exit_code != 0:
        complaint = result.complaint()
        advice = advice_on(complaint, with_passphrase=request.passphrase_file is not None)
        if not with_old and request.passphrase_file is None:
            advice += f"; the present one is of no help: {old.reason(_now())}"
        raise NotRenewed(f"no proxy for {asked}: {complaint}{advice and '; ' + advice.removeprefix('; ')}")
    found = judge(fresh)
    if reason := found.reason(_now()):
        raise NotRenewed(f"what came for {asked} cannot be used: {reason}")
    if with_old and found.expires <= old.expires:
        raise NotRenewed(
            f"what came for {asked} expires at {utc(found.expires)}, no later than the present one; "
            "if the server's own copy runs out, have its owner store a new one"
        )
    _take_over(fresh, target)
    return found


def logon_command(request: Request, output: Path, old: Path | None) -> list[str]:
    """Return the command; see myproxy-logon(1). *old* is the present proxy, where it can still be used."""
    command = [_TOOL, "-s", request.server, "-p", str(request.port), "-l", request.user]
    command += ["-t", str(request.hours), "-o", str(output)]
    if request.credential:
        command += ["-k", request.credential]
    for each in request.voms:
        command += ["-m", each]
    if request.passphrase_file is not None:
        return [*command, "-S"]
    return [*command, "-n", "-a", str(old)] if old is not None else [*command, "-n"]


def advice_on(words: str, *, with_passphrase: bool = True) -> str:
    """Return what to do about what the tool said; empty where that is unknown."""
    if not with_passphrase and "invalid credential passphrase" in words:
        return _KEPT_LOCKED
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, words)), "")


def _environment(request: Request) -> Mapping[str, str]:
    """Return who we are for the tool: what the request names, and no proxy or home that lies about.

    With our own variables goes the mark by which a service ends what one that was killed, and we with it, has left.
    """
    built = {
        **{name: value for name, value in os.environ.items() if name.startswith("EDGECORE_")},
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": _NOWHERE,
        "X509_USER_PROXY": _NOWHERE,
        "X509_USER_CERT": str(request.certificate or _NOWHERE),
        "X509_USER_KEY": str(request.key or request.certificate or _NOWHERE),
    }
    authorities = str(request.authorities or os.environ.get("X509_CERT_DIR", ""))
    if authorities:
        built["X509_CERT_DIR"] = authorities
    if request.server_subject:
        built["MYPROXY_SERVER_DN"] = request.server_subject
    return built


def _passphrase(path: Path | None) -> bytes:
    """Return the passphrase as the tool reads it. Raises NotRenewed."""
    if path is None:
        return b""
    try:
        # Opening a FIFO to which nobody writes would hold us for ever, whatever signal comes.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise NotRenewed(f"the passphrase file {path} is no file")
            content = file.read(_LONGEST_PASSPHRASE).rstrip(b"\r\n")
    except OSError as error:
        raise NotRenewed(f"the passphrase file {path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise NotRenewed(f"others than this account can read the passphrase file {path}: chmod 600 {path}")
    if not content:
        raise NotRenewed(f"the passphrase file {path} is empty")
    return content + b"\n"


@contextmanager
def _own_directory(target: Path) -> Iterator[Path]:
    """Make a directory beside *target* that nobody else may enter, and remove those that killed ones left."""
    prefix = f".{target.name}.renewing-"
    for each in target.parent.iterdir():
        if each.name.startswith(prefix) and time.time() - each.lstat().st_mtime > _LEFT_OVER_S:
            shutil.rmtree(each, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _take_over(fresh: Path, target: Path) -> None:
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(target)


def _now() -> int:
    return time.time_ns() // 1000


# ------------------------------------------------------------------------------ command line


def _parsed(arguments: Sequence[str] | None) -> Request:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Obtain or renew a grid proxy from a MyProxy server. The file is replaced as a whole, and only by a "
        "proxy that can be used and lives longer.",
        epilog="With --passphrase-file, that obtains it. Otherwise --certificate renews the proxy that is there, or "
        "obtains one where the server trusts that certificate.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--server",
        required=True,
        metavar="HOST[:PORT]",
        help="the MyProxy server; its port is 7512 by default",
    )
    add("--user", required=True, help="under whose name the server keeps the credential (myproxy-init -l)")
    add("--credential", default="", metavar="NAME", help="its name there, if it has one (myproxy-init -k)")
    add(
        "--file",
        type=Path,
        default=os.environ.get(_FILE),
        help=f"the proxy; by default {_FILE}, as a service sets it",
    )
    add("--hours", type=int, default=12, help="for how long the new one is to live; the server may give less")
    add("--passphrase-file", type=Path, metavar="FILE", help="of which only this account can read")
    add("--certificate", type=Path, metavar="FILE", help="our own, which the server lets renew (PEM)")
    add("--key", type=Path, metavar="FILE", help="its key; by default in the same file")
    add(
        "--authorities",
        type=Path,
        metavar="DIR",
        help="who is believed; by default X509_CERT_DIR, else /etc/grid-security/certificates",
    )
    add(
        "--server-subject",
        default="",
        metavar="DN",
        help="the server's name, where it is not that of its host",
    )
    add(
        "--voms",
        action="append",
        default=[],
        metavar="VO[:ATTRIBUTES]",
        help="have these attributes added; may be repeated",
    )
    add("--timeout-s", type=float, default=60.0, metavar="SECONDS", help="for the server's answer")
    given = vars(parser.parse_args(arguments))
    host, port = _server(parser, given.pop("server"))
    if given["file"] is None:
        parser.error(f"--file: name the proxy, or set {_FILE}")
    if given["passphrase_file"] is None and given["certificate"] is None:
        parser.error("name --passphrase-file to obtain a proxy, or --certificate to renew one")
    if given["hours"] < 1:
        parser.error("--hours: must be at least 1")
    given["voms"] = tuple(given["voms"])
    return Request(server=host, port=port, **{**given, "file": Path(given["file"])})


def _server(parser: argparse.ArgumentParser, text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?", text)
    port = int(found[2] or 7512) if found else 0
    if not found or not 0 < port < 65536 or text.startswith("-"):
        parser.error(f"--server: found {text!r}; must be a host, or host:port")
    return found[1].strip("[]"), port


if __name__ == "__main__":
    sys.exit(main())
