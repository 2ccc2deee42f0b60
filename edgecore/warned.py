"""Remember across restarts what people outside were warned of, so that they are told once.

One small file beside the store, replaced as a whole, and written after the warning is durable: a service that is killed in
between tells twice, and never not at all. For the same reason a file that cannot be read counts as empty.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

from attrs import define, field

from edgecore.parts import READ_FILE, new_file

__all__ = ["Warned"]

log = logging.getLogger(__name__)

_LIMIT_BYTES = 65_536


@define(eq=False)
class Warned:
    """The credentials of which people were warned, and with which end; from any thread."""

    file: Path
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def of(self, name: str) -> int | None:
        """Return when the credential ends of which people were warned last, microseconds UTC; None where they were not."""
        with self._lock:
            return self._read().get(name)

    def note(self, name: str, expires: int) -> None:
        """Remember that people were warned of that end."""
        with self._lock:
            new = self.file.with_name(f"{self.file.name}.new")
            try:
                with new_file(new) as opened:
                    opened.write(json.dumps({**self._read(), name: expires}).encode())
                    opened.flush()
                    os.fsync(opened.fileno())
                new.replace(self.file)
            except OSError as error:
                log.warning("%s: %s: the next service warns again", self.file, error.strerror)

    def _read(self) -> dict[str, int]:
        try:
            opened = os.open(self.file, READ_FILE)
            try:
                found = json.loads(os.read(opened, _LIMIT_BYTES))
            finally:
                os.close(opened)
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: expires for name, expires in found.items() if isinstance(expires, int)}
