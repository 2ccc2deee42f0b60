"""Be a pytest plugin: the markers and options that contract tests need, and the table of what they cover.

It is loaded into every pytest that runs where edgecore is installed, so that it imports nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

__all__ = [
    "pytest_addoption",
    "pytest_collection_finish",
    "pytest_configure",
    "pytest_itemcollected",
    "pytest_load_initial_conftests",
]

_MARKERS: Final = (
    "fault(number, variant): shows how a fault of the matrix is borne",
    "slow: starts processes or waits for them",
    "long: takes long and is run by hand: pytest -m long",
)

# Not this package as a whole: it is imported already, as we are.
pytest.register_assert_rewrite(
    *(f"edgecore.testing.{path.stem}" for path in Path(__file__).parent.glob("[a-z]*.py"))
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of contract tests."""
    group = parser.getgroup("edgecore", "contracts of edgecore drivers")
    group.addoption("--kills", type=int, default=5, help="how often the campaign kills the service (5)")
    group.addoption("--in-flight", type=int, default=10, help="how many jobs it keeps in flight (10)")
    group.addoption(
        "--fault-table",
        type=Path,
        metavar="FILE",
        help="write which faults the collected contract tests show, as a Markdown table; say --fault-table=FILE",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(args: list[str]) -> None:
    """Refuse to take the file of the table as a word of its own.

    Where it exists, pytest has by now looked for its configuration beside that file: it does so before it knows our
    options, and takes any word that is a path for a place of tests.
    """
    if "--fault-table" in args:
        raise pytest.UsageError("--fault-table wants its file in the same word: --fault-table=FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Say what our markers mean."""
    for line in _MARKERS:
        config.addinivalue_line("markers", line)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what a class of contract tests leaves to be run by hand."""
    cls = getattr(item, "cls", None)
    by_hand = getattr(cls, "by_hand", frozenset[str]())
    if unknown := [name for name in by_hand if not hasattr(cls, name)]:
        raise pytest.UsageError(f"by_hand of {item.nodeid} names what is no test of it: {', '.join(unknown)}")
    if getattr(item, "originalname", None) in by_hand:
        item.add_marker(pytest.mark.long)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the table of faults, where one is asked for."""
    path = session.config.getoption("--fault-table")
    if path is not None:
        from edgecore.testing.coverage import fault_table

        path.write_text(fault_table(session.items), encoding="utf-8")
