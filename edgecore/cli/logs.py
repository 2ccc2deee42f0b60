"""Write the log of a service where its site's ``[log]`` says: as text for people or JSON for machines."""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from attrs import define

from edgecore.cli.output import visible
from edgecore.config import LogTable
from edgecore.errors import ConfigurationError, Problem

__all__ = ["JsonLines", "TextLines", "set_up"]

_OF_EVERY_RECORD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None)
    return f"{moment.isoformat(timespec='milliseconds')}Z"


class TextLines(logging.Formatter):
    """Write a record for people: when, how bad, what."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record, with nothing in it that a terminal would obey."""
        text = f"{_time(record)[:19].replace('T', ' ')}Z {record.levelname:<7} {record.getMessage()}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return visible(text, keep="\n")


@define(eq=False)
class JsonLines(logging.Formatter):
    """Write a record for machines: one JSON object per line, with the fields of ``extra=``."""

    site: str

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of ASCII."""
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "site": self.site,
        }
        fields |= {key: value for key, value in record.__dict__.items() if key not in _OF_EVERY_RECORD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def set_up(table: LogTable, site: str, *, source: Path) -> None:
    """Let all records of this process go where *table* says. Raises ConfigurationError."""
    handler = _handler(table, source)
    handler.setFormatter(JsonLines(site) if table.format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers = [handler]
    level = logging.getLevelNamesMapping()[table.level.upper()]
    root.setLevel(max(level, logging.INFO))  # what libraries say when debugged is of interest to nobody here
    logging.getLogger("edgecore").setLevel(level)


def _handler(table: LogTable, source: Path) -> logging.Handler:
    if table.file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        # Opens the file anew when it was moved away or removed, as logrotate does.
        return logging.handlers.WatchedFileHandler(table.file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        found = f"cannot be written: {error.strerror}"
        raise ConfigurationError(str(source), [Problem("log.file", str(table.file), found)]) from error
