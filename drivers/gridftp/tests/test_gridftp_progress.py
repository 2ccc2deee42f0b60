"""People see how far a long file is, also on a server that shows it only when it is complete."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from edgecore_gridftp import GridFtpTransfer, deliver, work
from edgecore_gridftp.client import PROGRAM, Client, Load
from testbed.gridftp import GridFtp, grid, gridftp, gridftp_needed

from edgecore.carrying import Tally
from edgecore.errors import TransferInterrupted
from edgecore.models import SiteContext, TransferUpdate
from edgecore.selection import EVERYTHING
from edgecore.testing.trees import random_bytes

__all__ = ["grid", "gridftp", "gridftp_needed"]

pytestmark = pytest.mark.slow

_LONG_BYTES = 1024 * 1024
_START_BYTES = 3
_DEADLINE_S = 20.0
_SCRIPT = """#!/bin/sh
printf 'Source: a\\nDest: b\\n\\n     1000 bytes         7.55 MB/sec avg         7.55 MB/sec inst\\r'
while [ ! -e {heard} ]; do sleep 0.05; done
exit 1
"""


def test_markers_are_told_while_the_client_runs_and_are_no_complaint(tmp_path: Path) -> None:
    heard, program, told = tmp_path / "heard", tmp_path / PROGRAM, list[int]()
    program.write_text(_SCRIPT.format(heard=heard))
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    client = Client(environment=path, credential="", options=(), turns=threading.BoundedSemaphore())

    def carried(count: int) -> None:
        told.append(count)
        if count:
            heard.touch()

    load = Load(pairs=[("file:///a", "ftp://h/b")], asked="write b", carried=carried)
    with pytest.raises(TransferInterrupted, match=r"cannot write b: globus-url-copy: exit code 1$"):
        client.carry(load, Tally(), lambda: None)
    assert 1000 in told


def test_a_file_that_is_not_seen_while_it_is_written_moves_by_markers(
    gridftp: GridFtp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_ALONE_BYTES", _LONG_BYTES)
    monkeypatch.setattr(work, "RESUME_BYTES", 1)
    monkeypatch.setattr(deliver._Writing, "_entry", lambda self, piece: None)
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    content = random_bytes(_LONG_BYTES)
    (tmp_path / "from" / "long").write_bytes(content)
    (tmp_path / "to" / ".long.edgecore-part").write_bytes(content[:_START_BYTES])
    seen, carry = threading.Event(), Client.carry

    def noted(self: Client, load: Load, tally: Tally, watch: Callable[[], None]) -> None:
        assert load.carried is not None
        load.carried(1000)
        assert seen.wait(_DEADLINE_S)
        carry(self, load, tally, watch)

    def progress(update: TransferUpdate) -> None:
        if update.size_bytes == _START_BYTES + 1000:
            seen.set()

    monkeypatch.setattr(Client, "carry", noted)
    assert gridftp.grid is not None
    driver = GridFtpTransfer(
        proxy=str(gridftp.proxy),
        authorities=str(gridftp.grid.authorities),
        options=("-dcstack", gridftp.stack),
        parallel=1,
    )
    driver.open(site=SiteContext(site="theta", work_directory=tmp_path))
    url = gridftp.url + quote(str(tmp_path / "to"))
    with closing(driver):
        driver.deliver(directory=tmp_path / "from", url=url, progress=progress, selection=EVERYTHING)

    assert content == (tmp_path / "to" / "long").read_bytes()
