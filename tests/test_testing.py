"""What `edgecore.testing` offers is there, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest

import edgecore.testing
import edgecore.testing.fake
from edgecore.testing import plugin


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


def item_of(by_hand: set[str], name: str = "test_a_thing") -> tuple[pytest.Item, list[str]]:
    """Return a collected test of a contract class, and the list of the marks that it is given."""
    cls = type("TestIt", (), {"by_hand": frozenset(by_hand), "test_a_thing": None, "test_another": None})
    marks: list[str] = []

    def add_marker(mark: Any) -> None:
        marks.append(mark.name)

    item = SimpleNamespace(cls=cls, originalname=name, nodeid=f"it.py::{name}[1]", add_marker=add_marker)
    return cast(pytest.Item, item), marks


def test_what_a_contract_class_leaves_to_be_run_by_hand_is_long() -> None:
    for left, expected in (({"test_a_thing"}, ["long"]), ({"test_another"}, []), (set[str](), [])):
        item, marks = item_of(left)
        plugin.pytest_itemcollected(item)
        assert expected == marks


def test_a_contract_class_leaves_nothing_out_by_a_slip_of_the_pen() -> None:
    with pytest.raises(pytest.UsageError, match="test_a_think"):
        plugin.pytest_itemcollected(item_of({"test_a_think"})[0])
