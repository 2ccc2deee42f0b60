"""What needs no server: URLs, packets, checksums, commands for OpenSSH, findings."""

from __future__ import annotations

import base64
import hmac
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
)
from edgecore_scp import ScpTransfer, wire
from edgecore_scp.bulk import Bulk, can_carry, sftp_command
from edgecore_scp.checksums import parse_digests
from edgecore_scp.connection import Claims
from edgecore_scp.examining import findings
from edgecore_scp.hosts import Login, connected, route_to
from edgecore_scp.known import KnownKeys
from edgecore_scp.place import Place, parse_url
from edgecore_scp.transport import OrderedTransport, Turns, why_closed
from edgecore_scp.wire import Answer, Attributes, Entry, Failure, Garbled, Kind

from edgecore.drivers import find_driver
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.models import Level, SiteContext

LOGIN = Login(
    user="",
    key_file="",
    known_hosts="",
    ssh_config="none",
    agent=False,
    connect_s=5,
    keepalive_s=30,
    ciphers=("aes128-gcm@openssh.com",),
)


# ----------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize("scheme", ["scp", "sftp"])
def test_both_schemes_lead_to_the_same_driver(scheme: str) -> None:
    assert find_driver("transfer", scheme) is ScpTransfer


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("scp://host/a/b", Place("", "host", None, b"/a/b")),
        ("sftp://me@host.example:2222/a%20b/", Place("me", "host.example", 2222, b"/a b")),
        ("scp://host/~/in", Place("", "host", None, b"~/in")),
        ("scp://host/%FF", Place("", "host", None, b"/\xff")),
        ("scp://[::1]:22/x", Place("", "::1", 22, b"/x")),
        ("scp://host", Place("", "host", None, b"/")),
    ],
)
def test_a_url_says_who_where_and_what(url: str, place: Place) -> None:
    assert place == parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "scp://me:secret@host/x",
        "scp:///x",
        "scp://-oProxyCommand=evil/x",
        "scp://-l@host/x",
        "scp://host:99999/x",
        "scp://host/a/../b",
        "scp://host/a%2e%2e/%2E%2E/b",
        "scp://host/a%2Fb",
        "scp://host/a%00b",
        "scp://host/a?b",
        "ftp://host/x",
        "scp://ho st/x",
    ],
)
def test_a_url_that_could_mean_something_else_is_refused(url: str) -> None:
    with pytest.raises(TransferRefused) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


# -------------------------------------------------------------------------------------- packets


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def test_a_request_is_written_as_the_protocol_says() -> None:
    made = wire.packet(wire.open_file(b"/a", wire.WRITE | wire.CREATE, 0o600), 7)
    assert bytes.fromhex("00000017 03 00000007 00000002 2f61 0000000a 00000004 00000180") == made


def test_a_listing_is_read_with_names_of_any_bytes() -> None:
    attributes = struct.pack(">IQIII", 0x1 | 0x4 | 0x8, 5, stat.S_IFREG | 0o644, 1, 2)
    body = struct.pack(">I", 1) + text(b"\xff\n") + text(b"-rw-") + attributes
    entry = Entry(b"\xff\n", Attributes(5, stat.S_IFREG | 0o644, 2))
    assert [entry] == Answer(Kind.NAME, body).entries()
    assert entry.attributes.is_file


def test_the_end_of_a_file_and_of_a_listing_is_nothing_and_no_error() -> None:
    end = Answer(Kind.STATUS, struct.pack(">I", 1) + text(b"End of file") + text(b""))
    assert b"" == end.data(10)
    assert [] == end.entries()


def test_a_refusal_keeps_the_words_of_the_server() -> None:
    with pytest.raises(Failure, match="Permission denied"):
        Answer(Kind.STATUS, struct.pack(">I", 3) + text(b"Permission denied") + text(b"")).handle()


