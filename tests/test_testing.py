"""What `edgecore.testing` offers is there, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

import edgecore.testing
import edgecore.testing.fake


@pytest.mark.slow
def test_every_public_name_is_there_and_no_other() -> None:
    for name in edgecore.testing.__all__:
        assert getattr(edgecore.testing, name).__name__ == name
    for name in set(edgecore.testing.fake.__all__) - {"Request"}:  # which is a union
        assert getattr(edgecore.testing.fake, name).__name__ == name
    assert edgecore.testing.fake.Submit in get_args(edgecore.testing.fake.Request)
    with pytest.raises(AttributeError, match="no attribute 'SchedulingContrat'"):
        edgecore.testing.SchedulingContrat  # noqa: B018 - reading it is the test


def test_importing_the_package_imports_no_pytest_and_nothing_of_ours() -> None:
    code = "import edgecore.testing, edgecore.testing.fake, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.split())
    assert not {"pytest", "hypothesis", "attrs", "cattrs"} & modules
    ours = {name for name in modules if name.startswith("edgecore")}
    assert {"edgecore", "edgecore.testing", "edgecore.testing.fake"} == ours
