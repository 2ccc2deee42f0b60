"""Who is believed and who is let in, with a real sshd: host keys, keys, certificates, agents, hosts on the way."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scp_helpers import MEBIBYTE, WAIT_S, Opener, carry, opened, proxy, refusal, silent, url_of
from testbed.sshd import Sshd, make_key, sshd
from testbed.stall import Proxy

from edgecore.errors import TransferInterrupted
from edgecore.testing.trees import random_bytes

__all__ = ["opened", "proxy", "sshd"]

pytestmark = pytest.mark.slow


# ------------------------------------------------------------------------------------ host keys


def test_a_host_of_which_no_key_is_known_is_refused_and_sees_no_log_in(
    opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    driver = opened(known_hosts=str(tmp_path / "empty"))
    words = refusal(driver, url_of(tmp_path, proxy), tmp_path / "here")
    assert "no host key is known" in words
    assert "ssh-keyscan" in words


@pytest.mark.parametrize("mark", ["changed", "revoked"])
def test_a_host_whose_key_has_changed_or_was_revoked_is_refused(
    mark: str, opened: Opener, proxy: Proxy, sshd: Sshd, tmp_path: Path
) -> None:
    file = tmp_path / "other"
    if mark == "changed":
        other = make_key(tmp_path / "other_key").with_suffix(".pub").read_text().split()
        file.write_text(f"[127.0.0.1]:{proxy.port} {other[0]} {other[1]}\n")
    else:
        line = sshd.known_as(proxy.port)
        file.write_text(f"{line}@revoked {line}")
    words = refusal(opened(known_hosts=str(file)), url_of(tmp_path, proxy), tmp_path / "here")
    assert mark in words


def test_a_key_that_is_not_let_in_is_refused_in_the_words_of_openssh(
    opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    driver = opened(key_file=str(make_key(tmp_path / "wrong")))
    words = refusal(driver, url_of(tmp_path, proxy), tmp_path / "here")
    assert "Permission denied (publickey)" in words


def test_a_key_with_a_passphrase_is_refused_with_what_to_do(
    opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "locked")
    subprocess.run(["ssh-keygen", "-q", "-p", "-f", key, "-P", "", "-N", "words of passing"], check=True)
    words = refusal(opened(key_file=str(key)), url_of(tmp_path, proxy), tmp_path / "here")
    assert "passphrase" in words


def test_a_host_that_is_down_is_an_interruption_and_works_when_it_is_back(
    opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    driver, url = opened(), url_of(tmp_path / "file", proxy)
    with proxy.away(), pytest.raises(TransferInterrupted, match="Connection refused"):
        driver.fetch(url=url, directory=tmp_path / "here", progress=silent)
    driver.fetch(url=url, directory=tmp_path / "here", progress=silent)
    assert b"content" == (tmp_path / "here" / "file").read_bytes()


# ---------------------------------------------------------------------------------------- log-ins


@contextmanager
def agent(socket: Path) -> Iterator[None]:
    """Run an agent without a key."""
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline()  # it listens
        yield
    finally:
        process.terminate()
        process.wait(WAIT_S)
        process.stdout.close()


def certified(sshd: Sshd, place: Path) -> Path:
    """Make a key that the server lets in for its certificate only."""
    key, authority = make_key(place / "certified"), make_key(place / "authority")
    certificate = ["-I", "edgecore", "-n", sshd.user, str(key.with_suffix(".pub"))]
    subprocess.run(["ssh-keygen", "-q", "-s", str(authority), *certificate], check=True)
    with (sshd.directory / "authorized_keys").open("a") as keys:
        keys.write(f"cert-authority {authority.with_suffix('.pub').read_text()}")
    return key


@pytest.mark.parametrize("kept", ["certificate in a file", "certificate in an agent", "key in an agent"])
def test_a_key_or_a_certificate_lets_us_in_and_openssh_too(
    kept: str,
    opened: Opener,
    proxy: Proxy,
    sshd: Sshd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = sshd.key if kept == "key in an agent" else certified(sshd, tmp_path)
    (tmp_path / "source").mkdir()
    contents = {"short": b"short", "long": random_bytes(2 * MEBIBYTE)}
    for name, content in contents.items():
        (tmp_path / "source" / name).write_bytes(content)
    with contextlib.ExitStack() as stack:
        if "agent" in kept:
            stack.enter_context(agent(tmp_path / "agent"))
            monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
            subprocess.run(["ssh-add", "-q", key], check=True)
            monkeypatch.setenv("HOME", str(tmp_path))  # which holds no key
            driver = opened(key_file="", agent=True, openssh_from_mb=1)
        else:
            driver = opened(key_file=str(key), openssh_from_mb=1)
        carry(driver, "fetch", tmp_path / "source", tmp_path / "target", proxy)
        driver.close()
    assert contents == {name: (tmp_path / "target" / name).read_bytes() for name in contents}


def test_an_agent_without_a_key_is_an_interruption_that_says_what_to_do(
    opened: Opener, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    driver = opened(key_file=str(tmp_path / "absent"), agent=True)
    words = f"looked for {tmp_path}/absent.*agent at {tmp_path}/agent has none or does not answer"
    with agent(tmp_path / "agent"), pytest.raises(TransferInterrupted, match=words):
        driver.fetch(url=url_of(tmp_path, proxy), directory=tmp_path / "here", progress=silent)


@pytest.mark.parametrize("key", ["absent", "damaged", "directory"])
def test_a_key_file_that_can_never_be_used_is_refused_by_name(
    key: str, opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "damaged").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")
    (tmp_path / "directory").mkdir()
    words = refusal(opened(key_file=str(tmp_path / key)), url_of(tmp_path, proxy), tmp_path / "here")
    assert f"{tmp_path}/{key}" in words


def test_a_host_behind_others_is_reached_through_them(
    opened: Opener, proxy: Proxy, sshd: Sshd, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(random_bytes(MEBIBYTE))
    with (tmp_path / "known hosts").open("a") as known:
        known.write(sshd.known_as(sshd.port))
    config = tmp_path / "config"
    config.write_text(
        f"Host inside\n HostName 127.0.0.1\n Port {sshd.port}\n ProxyJump ssh://{sshd.user}@gate\n"
        f"Host gate\n HostName 127.0.0.1\n Port {sshd.port}\n ProxyJump 127.0.0.1:{proxy.port}\n"
    )
    driver, before = opened(ssh_config=str(config)), proxy.passed_bytes
    driver.fetch(url=f"sftp://inside{tmp_path}/file", directory=tmp_path / "here", progress=silent)
    assert random_bytes(MEBIBYTE) == (tmp_path / "here" / "file").read_bytes()
    assert proxy.passed_bytes - before > MEBIBYTE
