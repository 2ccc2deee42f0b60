"""Tests stand in an order in which several processes start few servers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from testbed.sharing import share


def _item(name: str, *fixtures: str, slow: bool = True) -> Any:
    marker = SimpleNamespace() if slow else None
    return SimpleNamespace(name=name, fixturenames=fixtures, get_closest_marker=lambda _: marker)


def test_what_uses_a_server_comes_first_then_what_is_slow_and_each_kind_in_its_order() -> None:
    items = [
        _item("quick", slow=False),
        _item("slow 1"),
        _item("slurm 1", "slurm", "slurm_server"),
        _item("broker 1", "rabbitmq_server"),
        _item("both", "slurm_server", "rabbitmq_server"),
        _item("slow 2", "tmp_path"),
        _item("slurm 2", "slurm_server"),
    ]
    share(items)
    assert ["broker 1", "both", "slurm 1", "slurm 2", "slow 1", "slow 2", "quick"] == [
        item.name for item in items
    ]
