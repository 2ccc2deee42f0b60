"""Describe a hook by its signature, and by what its specification says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from edgecore import errors, hookspecs

__all__ = ["errors_of", "hook", "hooks_of", "signature"]


def hooks_of(role: type) -> dict[str, Callable[..., Any]]:
    """Return name -> specification of each hook of a role, in their order."""
    return {name: each for name, each in vars(role).items() if hasattr(each, "edgecore_spec")}


def signature(name: str, specification: Callable[..., Any]) -> str:
    """Write the hook as a driver defines it, a line per argument where there is more than one."""
    found = inspect.signature(specification)
    arguments = [str(each).replace("'", "") for each in found.parameters.values()]
    if len(arguments) > 3:
        inside = "".join(f"    {each},\n" for each in arguments)
        return f"def {name}(\n{inside}) -> {found.return_annotation}"
    return f"def {name}({', '.join(arguments)}) -> {found.return_annotation}"


def errors_of(specification: Callable[..., Any]) -> tuple[str, ...]:
    """Return the errors that the specification lets a hook raise, in the order of its text."""
    words = re.findall(r"\w+", specification.__doc__ or "")
    return tuple(dict.fromkeys(word for word in words if word in errors.__all__))


def hook(name: str) -> str:
    """Write one hook, named ``Role.hook``."""
    role_name, _, hook_name = name.partition(".")
    specification = hooks_of(getattr(hookspecs, role_name))[hook_name]
    words = re.sub(r"\*(\w+)\*", r"`\1`", inspect.cleandoc(specification.__doc__ or "").replace("``", "`"))
    raised = ", ".join(f"`{each}`" for each in errors_of(specification)) or "nothing"
    return f"```python\n{signature(hook_name, specification)}\n```\n\n{words}\n\n*May raise:* {raised}."
