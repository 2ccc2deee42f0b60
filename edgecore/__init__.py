"""Build edge services for supercomputer sites: the public names.

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgecore.config import SiteConfig as SiteConfig
    from edgecore.config import read_site as read_site
    from edgecore.doctor import Section as Section
    from edgecore.doctor import diagnose as diagnose
    from edgecore.errors import ConfigurationError as ConfigurationError
    from edgecore.errors import DefinitionError as DefinitionError
    from edgecore.errors import EdgeError as EdgeError
    from edgecore.hookspecs import Lifecycle as Lifecycle
    from edgecore.hookspecs import Messaging as Messaging
    from edgecore.hookspecs import Scheduling as Scheduling
    from edgecore.hookspecs import Transfer as Transfer
    from edgecore.hookspecs import hookimpl as hookimpl
    from edgecore.models import Finding as Finding
    from edgecore.models import Job as Job
    from edgecore.models import JobDefinition as JobDefinition
    from edgecore.models import JobState as JobState
    from edgecore.models import Level as Level
    from edgecore.reader import Reader as Reader
    from edgecore.service import Balsam as Balsam
    from edgecore.service import run_site as run_site

__all__ = [
    "Balsam",
    "ConfigurationError",
    "DefinitionError",
    "EdgeError",
    "Finding",
    "Job",
    "JobDefinition",
    "JobState",
    "Level",
    "Lifecycle",
    "Messaging",
    "Reader",
    "Scheduling",
    "Section",
    "SiteConfig",
    "Transfer",
    "diagnose",
    "hookimpl",
    "read_site",
    "run_site",
]

_HOME: Final = {
    "Balsam": "service",
    "ConfigurationError": "errors",
    "DefinitionError": "errors",
    "EdgeError": "errors",
    "Finding": "models",
    "Job": "models",
    "JobDefinition": "models",
    "JobState": "models",
    "Level": "models",
    "Lifecycle": "hookspecs",
    "Messaging": "hookspecs",
    "Reader": "reader",
    "Scheduling": "hookspecs",
    "Section": "doctor",
    "SiteConfig": "config",
    "Transfer": "hookspecs",
    "diagnose": "doctor",
    "hookimpl": "hookspecs",
    "read_site": "config",
    "run_site": "service",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgecore' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgecore.{_HOME[name]}"), name)
