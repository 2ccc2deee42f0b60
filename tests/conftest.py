"""Share fixtures between the test modules."""

from __future__ import annotations

from scripted import edge

__all__ = ["edge"]
