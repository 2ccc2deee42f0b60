"""Put a listing together, with the record of one job spoilt in the ways that a test asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgecore.testing.fake.dialect import Dialect
from edgecore.testing.fake.records import Listing, Printed
from edgecore.testing.words import Garbling

__all__ = ["garbled"]

_OTHER_WORDS: Final = b"prologue[4711]: mount /scratch: stale file handle\n"
_NO_TEXT: Final = b"\xff\xfe\x80\xc3("


def garbled(listing: Listing, spoilers: Mapping[str, str], dialect: Dialect) -> Printed:
    """Return what is printed of *listing*; *spoilers*: batch id -> `Garbling`."""
    if Garbling.EMPTY in spoilers.values():
        return Printed()
    whole, cut = [], b""
    for job, record in listing.records:
        how = spoilers.get(job.batch_id)
        if how == Garbling.TRUNCATED:
            cut = record[: len(record) // 2]
        else:
            whole.append(_spoilt(record, how, dialect))
    text = listing.header + listing.between.join(whole)
    text += (listing.between if whole else b"") + cut if cut else listing.footer
    return Printed(text, listing.errors, listing.exit_code)


def _spoilt(record: bytes, how: str | None, dialect: Dialect) -> bytes:
    middle = len(record) // 2
    if how == Garbling.BROKEN_LINE:
        return dialect.broken(record)
    if how == Garbling.INTERLEAVED:
        return record[:middle] + _OTHER_WORDS + record[middle:]
    if how == Garbling.NOT_UTF8:
        return record[:middle] + _NO_TEXT + record[middle + len(_NO_TEXT) :]
    return record