@pytest.mark.parametrize(
    ("read", "answer"),
    [
        (Answer.handle, Answer(Kind.HANDLE, b"\0\0\0\x09abc")),
        (lambda answer: answer.data(10), Answer(Kind.DATA, text(b"x" * 11))),
        (lambda answer: answer.data(10), Answer(Kind.STATUS, struct.pack(">I", 0))),
        (Answer.entries, Answer(Kind.NAME, struct.pack(">I", 2**31))),
        (Answer.ok, Answer(99, b"")),
    ],
    ids=["too short", "more than asked for", "no data", "names that are not there", "unknown"],
)
def test_what_is_no_answer_is_an_interruption(read: Callable[[Answer], object], answer: Answer) -> None:
    with pytest.raises(Garbled) as caught:
        read(answer)
    assert isinstance(caught.value, TransferInterrupted)


# ------------------------------------------------------------------------------------ checksums


def test_checksums_are_read_with_escaped_names() -> None:
    one, two = "1" * 64, "2" * 64
    output = f"{one}  /plain\n\\{two} */a\\\\b\\nc\nsha256sum: /gone: No such file\n".encode()
    assert {b"/plain": one, b"/a\\b\nc": two} == parse_digests(output)


# --------------------------------------------------------------------------------------- OpenSSH


@pytest.mark.parametrize("path", [b'/a"b', b"/a*", b"/a\nb", b"/a\\b", b"/\xc3\xbc", b"/a'b", b"/[a]", b"-a"])
def test_a_path_that_would_need_quoting_is_not_given_to_openssh(path: bytes) -> None:
    assert not can_carry(path)


def test_openssh_never_asks_and_always_checks_host_keys(tmp_path: Path) -> None:
    login = evolve(LOGIN, key_file=str(tmp_path / "key"))
    command = sftp_command("/usr/bin/sftp", route_to(Place("me", "host", 2222, b"/"), login), login)
    for option in (
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "Port=2222",
        "User=me",
        "IdentitiesOnly=yes",
    ):
        assert option in command
    assert ["--", "host"] == command[-2:]


# ------------------------------------------------------------------------------------ ssh_config


def test_the_configuration_of_openssh_is_heeded(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(
        "Host dtn\n HostName dtn.example.gov\n Port 2200\n User svc\n IdentityFile ~/k\n ProxyJump gate:22\n"
        f" UserKnownHostsFile {tmp_path}/known\n"
    )
    route = route_to(Place("", "dtn", None, b"/"), evolve(LOGIN, ssh_config=str(file)))
    assert ("dtn.example.gov", 2200, "svc", "[dtn.example.gov]:2200", ("gate:22",)) == (
        route.address,
        route.port,
        route.user,
        route.known_as,
        route.jumps,
    )
    assert (str(Path("~/k").expanduser()),) == route.key_files
    assert str(tmp_path / "known") == route.known_hosts[0]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (b"ProxyJump gate:port", "ProxyJump gate:port for dtn, which is not of the form"),
        (b"ProxyJump ::1", "ProxyJump ::1 for dtn"),
        (b"ProxyJump dtn", "more than 5 hosts"),
        (b"Port ssh", "has port ssh for dtn"),
        (b"User \xff", "cannot read"),
    ],
)
def test_a_configuration_that_leads_nowhere_is_refused_before_anything_is_sent(
    lines: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "config").write_bytes(b"Host dtn\n" + lines + b"\n")
    login = evolve(LOGIN, ssh_config=str(tmp_path / "config"), known_hosts=str(tmp_path / "none"))
    with pytest.raises(TransferRefused, match=said):
        connected(route_to(Place("", "dtn", None, b"/"), login), login)


def test_a_proxy_command_is_refused_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(f"Host dtn\n ProxyCommand touch {tmp_path}/run\n")
    with pytest.raises(TransferRefused, match="ProxyJump"):
        route_to(Place("", "dtn", None, b"/"), evolve(LOGIN, ssh_config=str(file)))
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------- known hosts


