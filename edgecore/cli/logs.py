"""Write the log of a service where its site's ``[log]`` says: as text for people or JSON for machines."""

from __future__ import annotations

import contextlib
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


class _LogFile(logging.handlers.WatchedFileHandler):
    """Append to a file, which is opened anew when it was moved away or removed, as logrotate does.

    What the file does not take goes to stderr. The base class raises instead where a file cannot be opened anew,
    which would end, at its next word, every thread of a service.
    """

    _failing = _missed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; never raises OSError."""
        self._missed = False
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)
        self._failing = self._missed

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging calls it so
        """Write a record to stderr that the file did not take, after saying once why."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._missed = True
        if (
            self.stream is not None
        ):  # it would keep the record and try it again; the next one opens the file anew
            with contextlib.suppress(OSError):
                self.stream.close()
            self.stream = None
        with contextlib.suppress(OSError, ValueError, AttributeError):  # of a stderr that is closed, or none
            if not self._failing:
                why = error.strerror or error
                sys.stderr.write(f"the log {self.baseFilename} cannot be written, it goes to stderr: {why}\n")
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()


def set_up(table: LogTable, site: str, *, source: Path) -> None:
    """Let all records of this process go where *table* says. Raises ConfigurationError."""
    handler = _handler(table, source)
    handler.setFormatter(JsonLines(site) if table.format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers = [handler]
    level = logging.getLevelNamesMapping()[table.level.upper()]
    root.setLevel(max(level, logging.INFO))  # what libraries say when debugged is of interest to nobody here
    logging.getLogger("edgecore").setLevel(level)
    # It tells of each failure eight times; the driver, once.
    logging.getLogger("pika").setLevel(logging.CRITICAL)


def _handler(table: LogTable, source: Path) -> logging.Handler:
    if table.file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        return _LogFile(table.file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        found = f"cannot be written: {error.strerror}"
        raise ConfigurationError(str(source), [Problem("log.file", str(table.file), found)]) from error
