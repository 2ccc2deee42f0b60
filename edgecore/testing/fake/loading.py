"""Find the dialect of a fake batch system by its name, in processes that know only where its state is."""

from __future__ import annotations

import importlib

from edgecore.testing.fake.dialect import Dialect
from edgecore.testing.fake.state import State

__all__ = ["load_dialect"]


def load_dialect(state: State) -> Dialect:
    """Return the dialect that the state names as ``module:class``."""
    module, _, name = state.setting("dialect").partition(":")
    found = getattr(importlib.import_module(module), name)()
    if not isinstance(found, Dialect):
        raise TypeError(f"{module}:{name} is no Dialect")
    return found
