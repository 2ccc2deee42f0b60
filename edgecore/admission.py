"""Decide whether a definition may become a job of this site, with all reasons at once if not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime

from attrs import evolve, frozen

from edgecore import serial
from edgecore.clock import iso, microseconds
from edgecore.config import SiteConfig
from edgecore.errors import DefinitionError, Problem
from edgecore.models import ControlMessage, JobDefinition
from edgecore.serial import nearest, shorten

__all__ = ["Admission"]


@frozen(kw_only=True)
class Admission:
    """Read messages strictly, by the schema and by what this site offers."""

    config: SiteConfig
    applications: Callable[[], Collection[str]]
    """The names in the catalogue."""

    def now(self) -> Admission:
        """Return what decides by the catalogue as it is now, without asking for it again with every message."""
        known = frozenset(self.applications())
        return evolve(self, applications=lambda: known)

    def read(self, body: bytes, source: str) -> JobDefinition | ControlMessage:
        """Return what a message asks for. Raises DefinitionError."""
        document = serial.parse_json(body, source=source, limit_bytes=self.config.limits.max_message_bytes)
        if not isinstance(document, dict):
            raise DefinitionError(source, (Problem("", shorten(document), "must be a JSON object"),))
        if "command" in document:
            return serial.structure(ControlMessage, document, source=source, error=DefinitionError)
        if "subjobs" in document:
            allowed = "a workflow is for Argo; a site takes single jobs"
            raise DefinitionError(source, (Problem("subjobs", "", allowed),))
        return self.definition(document, source)

    def definition(self, document: Mapping[str, object], source: str) -> JobDefinition:
        """Return a job's definition with the site's defaults. Raises DefinitionError."""
        problems = list(self._of_the_site(document))
        try:
            definition = serial.structure(
                JobDefinition, {**self._defaults(), **document}, source=source, error=DefinitionError
            )
        except DefinitionError as error:
            raise DefinitionError(source, (*error.problems, *problems)) from None
        if problems:
            raise DefinitionError(source, problems)
        return definition

    def what_can_be_read(self, body: bytes) -> JobDefinition:
        """Return as much of a refused definition as is sound, so that its refusal can be told."""
        try:
            document = serial.parse_json(body, source="", limit_bytes=self.config.limits.max_message_bytes)
        except DefinitionError:
            document = {}
        fields = {"name": "unknown", "application": "unknown", "site": self.config.site}
        if not isinstance(document, dict):
            document = {}
        if "command" in document:  # the id in it is that of a job, which is not refused with it
            document, fields["name"] = {}, "request"
        for key in ("name", "application", "job_id", "argo_job_id"):
            if key in document:
                candidate = {**fields, key: document[key]}
                try:
                    serial.structure(JobDefinition, candidate, source="", error=DefinitionError)
                except DefinitionError:
                    continue
                fields = candidate
        return serial.structure(JobDefinition, fields, source="", error=DefinitionError)

    def _defaults(self) -> Mapping[str, object]:
        return {
            key: value for key, value in serial.unstructure(self.config.defaults).items() if value is not None
        }

    def _of_the_site(self, document: Mapping[str, object]) -> Iterator[Problem]:
        for key in ("needs", "sites"):
            if key in document:
                yield Problem(key, shorten(document[key]), "belongs into a workflow, which is for Argo")
        site, name = document.get("site"), document.get("application")
        if isinstance(site, str) and site != self.config.site:
            yield Problem("site", shorten(site), f"this site is {self.config.site}")
        known = self.applications()
        if isinstance(name, str) and name not in known:
            offered = ", ".join(sorted(known)) or "none yet"
            said = f"this site offers {offered}{nearest(name, sorted(known))}"
            yield Problem("application", shorten(name), said)
        for key in ("input_url", "output_url"):
            url = document.get(key)
            if isinstance(url, str) and not any(entry.allows(url) for entry in self.config.transfer):
                prefixes = ", ".join(entry.prefix for entry in self.config.transfer) or "no URLs at all"
                yield Problem(key, shorten(url), f"this site allows URLs below {prefixes}")
        limits = self.config.limits
        for key, limit in (
            ("num_nodes", limits.max_nodes),
            ("wall_time_minutes", limits.max_wall_time_minutes),
        ):
            wanted = document.get(key)
            if limit is not None and isinstance(wanted, int) and wanted > limit:
                yield Problem(key, shorten(wanted), f"this site allows at most {limit:,}")
        yield from _not_a_time(document.get("not_after"))


def _not_a_time(value: object) -> Iterator[Problem]:
    if isinstance(value, str):
        try:
            iso(microseconds(datetime.fromisoformat(value)))
        except (ValueError, OverflowError):
            yield Problem("not_after", shorten(value), "must be a date and time as ISO 8601 has it")
