"""``edgecore-myproxy-renew`` with a real MyProxy server: what it brings, what it refuses, what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from edgecore_gridftp import GridFtpTransfer
from edgecore_gridftp.renewing import Request, advice_on, logon_command, main
from sites import Site, make_site, wait_for
from testbed.gridftp import gridftp_needed, running_gridftp
from testbed.myproxy import LEAST_S, PASSPHRASE, RENEWER, MyProxy, running_myproxy
from testbed.proxies import Holder, place_file, write_proxy

from edgecore.certificates import judge
from edgecore.models import JobState as S
from edgecore.models import SiteContext
from edgecore.processes import process_start
from edgecore.reader import Reader
from edgecore.testing.site import DEADLINE_S

__all__ = ["gridftp_needed"]


@pytest.fixture(scope="module")
def myproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MyProxy]:
    """A server that keeps Alice's credential behind a passphrase, one for renewal, and one for whom it trusts."""
    with running_myproxy(tmp_path_factory.mktemp("myproxy")) as server:
        server.deposit()
        server.deposit("renewable", renewers=RENEWER)
        server.deposit("trusted", trusted=RENEWER)
        yield server


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    return secret(tmp_path / "passphrase", PASSPHRASE)


def secret(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(f"{text}\n")
    return path


@pytest.fixture
def proxy(tmp_path: Path) -> Path:
    return tmp_path / "place" / "proxy"


@pytest.fixture
def ask(myproxy: MyProxy, proxy: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Ask the server for a proxy; answers what is said where that fails."""
    proxy.parent.mkdir()

    def ask(*more: str, user: str = "alice", server: str = "") -> str:
        before = (proxy.read_bytes(), os.stat(proxy).st_mode) if proxy.exists() else None
        code = main(
            ["--server", server or myproxy.address, "--user", user, "--file", str(proxy), "--authorities",
             str(myproxy.grid.authorities), *more]
        )  # fmt: skip
        out, err = capfd.readouterr()
        assert set(os.listdir(proxy.parent)) <= {"proxy"}, "nothing is left beside it"
        if code == 0:
            assert f"{proxy}: a proxy for CN=" in out
            assert "" == err
            return ""
        assert 1 == code
        assert before == ((proxy.read_bytes(), os.stat(proxy).st_mode) if proxy.exists() else None)
        return err

    return ask


def own(myproxy: MyProxy, name: str = "renewer") -> tuple[str, ...]:
    directory = myproxy.directory
    return ("--certificate", str(directory / f"{name}.pem"), "--key", str(directory / f"{name}.key"))


def left_s(proxy: Path) -> float:
    found = judge(proxy)
    assert "" == found.trouble
    return found.expires / 1e6 - time.time()


Ask = Callable[..., str]

# ------------------------------------------------------------------------------ without a server


def request(**more: Any) -> Request:
    return Request(**{"server": "myproxy.example.gov", "user": "alice", "file": Path("/p"), **more})


def test_the_command_says_in_which_way_the_proxy_is_to_be_had() -> None:
    where = ["-s", "myproxy.example.gov", "-p", "7512", "-l", "alice", "-t", "12", "-o", "/new"]
    new, old = Path("/new"), Path("/old")
    assert ["myproxy-logon", *where, "-n", "-a", "/old"] == logon_command(request(), new, old)
    assert ["myproxy-logon", *where, "-n"] == logon_command(request(), new, None)
    more = request(credential="atlas", voms=("atlas", "cms:/cms"), passphrase_file=Path("/x"))
    assert ["-k", "atlas", "-m", "atlas", "-m", "cms:/cms", "-S"] == logon_command(more, new, old)[
        len(where) + 1 :
    ]


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("ERROR from myproxy-server:; Bad password; invalid credential passphrase", "compare the passphrase"),
        ("PAM authentication failed: System error", "compare the passphrase"),
        (
            "error:068000A8:asn1 encoding routines::wrong tag; error:0688010A:asn1 encoding routines::nested asn1 error; "
            "Type=PKCS8_PRIV_KEY_INFO",
            "compare the passphrase",
        ),
        ('No credentials exist for username "nobodyhere".', "have its owner store one"),
        ("Unable to connect to 127.0.0.1:17599; Connection refused", "does it run"),
        ("no passphrase; authentication failed", "authorized_renewers"),
        (
            "certificate chain verification failed; X509_verify_cert() failed: certificate has expired; authentication failed",
            "what has expired cannot be renewed",
        ),
        ("something new", ""),
    ],
)
def test_what_myproxy_6_2_says_is_understood(words: str, advice: str) -> None:
    assert advice in advice_on(words)
    assert bool(advice) == bool(advice_on(words))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--server"),
        (
            ["--server", "a b", "--user", "x", "--file", "/p", "--certificate", "/c"],
            "found 'a b'; must be a host",
        ),
        (["--server", "a:99999", "--user", "x", "--file", "/p", "--certificate", "/c"], "must be a host"),
        (["--server", "a", "--user", "x", "--certificate", "/c"], "EDGECORE_CREDENTIAL_FILE"),
        (["--server", "a", "--user", "x", "--file", "/p"], "name --passphrase-file to obtain"),
        (
            ["--server", "a", "--user", "x", "--file", "/p", "--certificate", "/c", "--hours", "0"],
            "at least 1",
        ),
    ],
)
def test_a_command_line_that_cannot_work_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGECORE_CREDENTIAL_FILE", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert 2 == caught.value.code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "text", "words"),
    [(0o644, "secret", "chmod 600"), (0o600, "", "is empty"), (None, "", "No such file")],
)
def test_a_passphrase_that_others_can_read_is_not_used(
    tmp_path: Path, mode: int | None, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "passphrase"
    if mode is not None:
        secret(path, text).chmod(mode)
    given = ["--server", "localhost:1", "--user", "x", "--file", str(tmp_path / "proxy")]
    assert 1 == main([*given, "--passphrase-file", str(path)])
    assert words in capsys.readouterr().err


def test_a_passphrase_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "passphrase"
    os.mkfifo(path, 0o600)
    given = ["--server", "localhost:1", "--user", "x", "--file", str(tmp_path / "proxy")]
    assert 1 == main([*given, "--passphrase-file", str(path)])
    assert f"the passphrase file {path} is no file" in capsys.readouterr().err


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let something else stand for ``myproxy-logon``; our own certificate lies beside it."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    program = place / "myproxy-logon"
    program.touch(mode=0o755)
    holder = Holder.made(["edge"])
    place_file(place / "own.pem", holder.pem + holder.key_pem())
    return program


def _asked(file: Path, tool: Path) -> list[str]:
    """Return the command line that renews a proxy with our own certificate."""
    own = str(tool.with_name("own.pem"))
    return ["--server", "localhost:1", "--user", "x", "--file", str(file), "--certificate", own]


@pytest.mark.parametrize(
    ("script", "words", "timeout_s"),
    [
        ('echo rubbish >"${10}"', "holds no certificate", "60"),
        ("exit 0", "No such file", "60"),
        ("sleep 60", "gave no answer within", "0.1"),
        ('head -c 700 "$FULL" >"${10}"', "cannot be used", "60"),
    ],
)
def test_what_the_tool_brings_is_judged_before_it_takes_the_old_ones_place(
    tmp_path: Path, tool: Path, script: str, words: str, timeout_s: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_proxy(tmp_path / "proxy", 600)
    full, before = write_proxy(tmp_path / "full"), old.read_bytes()
    tool.write_text(f"#!/bin/sh\n{script.replace('$FULL', str(full))}\n")
    assert 1 == main([*_asked(old, tool), "--timeout-s", timeout_s])
    assert words in capsys.readouterr().err
    assert before == old.read_bytes()
    assert {"bin", "proxy", "full"} == set(os.listdir(tmp_path))


def test_what_is_named_on_the_command_line_and_cannot_be_used_is_told(
    tmp_path: Path, tool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--server", "localhost:1", "--user", "x"]
    assert 1 == main([*given, "--file", str(tmp_path / "proxy"), "--certificate", "/nowhere"])
    assert "our own certificate cannot be used: /nowhere: No such file" in capsys.readouterr().err
    own = str(tool.with_name("own.pem"))
    assert 1 == main([*given, "--file", str(tmp_path), "--certificate", own])
    assert f"{tmp_path} is a directory: name the proxy's file" in capsys.readouterr().err


def test_what_a_killed_renewal_has_left_is_removed_later(
    tmp_path: Path, tool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aged, young = tmp_path / ".proxy.renewing-aged", tmp_path / ".proxy.renewing-young"
    for each in (aged, young):
        each.mkdir()
        (each / "proxy").touch()
    os.utime(aged, (1, 1))
    tool.write_text(f'#!/bin/sh\ncp -p {write_proxy(tmp_path / "full")} "${{10}}"\n')
    link = tmp_path / "link"
    link.symlink_to("proxy")
    given = _asked(link, tool)
    assert 0 == main(given), capsys.readouterr().err
    assert (False, True) == (aged.exists(), young.exists())
    assert link.is_symlink(), "what it names is renewed, and not the link"
    assert "" == judge(tmp_path / "proxy").trouble


def test_a_service_knows_the_tool_of_a_killed_renewal_by_its_mark(
    tmp_path: Path, tool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECORE_PROGRAM_OF", "/the/store")
    tool.write_text(f'#!/bin/sh\necho "$EDGECORE_PROGRAM_OF" >{tmp_path}/mark\n')
    given = _asked(tmp_path / "proxy", tool)
    assert 1 == main(given)
    assert "/the/store\n" == (tmp_path / "mark").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_renewal_that_is_told_to_stop_ends_its_tool_and_leaves_all_as_it_was(
    tmp_path: Path, tool: Path, number: signal.Signals
) -> None:
    old, note = write_proxy(tmp_path / "proxy", 600), tmp_path / "pid"
    before = old.read_bytes()
    tool.write_text(f'#!/bin/sh\necho half >"${{10}}"\necho $$ >{note}\nexec sleep 600\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecore_gridftp.renewing", *_asked(old, tool)], stderr=subprocess.PIPE
    )
    try:
        wait_for(lambda: note.exists() and note.read_text().endswith("\n"), DEADLINE_S)
        process.send_signal(number)
        _, words = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    assert f"stopped by {number.name}; {old} is as it was" in words.decode()
    assert 128 + number == process.returncode
    assert process_start(int(note.read_text())) is None
    assert before == old.read_bytes()
    assert {"bin", "proxy", "pid"} == set(os.listdir(tmp_path))


# --------------------------------------------------------------------------------- on the server


@pytest.mark.slow
def test_a_proxy_is_obtained_with_a_passphrase_from_a_file(ask: Ask, proxy: Path, passphrase: Path) -> None:
    assert "" == ask("--passphrase-file", str(passphrase), "--hours", "2")
    assert 0o600 == os.stat(proxy).st_mode & 0o777
    assert 7000 < left_s(proxy) <= 7200


@pytest.mark.slow
def test_a_proxy_that_lives_is_renewed_by_whom_its_owner_named(
    ask: Ask, proxy: Path, myproxy: MyProxy
) -> None:
    proxy.parent.mkdir(exist_ok=True)
    myproxy.user.write_proxy(proxy, lasts=timedelta(minutes=5))
    assert "" == ask("--credential", "renewable", "--hours", "3", *own(myproxy))
    assert 10_000 < left_s(proxy) <= 10_800


@pytest.mark.slow
def test_a_server_that_trusts_us_gives_a_proxy_where_there_was_none(
    ask: Ask, proxy: Path, myproxy: MyProxy
) -> None:
    assert "" == ask("--credential", "trusted", "--hours", "1", *own(myproxy))
    assert 3000 < left_s(proxy) <= 3600


@pytest.mark.slow
def test_a_proxy_that_lives_no_longer_than_the_present_one_is_not_taken(
    ask: Ask, proxy: Path, passphrase: Path, myproxy: MyProxy
) -> None:
    myproxy.user.write_proxy(proxy, lasts=timedelta(hours=20))
    words = ask("--passphrase-file", str(passphrase), "--hours", "1")
    assert "no later than the present one" in words


@pytest.mark.slow
def test_what_the_tool_says_comes_with_what_to_do_and_the_present_proxy_stays(
    ask: Ask, proxy: Path, passphrase: Path, tmp_path: Path, myproxy: MyProxy
) -> None:
    myproxy.user.write_proxy(proxy, lasts=timedelta(hours=1))
    wrong = secret(tmp_path / "wrong", "shut sesame")
    words = ask("--passphrase-file", str(wrong))
    assert "edgecore-myproxy-renew: no proxy for alice at localhost:" in words
    assert "compare the passphrase" in words
    words = ask("--passphrase-file", str(passphrase), user="nobody-here")
    assert 'No credentials exist for username "nobody-here"' in words
    assert "have its owner store one" in words
    words = ask("--credential", "renewable", *own(myproxy, "mallory"))
    assert "authentication failed" in words
    assert "myproxy-init -R" in words
    words = ask("--passphrase-file", str(passphrase), server="localhost:1")
    assert "Connection refused" in words
    assert "does it run" in words
    words = ask("--passphrase-file", str(passphrase), "--authorities", str(tmp_path))
    assert "compare --authorities" in words
    words = ask(*own(myproxy))
    assert "this one is kept with a passphrase: give it (--passphrase-file), or have its owner" in words
    proxy.unlink()
    myproxy.user.write_proxy(proxy, lasts=timedelta(seconds=-5))
    words = ask("--credential", "renewable", *own(myproxy))
    assert "the present one is of no help: it expired at" in words


@pytest.mark.slow
def test_what_it_brings_opens_the_door_of_a_gridftp_server(
    ask: Ask, proxy: Path, passphrase: Path, myproxy: MyProxy, tmp_path: Path, gridftp_needed: None
) -> None:
    ask("--passphrase-file", str(passphrase))
    for name in ("gridftp", "source", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "file").write_text("content")
    with running_gridftp(tmp_path / "gridftp", myproxy.grid) as server:
        driver = GridFtpTransfer(
            proxy=str(proxy), authorities=str(myproxy.grid.authorities), options=("-dcstack", server.stack)
        )
        driver.open(site=SiteContext(site="theta", work_directory=tmp_path / "work"))
        report = driver.fetch(
            url=f"{server.url}{tmp_path}/source", directory=tmp_path / "here", progress=lambda update: None
        )
        driver.close()
    assert "content" == (tmp_path / "here" / "file").read_text()
    assert 1 == report.files


# ----------------------------------------------------------------------------------- in a service


def site_of(base: Path, myproxy: MyProxy, renewable: str, lives_s: float) -> Site:
    """Lay out a site whose transfers need a proxy that the server renews."""
    command = [
        str(Path(sys.executable).parent / "edgecore-myproxy-renew"), "--server", myproxy.address, "--user", "alice",
        "--credential", renewable, "--authorities", str(myproxy.grid.authorities), *own(myproxy),
    ]  # fmt: skip
    return make_site(
        base,
        more=f'[[credential]]\nname = "grid"\nfile = "proxy"\nneeded_by = ["file://{base}/data/"]\n'
        f"renew = {json.dumps(command)}\nrenew_before_minutes = {lives_s * 0.75 / 60}\nlook_s = 0.5\n",
    )


def alarms(site: Site) -> dict[str, str]:
    with Reader(site.config.store) as reader:
        return {alarm.subject: alarm.message for alarm in reader.alarms()}


def state(site: Site, name: str) -> str:
    """Say where a job is, and while it is at its beginning, why."""
    job = site.named(name)
    if job is None:
        return "nowhere"
    return f"{job.state} {job.message}" if job.state is S.CREATED else str(job.state)


@pytest.mark.parametrize(
    "lives_s",
    [
        pytest.param(8.0, marks=pytest.mark.slow),
        pytest.param(60.0, marks=[pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_a_service_lives_on_credentials_that_live_a_minute(
    tmp_path: Path, myproxy: MyProxy, lives_s: float
) -> None:
    """The server gives five minutes at least: the service's clock goes so far ahead that less of them is left."""
    myproxy.deposit("short", renewers=RENEWER)
    myproxy.shorten("short")
    site = site_of(tmp_path / "site", myproxy, "short", lives_s)
    file = site.base / "proxy"
    myproxy.user.write_proxy(file, lasts=timedelta(seconds=LEAST_S))
    long_s = DEADLINE_S + 3 * lives_s
    with site.service(ahead_s=LEAST_S - lives_s):
        expiries = [judge(file).expires]

        def renewed() -> bool:
            if (now := judge(file).expires) != expiries[-1]:
                expiries.append(now)
            return len(expiries) > (1 if lives_s < 10 else 3)

        wait_for(renewed, long_s, site.diagnosis)
        site.send(site.job(name="before", **site.files("before", seconds=0)))
        site.wait_settled(1)

        myproxy.stop()
        wait_for(lambda: "credential grid" in alarms(site), long_s, site.diagnosis)
        wait_for(lambda: "edgecore-myproxy-renew: no proxy for alice" in site.log, long_s, site.diagnosis)
        site.send(site.job(name="meanwhile", **site.files("meanwhile", seconds=0)), site.job(name="free"))
        wait_for(lambda: state(site, "free") == "JOB_FINISHED", long_s, site.diagnosis)
        wait_for(lambda: "waits for the credential grid" in state(site, "meanwhile"), long_s, site.diagnosis)

        myproxy.start()
        site.wait_settled(3, long_s)
        wait_for(lambda: {} == alarms(site), long_s, site.diagnosis)
    assert {S.JOB_FINISHED} == {job.state for job in site.jobs()}
