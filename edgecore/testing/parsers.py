"""Hold a parser to what it owes the jobs that are not concerned: whatever it reads, it costs one job at most."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import pytest
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecore.errors import SchedulerUnavailable

__all__ = ["ParserContract", "Recorded"]

_JUNK: Final = b"slurm_load_jobs error: Socket timed out on send/recv operation"

DAMAGES: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "cut in the middle": lambda record: record[: len(record) // 2],
    "emptied": lambda record: b"",
    "without its beginning": lambda record: record[len(record) // 2 :],
    "another program's words in the middle": lambda record: (
        record[: len(record) // 2] + _JUNK + record[len(record) // 2 :]
    ),
    "another program's words instead": lambda record: _JUNK,
    "bytes that are no text": lambda record: (
        record[: len(record) // 2] + b"\xff\xfe\x00" + record[len(record) // 2 :]
    ),
    "twice its length": lambda record: record + record,
    "letters for digits": lambda record: bytes(
        65 + byte % 26 if 48 <= byte < 58 else byte for byte in record
    ),
}
"""What happens to one record of a listing."""

_any_subclass = settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])


@frozen
class Recorded:
    """A recorded output, taken apart: *head*, the records of one job each, *tail*; together they are the output."""

    head: bytes
    records: tuple[bytes, ...]
    tail: bytes = b""

    def joined(self, records: Sequence[bytes] | None = None) -> bytes:
        """Return the output, with other *records* where they are given."""
        return self.head + b"".join(self.records if records is None else records) + self.tail


class ParserContract:
    """Subclass this for each parser of listings, and give it recorded real outputs with several jobs each::

        class TestSqueue(ParserContract):
            good = (Path("recorded/squeue.txt").read_bytes(),)
            head_lines = 1

            def parse(self, output):
                return text.parse_squeue(output)

    `parse` answers a mapping, one entry per job; None or SchedulerUnavailable says that this is no listing. A
    record is a line, behind *head_lines* others; where a record is more than that, override `take_apart`. Where the
    output is one document (JSON, XML), of which nothing is understood when anything is damaged, say ``document = True``:
    then damage may also cost the answer as a whole, but never make it wrong.
    """

    good: ClassVar[Sequence[bytes]]
    head_lines: ClassVar[int] = 0
    document: ClassVar[bool] = False

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        """Parse an output as the driver does."""
        raise NotImplementedError("a parser contract has a method `parse`; see ParserContract")

    def take_apart(self, output: bytes) -> Recorded:
        """Take a recorded output apart into the records of its jobs."""
        lines = output.splitlines(keepends=True)
        return Recorded(b"".join(lines[: self.head_lines]), tuple(lines[self.head_lines :]))

    # ------------------------------------------------------------------------------- the tests

    def test_recorded_output_is_understood_record_by_record(self) -> None:
        for output in self.good:
            recorded = self.take_apart(output)
            assert recorded.joined() == output
            assert len(recorded.records) > 2, "too few jobs to tell anything: record a listing of several"
            assert len(recorded.records) == len(self._parsed(output))

    @given(output=st.binary() | st.text().map(str.encode))
    @_any_subclass
    def test_no_output_whatever_raises(self, output: bytes) -> None:
        self._parsed(output)
        for recorded in map(self.take_apart, self.good):
            self._parsed(recorded.head + output + recorded.tail)

    @given(data=st.data())
    @_any_subclass
    def test_no_change_of_recorded_output_raises(self, data: st.DataObject) -> None:
        output = bytearray(data.draw(st.sampled_from(self.good)))
        for _ in range(data.draw(st.integers(1, 5))):
            begin = data.draw(st.integers(0, len(output)))
            end = data.draw(st.integers(begin, min(len(output), begin + 40)))
            output[begin:end] = data.draw(st.binary(max_size=40))
        self._parsed(bytes(output))

    @given(data=st.data())
    @_any_subclass
    def test_two_outputs_that_run_into_each_other_do_not_raise(self, data: st.DataObject) -> None:
        one, other = (data.draw(st.sampled_from(self.good)) for _ in range(2))
        place = data.draw(st.integers(0, len(one)))
        cut = data.draw(st.integers(0, len(other)))
        self._parsed(one[:place] + other[cut:] + one[place:])

    @given(data=st.data())
    @_any_subclass
    def test_output_that_stops_early_is_wrong_about_one_job_at_most(self, data: st.DataObject) -> None:
        output = data.draw(st.sampled_from(self.good))
        length = data.draw(st.integers(0, len(output)))
        right, found = self._parsed(output), self._parsed(output[:length])
        wrong = [key for key, value in found.items() if key not in right or right[key] != value]
        assert len(wrong) <= (0 if self.document else 1), wrong
        if not self.document:
            recorded = self.take_apart(output)
            whole = sum(length >= end for end in self._ends(recorded))
            assert len(found) >= whole, "a record that had arrived as a whole is missing"

    @pytest.mark.parametrize("damage", sorted(DAMAGES))
    def test_a_damaged_record_costs_its_own_job_at_most(self, damage: str) -> None:
        for output in self.good:
            recorded = self.take_apart(output)
            for number, record in enumerate(recorded.records):
                body = record.rstrip(b"\n")
                damaged = DAMAGES[damage](body) + record[len(body) :]
                self._check(recorded, number, [damaged])

    @given(data=st.data())
    @_any_subclass
    def test_whatever_stands_in_one_record_costs_its_own_job_at_most(self, data: st.DataObject) -> None:
        recorded = self.take_apart(data.draw(st.sampled_from(self.good)))
        number = data.draw(st.integers(0, len(recorded.records) - 1))
        record = recorded.records[number]
        body = record.rstrip(b"\n")
        begin = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(begin, len(body)))
        junk = data.draw(st.binary(max_size=30)).translate(None, b"\r\n")
        self._check(recorded, number, [body[:begin] + junk + body[end:] + record[len(body) :]])

    def test_a_record_that_is_missing_costs_its_own_job_alone(self) -> None:
        if self.document:
            pytest.skip("what is left of a document may be none")
        for recorded in map(self.take_apart, self.good):
            for number in range(len(recorded.records)):
                self._check(recorded, number, [])

    def test_the_order_of_records_does_not_matter(self) -> None:
        if self.document:
            pytest.skip("what separates the records of a document cannot be moved with them")
        for output in self.good:
            recorded = self.take_apart(output)
            mixed = list(recorded.records)
            random.Random(1).shuffle(mixed)  # noqa: S311 - nothing secret
            assert self._parsed(output) == self._parsed(recorded.joined(mixed))

    # --------------------------------------------------------------------------------- helpers

    def _parsed(self, output: bytes) -> Mapping[Any, Any]:
        try:
            answer = self.parse(output)
        except SchedulerUnavailable:
            return {}
        return {} if answer is None else answer

    def _check(self, recorded: Recorded, number: int, instead: Sequence[bytes]) -> None:
        """Check that all jobs but one are told as before when one record is replaced."""
        before, after = recorded.records[:number], recorded.records[number + 1 :]
        right = self._parsed(recorded.joined())
        found = self._parsed(recorded.joined([*before, *instead, *after]))
        if self.document and not found:
            return
        own = (
            set(right) - set(self._parsed(recorded.joined([*before, *after]))) if not self.document else set()
        )
        others = {key: value for key, value in right.items() if key not in own}
        told = {key: found.get(key) for key in others}
        wrong = [key for key in others if told[key] != others[key]]
        assert len(wrong) <= (1 if self.document else 0), f"{wrong} suffered from {instead}"
        new = set(found) - set(right)
        assert len(new) <= len(instead), f"{new} came from {instead}"

    def _ends(self, recorded: Recorded) -> list[int]:
        """Return where each record ends in the output."""
        ends, place = [], len(recorded.head)
        for record in recorded.records:
            place += len(record)
            ends.append(place)
        return ends