def a_key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


def hashed(host: str) -> str:
    salt = b"s" * 20
    digest = hmac.digest(salt, host.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("names", "known"),
    [
        ("[dtn.example.gov]:2222", True),
        ("other,[DTN.example.gov]:2222", True),
        ("[dtn*.example.gov]:2222", True),
        ("[dtn?example.gov]:2222", True),
        (hashed("[dtn.example.gov]:2222"), True),
        ("*", True),
        ("*,![dtn.example.gov]:2222", False),
        ("dtn.example.gov", False),
        ("[dtnXexample.gov]:2222", False),
        (hashed("dtn.example.gov"), False),
        ("|1|no|base64", False),
    ],
)
def test_known_hosts_is_read_as_openssh_reads_it(names: str, known: bool, tmp_path: Path) -> None:
    key = a_key()
    (tmp_path / "known").write_text(
        f"# hosts\n\n{names} {key.get_name()} {key.get_base64()} a comment\nno line\n"
    )
    found = KnownKeys.of("[dtn.example.gov]:2222", [str(tmp_path / "none"), str(tmp_path / "known")])
    assert [key.asbytes()] * known == [each.asbytes() for each in found.keys]


def test_a_name_that_leads_to_several_machines_may_have_several_keys_but_for_those_that_were_revoked(
    tmp_path: Path,
) -> None:
    keys, other = [a_key() for _ in range(3)], a_key()
    lines = [f"dtn {key.get_name()} {key.get_base64()}\n" for key in keys]
    (tmp_path / "known").write_text("".join([*lines, f"@revoked {lines[2]}"]))
    known, client = KnownKeys.of("dtn", [str(tmp_path / "known")]), paramiko.SSHClient()
    for key in keys[:2]:
        known.missing_host_key(client, "dtn", key)
    with pytest.raises(TransferRefused, match="revoked"):
        known.missing_host_key(client, "dtn", keys[2])
    with pytest.raises(paramiko.BadHostKeyException):
        known.missing_host_key(client, "dtn", other)


def test_a_host_is_asked_for_a_kind_of_key_that_is_known(tmp_path: Path) -> None:
    """Else a host that has a newer kind of key, too, would seem to have changed."""
    offered = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
    known = KnownKeys("dtn", [], keys=[paramiko.RSAKey.generate(1024)])
    assert ("rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519", "ecdsa-sha2-nistp256") == known.preferred(offered)


# ------------------------------------------------------------------------------------- findings


def test_what_is_wrong_with_a_key_and_known_hosts_is_found_before_it_is_needed(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("no key")
    driver = ScpTransfer(
        key_file=str(key), known_hosts=str(tmp_path / "none"), ssh_config="none", agent=False
    )
    driver.open(site=SiteContext(site="theta", work_directory=tmp_path, environment={"PATH": str(tmp_path)}))
    found = {finding.subject: finding for finding in driver.diagnose()}
    driver.close()
    assert {"key": Level.FAILURE, "known hosts": Level.FAILURE, "OpenSSH": Level.WARNING} == {
        subject: finding.level for subject, finding in found.items()
    }
    assert all(finding.remedy for finding in found.values())


@pytest.mark.parametrize(
    ("begin_s", "end_s", "level", "said"),
    [
        (-100, 30 * 86_400, Level.OK, "expires on"),
        (-100, 3 * 86_400, Level.WARNING, "expires on"),
        (-100, -1, Level.FAILURE, "expired on"),
        (86_400, 2 * 86_400, Level.FAILURE, "not valid before"),
        (-100, None, Level.OK, "does not expire"),
    ],
)
def test_a_certificate_beside_the_key_is_judged_by_its_time(
    begin_s: int, end_s: int | None, level: Level, said: str, tmp_path: Path
) -> None:
    key, now = Ed25519PrivateKey.generate(), int(time.time())
    certificate = (
        SSHCertificateBuilder()
        .public_key(key.public_key())
        .type(SSHCertificateType.USER)
        .key_id(b"edgecore")
        .valid_principals([b"svc"])
        .valid_after(now + begin_s)
        .valid_before(2**64 - 1 if end_s is None else now + end_s)
        .sign(key)
    )
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "key-cert.pub").write_bytes(certificate.public_bytes())
    login = evolve(LOGIN, key_file=str(tmp_path / "key"))
    found = {finding.subject: finding for finding in findings(login, None, wanted=False)}
    assert ["key", "certificate"] == list(found)
    assert (Level.OK, level) == (found["key"].level, found["certificate"].level)
    assert said in found["certificate"].message
    assert bool(found["certificate"].remedy) == (level is not Level.OK)


