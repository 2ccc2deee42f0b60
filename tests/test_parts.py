"""What drivers write their files with: a hint for the kernel is never more than a hint."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgecore.parts import WriteOut

MIB = 1024 * 1024


@pytest.mark.parametrize("refused", [False, True])
def test_the_kernel_is_told_of_each_range_once_and_may_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    told = []

    def advise(opened: int, offset: int, size: int, advice: int) -> None:
        told.append((offset, size))
        if refused:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    with (tmp_path / "long").open("wb") as file:
        write_out = WriteOut(file.fileno(), 3 * MIB)
        for size in (3, 10, 11, 12, 30):
            write_out.reached(size * MIB)
    assert [(3 * MIB, 8 * MIB), (11 * MIB, 19 * MIB)] == told
