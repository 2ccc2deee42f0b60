"""Describe the fields of what travels as JSON or is kept as data."""

from __future__ import annotations

from docs.generators.fields import fields_of, markdown_table
from edgecore import models

__all__ = ["table"]


def table(name: str) -> str:
    """Write the fields of a model: ``JobDefinition``, or ``JobDefinition without a, b``."""
    model, _, left_out = name.partition(" without ")
    empty = [each.name for each in fields_of(getattr(models, model)) if not each.meaning]
    assert not set(empty) - {*left_out.split(", ")}, f"say below them what {model}.{empty} mean"
    rows = [
        (f"`{each.name}`", each.words, each.default, each.meaning)
        for each in fields_of(getattr(models, model))
        if each.name not in left_out.split(", ")
    ]
    if all(default == "required" for _, _, default, _ in rows):
        return markdown_table(("key", "type", "meaning"), [(key, kind, says) for key, kind, _, says in rows])
    return markdown_table(("key", "type", "default", "meaning"), rows)