@pytest.mark.parametrize("content", [b"no certificate", b"", b"ssh-ed25519 AAAA"])
def test_what_is_no_certificate_beside_the_key_is_said(content: bytes, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (tmp_path / "key-cert.pub").write_bytes(content)
    login = evolve(LOGIN, key_file=str(tmp_path / "key"))
    *_, last = findings(login, None, wanted=False)
    assert ("certificate", Level.FAILURE) == (last.subject, last.level)
    assert "key-cert.pub" in last.message


def test_openssh_is_found_on_the_path_of_the_site(tmp_path: Path) -> None:
    for name in ("ssh", "sftp"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    found = Bulk.found(LOGIN, {"PATH": str(tmp_path)})
    assert found is not None
    assert str(tmp_path / "sftp") == found.program


# ---------------------------------------------------------------------------------- connections


def test_a_file_is_written_by_one_transfer_at_a_time() -> None:
    claims = Claims()
    with claims.on([b"/a", b"/b"]):
        with (
            pytest.raises(TransferInterrupted, match="another transfer is writing /b"),
            claims.on([b"/c", b"/b"]),
        ):
            pass
        with claims.on([b"/c"]):
            pass
    with claims.on([b"/b"]):
        pass


def test_the_room_there_is_bytes_and_files_where_their_number_has_a_limit() -> None:
    def answer(files: int) -> Answer:
        return Answer(
            Kind.EXTENDED_REPLY, struct.pack(">11Q", 4096, 512, 100, 50, 7, files, 30, 3, 0, 0, 255)
        )

    assert (7 * 512, 3) == answer(1000).room()
    assert (7 * 512, None) == answer(0).room()


def test_nothing_follows_the_close_of_a_channel() -> None:
    """A server that gets a word for a channel that is no more ends the connection."""
    sent: list[bytes] = []

    class Recorder:
        def _send_user_message(self, message: paramiko.Message) -> None:
            sent.append(message.asbytes())

    close, end, content = (
        paramiko.common.cMSG_CHANNEL_CLOSE,
        paramiko.common.cMSG_CHANNEL_EOF,
        paramiko.common.cMSG_CHANNEL_DATA,
    )
    one, other = Turns(Recorder()), Turns(Recorder())
    for channel, kind in [
        (one, content),
        (one, close),
        (one, end),
        (one, content),
        (one, close),
        (other, end),
    ]:
        channel._send_user_message(paramiko.Message(kind))
    assert [content, close, end] == sent


def test_what_a_server_said_when_it_ended_the_connection_is_told() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport, channel = OrderedTransport(ours), paramiko.Channel(0)
        channel._set_transport(transport)
        channel.status_event.set()
        assert "Socket is closed" == why_closed(channel, OSError("Socket is closed"))
        farewell = paramiko.Message()
        farewell.add_int(2)
        farewell.add_string(b"too many\x1b[2J words\n")
        farewell.rewind()
        transport._parse_disconnect(farewell)
    assert r"the server ended it: too many\x1b[2J words" == why_closed(channel, OSError("Socket is closed"))
