"""Write from other processes into a store, whether its service runs or not: requests and the catalogue."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from attrs import frozen

from edgecore import serial, store_file, wakeup
from edgecore.models import Application

__all__ = ["Desk"]


@frozen
class Desk:
    """Put things where a service finds them.

    Each call is one short transaction. Raises StoreUnusable, StoreError.
    """

    path: Path
    mode: str = "wal"

    def request(
        self, command: str, job_id: int, *, asked_by: str, now: int, from_start: bool = False
    ) -> None:
        """Ask the service of this store to do something with a job, and wake it; *from_start* belongs to a retry."""
        self._run(
            "INSERT INTO requests (command, job_id, asked_by, time, from_start) VALUES (?, ?, ?, ?, ?)",
            (command, job_id, asked_by, now, from_start),
        )
        wakeup.ring(store_file.wake_directory(self.path))

    def add_application(self, application: Application, *, now: int) -> None:
        """Put an application into the catalogue, in place of one of the same name."""
        self._run(
            "INSERT OR REPLACE INTO applications (name, entry, changed) VALUES (?, ?, ?)",
            (application.name, serial.to_json(application), now),
        )

    def remove_application(self, name: str) -> bool:
        """Take an application out of the catalogue; tell whether it was there."""
        return self._run("DELETE FROM applications WHERE name = ?", (name,)) > 0

    def _run(self, statement: str, values: tuple[object, ...]) -> int:
        store_file.check_place(self.path, self.mode)
        try:
            store_file.settle(self.path)
            connection = store_file.open_for_writing(self.path, self.mode)
            with contextlib.closing(connection), store_file.transaction(connection):
                return connection.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise store_file.explained(error, self.path) from error
