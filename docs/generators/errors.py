"""Describe every error from the module that defines them."""

from __future__ import annotations

import inspect

from docs.generators.fields import markdown_table
from edgecore import errors

__all__ = ["page"]


def page(_: str) -> str:
    """Write the tree as the module draws it, and a table with what each error says."""
    found = [getattr(errors, name) for name in errors.__all__]
    kinds = [each for each in found if issubclass(each, Exception)]
    assert errors.__doc__ is not None
    tree = inspect.cleandoc(errors.__doc__).partition("::\n\n")[2]
    missing = [each.__name__ for each in kinds if each.__name__ not in tree]
    assert not missing, f"draw {missing} in the tree of edgecore/errors.py"
    rows = [
        (f"`{each.__name__}`", f"`{_public_base(each)}`", inspect.cleandoc(each.__doc__ or ""))
        for each in kinds
    ]
    return f"```text\n{inspect.cleandoc(tree)}\n```\n\n{markdown_table(('error', 'is a', 'says'), rows)}"


def _public_base(kind: type) -> str:
    return next(each.__name__ for each in kind.__mro__[1:] if not each.__name__.startswith("_"))
