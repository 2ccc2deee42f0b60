"""A credential is judged by its files: readable, whole, its key there and nobody else's, and within its time."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from testbed.proxies import Holder, place_file, proxy_pem

from edgecore.certificates import judge, stamp_of, utc
from edgecore.clock import microseconds

DAY = timedelta(days=1)


def now() -> int:
    return microseconds(datetime.now(UTC))


def reason(path: Path, key: Path | None = None) -> str:
    return judge(path, key).reason(now())


@pytest.fixture
def keys_read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Note each private key that is read, which takes long."""
    found = list[bytes]()

    def noted(data: bytes, password: bytes | None) -> PrivateKeyTypes:
        found.append(data)
        return load_pem_private_key(data, password)

    monkeypatch.setattr("cryptography.hazmat.primitives.serialization.load_pem_private_key", noted)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "credential.pem"


def test_a_proxy_that_is_whole_can_be_used(file: Path) -> None:
    found = judge(place_file(file, proxy_pem(3600)))
    assert "" == found.reason(now())
    assert found.is_proxy
    assert "CN=4711,CN=Alice" == found.subject
    assert 3590e6 < found.expires - now() <= 3600e6


def test_a_certificate_with_its_key_beside_it_or_in_its_file_can_be_used(file: Path, tmp_path: Path) -> None:
    site = Holder.made(["theta"])
    key = place_file(tmp_path / "key.pem", site.key_pem())
    assert "" == reason(place_file(file, site.pem, 0o644), key)
    assert "" == reason(place_file(file, site.key_pem() + site.pem, 0o640))
    assert not judge(file).is_proxy


def test_a_credential_lives_as_long_as_the_shortest_certificate_in_its_file(file: Path) -> None:
    found = judge(place_file(file, proxy_pem(7200, owner=(-DAY, timedelta(seconds=600)))))
    assert 590e6 < found.expires - now() <= 600e6
    later = judge(place_file(file, proxy_pem(7200, owner=(timedelta(seconds=300), DAY))))
    assert f"it is not valid before {utc(later.begins)}: wait, or see this host's clock" == later.reason(
        now()
    )


def test_the_end_is_said_with_its_time(file: Path) -> None:
    found = judge(place_file(file, proxy_pem(-60, begins_s=-120)))
    assert f"it expired at {utc(found.expires)}" == found.reason(now())
    assert "" == found.reason(found.expires - 1)
    assert "" != found.reason(found.expires)


def test_a_file_that_is_missing_shut_or_no_file_is_said_so(file: Path, tmp_path: Path) -> None:
    assert f"{file}: No such file or directory: put it there" in reason(file)
    os.mkfifo(file)
    assert f"{file} is no regular file" in reason(file)
    assert f"{tmp_path} is no regular file" in reason(tmp_path)


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.4, 0.6, 0.95])
def test_half_a_proxy_cannot_be_used(file: Path, cut: float) -> None:
    whole = proxy_pem()
    assert reason(place_file(file, whole[: int(len(whole) * cut)]))


def test_a_proxy_without_the_certificate_that_it_was_made_from_cannot_be_used(file: Path) -> None:
    alice = Holder.made(["Alice"])
    proxy = Holder.made(["Alice", "1"], issuer=alice, proxy=True)
    other = Holder.made(["Bob"])
    assert "breaks off before" in reason(place_file(file, proxy.pem + proxy.key_pem()))
    assert "in order" in reason(place_file(file, proxy.pem + proxy.key_pem() + other.pem))
    old = Holder.made(["Alice", "proxy"], issuer=alice)
    assert judge(place_file(file, old.pem + old.key_pem() + alice.pem)).is_proxy
    assert "" == reason(file)


def test_a_key_that_is_another_ones_or_locked_or_not_there_cannot_be_used(file: Path, tmp_path: Path) -> None:
    site, other = Holder.made(["theta"]), Holder.made(["eta"])
    place_file(file, site.pem)
    assert f"{file} holds no private key in PEM" in reason(file)
    key = tmp_path / "key.pem"
    assert f"{key}: No such file" in reason(file, key)
    assert "is not that of the certificate" in reason(file, place_file(key, other.key_pem()))
    assert "wants a passphrase" in reason(file, place_file(key, site.key_pem("secret")))
    broken = site.key_pem().replace(b"\nM", b"\n!", 1)
    assert "cannot be read" in reason(file, place_file(key, broken))
    assert "" == reason(file, place_file(key, site.key_pem()))


def test_a_key_that_others_can_read_must_not_be_used(file: Path, tmp_path: Path) -> None:
    site = Holder.made(["theta"])
    key = place_file(tmp_path / "key.pem", site.key_pem(), 0o644)
    assert f"{key} has mode 0644, so that others can use the key: chmod 600 {key}" in reason(
        place_file(file, site.pem), key
    )
    proxy = place_file(file, proxy_pem(), 0o640)
    assert "mode 0640" in reason(proxy), "what grid libraries refuse"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_proxy_of_another_account_cannot_be_used(file: Path) -> None:
    os.chown(place_file(file, proxy_pem()), 12345, -1)
    assert "belongs to another account" in reason(file)


def test_a_file_that_could_be_used_is_read_again_only_once_it_has_changed(
    file: Path, keys_read: list[bytes]
) -> None:
    first = judge(place_file(file, proxy_pem(60)))
    second = judge(place_file(file, proxy_pem(3600)))
    assert first.expires < second.expires
    assert second == judge(file)
    assert 2 == len(keys_read)
    file.chmod(0o644)
    assert "chmod 600" in reason(file)
    file.chmod(0o600)
    assert "" == reason(file)
    assert 3 == len(keys_read)


def test_a_file_that_could_not_be_used_is_read_each_time(file: Path, keys_read: list[bytes]) -> None:
    place_file(file, Holder.made(["theta"]).pem + Holder.made(["eta"]).key_pem())
    assert "" != reason(file) == reason(file)
    assert 2 == len(keys_read)


def test_what_may_change_a_judgement_changes_the_stamp(file: Path) -> None:
    stamps = [stamp_of(file)]
    place_file(file, proxy_pem())
    stamps.append(stamp_of(file))
    file.chmod(0o644)
    stamps.append(stamp_of(file, file))
    place_file(file, proxy_pem())
    stamps.append(stamp_of(file))
    assert 4 == len(set(stamps))
    assert stamps[-1] == stamp_of(file)


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=300), st.integers(0, 900))
def test_whatever_a_file_holds_it_is_judged(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "judged.pem"
    assert reason(place_file(path, _WHOLE[:at] + junk))
    assert isinstance(reason(place_file(path, _WHOLE[:at] + junk + _WHOLE[at:])), str)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_whatever_is_wrong_in_a_certificate_it_is_judged(
    tmp_path_factory: pytest.TempPathFactory, at: int, changed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pem"
    damaged = bytearray(base64.b64decode(_FIRST))
    damaged[at % len(damaged)] ^= changed
    content = _WHOLE.replace(_FIRST, base64.encodebytes(damaged).strip(), 1)
    assert content != _WHOLE
    assert isinstance(reason(place_file(path, content)), str)


_WHOLE = proxy_pem()
_FIRST = _WHOLE.split(b"-----")[2].strip()
