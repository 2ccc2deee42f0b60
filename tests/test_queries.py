"""No statement of the service, of its commands or of the fork batch system reads a table that grows from end to end.

What a reader asks is held to this in `test_reader.py`, and the queue of `sqlite://` in `test_queue.py`: here are the
statements that stand as texts in the modules that write.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from edgecore.builtin import fork_spool
from edgecore.store import Store

IN_THE_STORE: Final = ("edgecore.store", "edgecore.rows", "edgecore.desk")
IN_THE_SPOOL: Final = (
    "edgecore.builtin.fork",
    "edgecore.builtin.fork_spool",
    "edgecore.builtin.fork_supervisor",
)

WHOLE: Final = {
    "DELETE FROM alarms WHERE": r"SCAN (TABLE )?alarms$",  # as many as there are troubles
    "SELECT name, value FROM settings": r"SCAN (TABLE )?settings$",  # has four rows
    "SELECT state, count(*) FROM jobs GROUP BY state": r"SCAN .*INDEX jobs_by_state$",  # for `doctor` only
    "SELECT EXISTS": r"SCAN CONSTANT ROW$",  # reads nothing
}
"""The beginning of a statement, and what it reads whole all the same."""

COLUMNS: Final = {"column": "tag"}
"""What stands for a name in a statement that the module puts together, and is no name of the module."""


def statements(*names: str) -> Sequence[str]:
    """Return every SQL statement on rows that stands in these modules."""
    return [text for name in names for text in _statements(importlib.import_module(name))]


def _statements(module: ModuleType) -> Iterator[str]:
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.JoinedStr):
            text = "".join(_part(module, each) for each in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if re.match(r"(SELECT|UPDATE|DELETE|INSERT)\b.*\b(FROM|SET|VALUES|INTO)\b", text, re.DOTALL):
            yield text.replace("%s", "?, ?")


def _part(module: ModuleType, node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.FormattedValue)
    name = ast.unparse(node.value)
    return str(getattr(module, name, COLUMNS.get(name, "")))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    Store(tmp_path / "store.sqlite", site="testsite").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as connection:
        yield connection


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(fork_spool.connect(tmp_path, 10.0)) as connection:
        yield connection


def assert_none_scans(connection: sqlite3.Connection, statements: Sequence[str]) -> None:
    """Ask SQLite how it would carry out each statement."""
    for statement in statements:
        values = [None] * statement.count("?")
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        allowed = next((step for begin, step in WHOLE.items() if statement.startswith(begin)), "$")
        scans = [step for step in plan if step.startswith("SCAN") and not re.match(allowed, step)]
        assert [] == scans, statement
        few = " IN (?" in statement  # as many as were asked for
        assert few or [] == [step for step in plan if "TEMP B-TREE" in step], statement


def test_what_the_service_and_its_commands_write_reads_no_table_whole(store: sqlite3.Connection) -> None:
    found = statements(*IN_THE_STORE)
    assert len(found) >= 15
    assert_none_scans(store, found)


def test_what_the_fork_batch_system_asks_reads_no_table_whole(spool: sqlite3.Connection) -> None:
    found = statements(*IN_THE_SPOOL)
    assert len(found) >= 15
    assert_none_scans(spool, found)


def test_a_statement_that_reads_a_table_whole_is_found(store: sqlite3.Connection) -> None:
    with pytest.raises(AssertionError, match="WHERE name"):
        assert_none_scans(store, ["UPDATE jobs SET intent = ? WHERE name = ?"])
