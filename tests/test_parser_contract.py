"""The contract of parsers finds parsers that make jobs suffer for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from edgecore.testing import ParserContract
from edgecore.testing.parsers import Recorded

pytestmark = pytest.mark.slow

LISTING = b"ID STATE\n" + b"".join(
    b"%d %s\n" % (number, word) for number, word in enumerate([b"R", b"Q", b"R"] * 3)
)
DOCUMENT = json.dumps([{"id": number, "state": "R"} for number in range(5)]).encode()


class TestGood(ParserContract):
    """A parser of lines that keeps the contract."""

    good: ClassVar = (LISTING,)
    head_lines: ClassVar = 1

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        jobs = {}
        for line in output.splitlines()[1:]:
            fields = line.split(b" ")
            if len(fields) == 2 and fields[0].isdigit() and fields[1] in (b"R", b"Q"):
                jobs[int(fields[0])] = fields[1]
        return jobs


class TestGoodDocument(ParserContract):
    """A parser of one document that keeps the contract."""

    good: ClassVar = (DOCUMENT,)
    document: ClassVar = True

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        try:
            return {str(job["id"]): job["state"] for job in json.loads(output)}
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def take_apart(self, output: bytes) -> Recorded:
        first, *others = output.removesuffix(b"]").split(b", {")
        return Recorded(b"", (first, *(b", {" + other for other in others)), b"]")


class Raises(TestGood):
    __test__ = False

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        return {int(line.partition(b" ")[0]): line for line in output.splitlines()[1:]}


class StopsAtTheFirst(TestGood):
    __test__ = False

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        jobs: dict[Any, Any] = {}
        for line in output.splitlines()[1:]:
            fields = line.split(b" ")
            if len(fields) != 2 or not fields[0].isdigit():
                break
            jobs[int(fields[0])] = fields[1]
        return jobs


class Counts(TestGood):
    __test__ = False

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        return dict(enumerate(output.splitlines()[1:]))


class TakesTheNext(TestGood):
    __test__ = False

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        words = output.split()[2:]
        return dict(zip(words[::2], words[1::2], strict=False))


@pytest.mark.parametrize(
    ("contract", "name", "damage"),
    [
        (Raises(), "test_no_output_whatever_raises", []),
        (Raises(), "test_no_change_of_recorded_output_raises", []),
        (Raises(), "test_two_outputs_that_run_into_each_other_do_not_raise", []),
        (StopsAtTheFirst(), "test_a_damaged_record_costs_its_own_job_at_most", ["emptied"]),
        (StopsAtTheFirst(), "test_whatever_stands_in_one_record_costs_its_own_job_at_most", []),
        (Counts(), "test_the_order_of_records_does_not_matter", []),
        (Counts(), "test_a_record_that_is_missing_costs_its_own_job_alone", []),
        (TakesTheNext(), "test_a_damaged_record_costs_its_own_job_at_most", ["cut in the middle"]),
    ],
)
def test_a_parser_that_breaks_the_contract_is_found(
    contract: ParserContract, name: str, damage: list[str]
) -> None:
    with pytest.raises((AssertionError, ValueError, ExceptionGroup)):
        getattr(contract, name)(*damage)
