"""Write down which driver is shown to bear which fault, from the tests that were collected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pytest

from edgecore.testing.contract import FAULTS, SchedulingTests, not_shown

__all__ = ["fault_table"]

_HEAD: Final = """\
# Which faults each scheduling driver is tested against

The rows are the fault matrix: what batch systems are known to do to those who rely on them. Each is shown to a
driver by itself and to a whole Balsam, in a process of its own, that runs jobs through it meanwhile; what the
service says is compared with what the applications noted and what the batch system started. `fake` is a
scripted batch system behind real commands, `live` a real one. A dash is a fault that cannot be shown there; the
note says why. A note beside a fault that is shown is about a variant that cannot.

This page is written from the tests, which `pytest --collect-only --fault-table=FILE` finds.

"""


def fault_table(items: Iterable[pytest.Item]) -> str:
    """Return a Markdown page: faults in rows, the drivers of all contract tests among *items* in columns."""
    shown: dict[type[SchedulingTests], set[int]] = {}
    for item in items:
        cls = getattr(item, "cls", None)
        if cls is None or not issubclass(cls, SchedulingTests):
            continue
        numbers = shown.setdefault(cls, set())
        for mark in item.iter_markers("fault"):
            if not not_shown(cls, *mark.args):
                numbers.add(mark.args[0])
    classes = sorted(shown, key=lambda cls: (cls.driver, cls.live))
    notes: dict[str, int] = {}
    rows = [
        f"| {number} | {name} | {' | '.join(_cell(cls, number, shown[cls], notes) for cls in classes)} |"
        for number, name in FAULTS.items()
    ]
    head = f"| # | fault | {' | '.join(f'`{cls.driver}`' for cls in classes)} |"
    line = f"|---|---|{'---|' * len(classes)}"
    texts = [f"[^{number}]: {reason}" for reason, number in notes.items()]
    notes_below = ["", *texts] if texts else []
    return _HEAD + "\n".join([head, line, *rows, *notes_below]) + "\n"


def _cell(cls: type[SchedulingTests], number: int, shown: set[int], notes: dict[str, int]) -> str:
    reasons = [not_shown(cls, number)]
    for key, reason in cls.cannot.items():
        if isinstance(key, tuple) and key[0] == number:
            reasons.append(f"{key[1]}: {reason}")
    marks = "".join(f"[^{notes.setdefault(reason, len(notes) + 1)}]" for reason in reasons if reason)
    if number not in shown:
        return f"-{marks}" if marks else "missing"
    return ("live" if cls.live else "fake") + marks
