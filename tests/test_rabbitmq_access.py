"""Where RabbitMQ is and who we are there: what is wrong with it is told before anybody connects, and no secret is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from testbed.certificates import Authority

from edgecore.builtin.rabbitmq_access import Access
from edgecore.builtin.rabbitmq_words import words_of
from edgecore.drivers import find_driver, list_drivers
from edgecore.errors import BrokerUnavailable, ConfigurationError, DriverUnusable
from edgecore.models import Finding, Level

URL = "amqps://broker.example.gov"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def password(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text("secret\n")
    path.chmod(0o600)
    return str(path)


def access(**given: Any) -> Access:
    keys: dict[str, Any] = {
        "url": URL,
        "hosts": (),
        "certificate": None,
        "key": None,
        "authority": None,
        "verify_host_name": True,
        "user": None,
        "password_file": None,
        "warn_days": 14.0,
    }
    return Access(**{**keys, **given})


def files(authority: Authority, file: str, **given: Any) -> dict[str, str]:
    credential = authority.client("theta", file, **given)
    return {
        "certificate": str(credential.certificate),
        "key": str(credential.key),
        "authority": str(authority.file),
    }


def found(access: Access) -> Sequence[Finding]:
    return [each for each in access.findings() if each.level is not Level.OK]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "amqps://theta:hunter2@broker/"}, "url: found a password; .*password_file"),
        ({"url": "amqps:///"}, "must be amqps://host"),
        ({"url": "amqps://[::1"}, "must be amqps://host"),
        ({"url": "amqps://broker/?heartbeat=1", "user": "theta"}, "must be amqps://host"),
        ({"hosts": ("a:b:c",), "user": "theta"}, r"hosts: found 'a:b:c'; must be host or host:port"),
        ({"hosts": ("theta:hunter2@broker",), "user": "theta"}, r"hosts: found 'broker'"),
        ({"certificate": "theta.pem"}, "certificate: .*absolute path"),
        (
            {"certificate": "/nonexistent/theta.pem"},
            "certificate: found /nonexistent/theta.pem: No such file",
        ),
        ({}, "certificate: found none; name our certificate, or a user with a password"),
        ({"url": "amqp://broker"}, "user: found none"),
        ({"url": "amqp://theta@broker", "certificate": "/dev/null"}, "used with amqps:// only"),
    ],
)
def test_what_is_configured_wrongly_is_told_and_no_password_is(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        access(**given).check()
    assert "hunter2" not in str(caught.value)


def test_brokers_are_tried_in_the_order_of_the_configuration() -> None:
    two = access(url="amqps://one/a%2Fb", hosts=("two:7", "[::1]:8"))
    assert [("one", 5671), ("two", 7), ("::1", 8)] == list(two.addresses())
    assert "a/b" == two.virtual_host
    assert "/" == access().virtual_host == access(url=f"{URL}/").virtual_host


def test_a_password_comes_from_a_file_or_the_environment(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_file = access(url="amqp://theta@broker", password_file=password)
    assert ("theta", "secret", "theta") == (with_file.user_name, with_file.password(), with_file.identity())
    without = access(url="amqp://theta@broker")
    with pytest.raises(BrokerUnavailable, match="set password_file, or EDGECORE_RABBITMQ_PASSWORD"):
        without.password()
    monkeypatch.setenv("EDGECORE_RABBITMQ_PASSWORD", "other")
    assert "other" == without.password()
    assert "secret" not in repr(with_file)


def test_a_certificate_says_who_we_are_unless_the_configuration_does(authority: Authority) -> None:
    own = files(authority, "who")
    assert ("", "theta") == (access(**own).user_name, access(**own).identity())
    assert "CN=theta,O=x" == access(**own, user="CN=theta,O=x").identity()
    assert "" == access(**own, user="").identity()


def test_certificates_are_judged_by_their_time(authority: Authority) -> None:
    day = timedelta(days=1)
    good = access(**files(authority, "good"))
    assert [] == found(good)
    assert "" == good.expiry_warning()
    soon = access(**files(authority, "soon", lasts=3 * day))
    assert [("certificate", Level.WARNING)] == [(each.subject, each.level) for each in found(soon)]
    assert "expires in 3 days" in soon.expiry_warning()
    for name, words, times in (
        ("old", "expired on", {"begins": -9 * day, "lasts": -day}),
        ("new", "not valid before", {"begins": day, "lasts": 9 * day}),
    ):
        bad = access(**files(authority, name, **times))
        with pytest.raises(BrokerUnavailable, match=words):
            bad.tls()
        assert [("certificate", Level.FAILURE)] == [(each.subject, each.level) for each in found(bad)]
        assert not bad.is_usable()


def test_files_that_do_not_fit_are_told(authority: Authority, tmp_path: Path) -> None:
    own, other = files(authority, "own"), files(authority, "other")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    cases = {
        "the key is not that of the certificate": {**own, "key": other["key"]},
        "no PEM file": {**own, "authority": str(junk)},
        "certificate .*cannot be used": {**own, "certificate": str(junk)},
    }
    for words, keys in cases.items():
        with pytest.raises(BrokerUnavailable, match=words):
            access(**keys).tls()


def test_a_secret_that_others_may_read_is_found(authority: Authority, password: str) -> None:
    own = files(authority, "open")
    Path(own["key"]).chmod(0o640)
    Path(password).chmod(0o604)
    warned = {each.subject: each.remedy for each in found(access(**own, password_file=password))}
    assert {"key", "password file"} == set(warned)
    assert "chmod 600" in warned["key"]
    plain = found(access(url="amqp://theta@broker"))
    assert [("encryption", Level.WARNING)] == [(each.subject, each.level) for each in plain]
    assert ["encryption"] == [
        each.subject for each in found(access(**files(authority, "lax"), verify_host_name=False))
    ]


def test_a_file_that_was_replaced_is_noticed(authority: Authority) -> None:
    own = access(**files(authority, "replaced"))
    before = own.stamp()
    assert before == own.stamp()
    files(authority, "replaced")
    assert before != own.stamp()


@pytest.mark.parametrize("library", ["pika", "cryptography"])
def test_without_the_extra_the_driver_names_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("edgecore.builtin.rabbitmq")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    listed = {each.name: each.status for each in list_drivers()}
    assert "not checked" == listed["amqps"], "listing imports nothing"
    with pytest.raises(DriverUnusable, match=r"pip install 'edgecore\[rabbitmq\]'"):
        find_driver("messaging", "amqps")


def test_an_error_that_nobody_foresaw_keeps_its_own_words() -> None:
    assert "ValueError: odd" == words_of(ValueError("odd"))
