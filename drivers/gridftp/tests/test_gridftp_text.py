"""Read what real servers and the real client said, and URLs; nothing is run here."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgecore_gridftp.place import Place, parse_url
from edgecore_gridftp.text import (
    MISSING,
    complaint,
    copy_command,
    fact_time,
    last_marker,
    pair_list,
    parse_entry,
    trouble,
)

from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.remote import below

_RECORDED = Path(__file__).parent / "recorded"

_PERMANENT = {
    "client-cert-from-unknown-ca": "Cannot find trusted CA certificate with hash 78adc3e",
    "client-trustdir-without-signing_policy": "Error with signing policy",
    "ftp-scheme-to-gsi-server": "Must perform GSSAPI authentication.; write gsiftp://",
    "gsiftp-to-anon-server": "a server without GSI has ftp:// URLs",
    "missing-source-remote": "No such file or directory",
    "no-proxy": "Valid credentials could not be found",
    "perm-denied-write": "Unable to open file /root/10m; globus_xio: System error in open: Permission denied",
    "revoked-user-cert": "The certificate has been revoked",
    "server-ca-unknown-to-client": "Untrusted self-signed certificate in chain",
    "unmapped-user": "Could not map /DC=org/DC=lab-xfer/OU=People/CN=Bob Unmapped; ask the operators",
    "wrong-subject": "expected name for the remote entity (/DC=org/CN=other)",
}
_TRANSIENT = {
    "checksum-mismatch": "checksum verification failure for",
    "disk-full-local": "No space left on device; globus_xio: A system call failed: No space left on device; make room",
    "disk-full-remote": "No space left on device",
    "expired-crl-here": "Invalid CRL: The available CRL has expired; have the lists",
    "expired-crl-there": "Invalid CRL: The available CRL has expired; have the lists",
    "expired-proxy": "has expired.; make a new proxy",
    "expired-proxy-env-no-usercert": "expired 0 minutes ago.; make a new proxy",
    "get-server-child-killed-midway": "EOF has been reached",
    "hostname-unknown": "Name or service not known; is the name of the host right?",
    "proxy-expired-on-the-way": "The failure occurred during a handshake read",
    "put-server-child-killed-midway": "Connection reset by peer",
    "server-down": "Unable to connect to 127.0.0.1:12999; globus_xio: System error in connect: Connection refused",
    "server-offline-message": "down for maintenance",
    "stalled-stall-timeout-5": "the operation was aborted",
}


def _trouble(name: str) -> TransferRefused | TransferInterrupted:
    return trouble("carry it", complaint((_RECORDED / f"{name}.txt").read_bytes()))


def test_every_recording_is_looked_at() -> None:
    assert {*_PERMANENT, *_TRANSIENT} == {path.stem for path in _RECORDED.iterdir()}


@pytest.mark.parametrize("name", _PERMANENT)
def test_what_stays_as_it_is_is_refused_in_the_tool_s_own_words(name: str) -> None:
    found = _trouble(name)

    assert (TransferRefused, True) == (type(found), _PERMANENT[name] in str(found)), str(found)


@pytest.mark.parametrize("name", _TRANSIENT)
def test_what_may_pass_is_an_interruption_in_the_tool_s_own_words(name: str) -> None:
    found = _trouble(name)

    assert (TransferInterrupted, True) == (type(found), _TRANSIENT[name] in str(found)), str(found)


def test_words_that_nobody_knows_may_pass() -> None:
    assert TransferInterrupted is type(trouble("carry it", "the cat sat on the keyboard"))


def test_a_proxy_that_expires_between_two_data_connections_is_told_as_such() -> None:
    words = "OpenSSL Error: ../ssl/record/rec_layer_s3.c:1601: sslv3 alert certificate expired SSL alert number 45"

    assert "make a new proxy" in str(trouble("carry it", words))


def test_what_vanished_on_the_way_may_come_back() -> None:
    words = complaint((_RECORDED / "missing-source-remote.txt").read_bytes())

    assert TransferInterrupted is type(trouble("read it", words, transient=MISSING))


def test_a_complaint_is_one_line_of_bounded_length_for_people() -> None:
    words = complaint(b"500-first\x07\r\n500-first\x07\r\n500 End.\r\n" + b"x\n" * 3 + b"y" * 5000)

    assert words.startswith("first ; x; y")
    assert words.isprintable()
    assert 710 > len(words)


# ----------------------------------------------------------------------------------- listings


def test_a_line_of_a_listing_is_read() -> None:
    found = parse_entry(
        b" Type=file;Modify=20200102030405;Size=6;Perm=awr;UNIX.mode=0751;UNIX.owner=root;UNIX.uid=0;UNIX.group=root;"
        b"UNIX.gid=0;Unique=fe00-378295;  with  spaces; = "
    )

    assert found is not None
    assert (b" with  spaces; = ", 6, 0o751, 1577934245, False) == (
        found.name,
        found.size_bytes,
        found.mode,
        found.changed_s,
        found.link,
    )
    assert (found.is_file, found.is_directory, found.may) == (True, False, "awr")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b" Type=dir;Size=4096;UNIX.slink=/tmp/gf/odd; lnkd", "link"),
        (b" type=DIR;size=1; d", "directory"),
        (b"Type=cdir;X.count=6; .", "6 names"),
        (b" Type=OS.unix=pipe;Size=0; ff", "other"),
        (b" Type=file;Size=-1;Modify=soon;UNIX.mode=9x; odd", "nothing known"),
    ],
)
def test_kinds_of_names_are_told_apart(line: bytes, what: str) -> None:
    found = parse_entry(line)

    assert found is not None
    assert {
        "link": found.link,
        "directory": found.is_directory and not found.link,
        "6 names": found.count == 6,
        "other": not (found.is_file or found.is_directory),
        "nothing known": (found.size_bytes, found.changed_s, found.mode) == (0, 0, 0o644),
    }[what]


@pytest.mark.parametrize("line", [b"", b" ", b"Type=file;", b"Type=file; ", b"250 End", b" x y"])
def test_what_is_no_entry_is_none(line: bytes) -> None:
    assert parse_entry(line) is None


def test_times_are_in_utc_with_or_without_fractions() -> None:
    assert [0, 1, 1, 0] == [
        fact_time(text) for text in ("19700101000000", "19700101000001", "19700101000001.9", "x")
    ]


# --------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("gsiftp://dtn.example.gov/data/in", Place("gsiftp", "dtn.example.gov", 2811, b"/data/in")),
        ("ftp://dtn:2811/a%20b/%41/", Place("ftp", "dtn", 2811, b"/a b/A")),
        ("ftp://[::1]", Place("ftp", "::1", 21, b"/")),
        ("gsiftp://h//x//%ff%0A", Place("gsiftp", "h", 2811, b"/x/\xff\n")),
    ],
)
def test_a_url_says_where(url: str, place: Place) -> None:
    assert place == parse_url(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("scp://h/x", "not of the form"),
        ("gsiftp:///x", "not of the form"),
        ("gsiftp://me@h/x", "names a user"),
        ("ftp://me:secret@h/x", "names a user"),
        ("gsiftp://-oX/x", "no host that could exist"),
        ("gsiftp://h:0/x", "port 0"),
        ("gsiftp://h:65536/x", "port 65536"),
        ("gsiftp://h/a/../b", "without '.' and '..'"),
        ("gsiftp://h/a/%2e%2e/b", "without '.' and '..'"),
        ("gsiftp://h/a%2Fb", "cannot stand in a path"),
        ("gsiftp://h/a%00b", "cannot stand in a path"),
        ("gsiftp://h/a%0Db", "cannot stand in a path"),
        ("gsiftp://h/a?b", "cannot stand in a path"),
    ],
)
def test_a_url_that_says_something_else_is_refused_without_its_password(url: str, words: str) -> None:
    with pytest.raises(TransferRefused) as refused:
        parse_url(url)

    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


def test_every_byte_of_a_path_is_escaped_for_the_client() -> None:
    place = parse_url("gsiftp://[::1]/x")

    assert "gsiftp://[::1]:2811/x/a%20%22b%22%2A%5B%FF%0A" == place.url_of(
        below(place.path, ['a "b"*[\udcff\n'])
    )


@pytest.mark.parametrize(
    ("other", "held"),
    [
        ("gsiftp://Host:2811/a/b", True),
        ("gsiftp://host/a/b/c", True),
        ("gsiftp://host/a/bc", False),
        ("gsiftp://host/a", False),
        ("gsiftp://host:2812/a/b", False),
        ("ftp://host:2811/a/b", False),
    ],
)
def test_a_place_holds_what_is_below_it_on_the_same_server(other: str, held: bool) -> None:
    assert held == parse_url("gsiftp://host/a/b").holds(parse_url(other))
    assert parse_url("gsiftp://host/").holds(parse_url("gsiftp://host/x"))


def test_one_server_at_both_ends_is_written_in_two_ways() -> None:
    here = parse_url("gsiftp://dtn.org/x")

    assert "gsiftp://DTN.ORG:2811/y" == parse_url("gsiftp://dtn.org/y").beside(here).url_of(b"/y")
    assert "gsiftp://other.org:2811/y" == parse_url("gsiftp://other.org/y").beside(here).url_of(b"/y")


# --------------------------------------------------------------------------------- the client


def test_the_client_s_command_says_all_that_differs_from_its_defaults() -> None:
    assert ["guc", "-q"] == copy_command("guc", fast=False)
    assert ["guc", "-vb"] == copy_command("guc", fast=False, markers=True)
    assert [
        *(
            "guc",
            "-q",
            "-cred",
            "/p",
            "-fast",
            "-p",
            "4",
            "-off",
            "9",
            "-ss",
            "/CN=a",
            "-ds",
            "/CN=b",
            "-tcp-bs",
            "1",
        ),
    ] == copy_command(
        "guc",
        credential="/p",
        fast=True,
        parallel=4,
        offset=9,
        source_subject="/CN=a",
        target_subject="/CN=b",
        options=("-tcp-bs", "1"),
    )


def test_the_last_marker_says_how_much_was_carried() -> None:
    """As globus-url-copy 10.12 wrote them."""
    first = "     41156608 bytes         7.55 MB/sec avg         7.55 MB/sec inst\r"
    said = f"Source: file:///src/\nDest:   gsiftp://h/9 bytes/\n  src  ->  d\n\n{first}"

    assert 0 == last_marker(b"Source: file:///src/\n")
    assert 41_156_608 == last_marker(said.encode())
    later = first.replace("41156608", "62914560")
    assert 62_914_560 == last_marker(f"{said}{later}\n     7291".encode())


def test_pairs_of_urls_stand_on_lines() -> None:
    assert b"a b\nc d\n" == pair_list([("a", "b"), ("c", "d")])
