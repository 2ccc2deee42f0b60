"""Tables that fit a terminal: what matters stays whole, long words are cut in the middle."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecore.cli.output import lasted
from edgecore.cli.rows import job_columns
from edgecore.cli.tables import Column, cut, fitted, width_of

LONG = ("1795366120893042", "zmumu-" + "x" * 90, "generate", "EXECUTION_FAILED (hold asked)")
ROW = (*LONG, "2026-11-22 16:48:41Z", "exit code 3: " + "y" * 200)


def lines(columns: tuple[Column, ...], *rows: tuple[str, ...], width: int | None) -> list[str]:
    return ["".join(cell.text for cell in line) for line in fitted(columns, rows, width)]


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("name", 4, "name"),
        ("abcdefghij", 7, "abc…hij"),
        ("abcdefghij", 6, "abc…ij"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
        ("漢字漢字漢字", 7, "漢字…字"),
    ],
)
def test_a_long_word_keeps_its_beginning_and_its_end(text: str, width: int, expected: str) -> None:
    assert expected == cut(text, width)
    assert width_of(expected) <= width


@given(st.text(max_size=60), st.integers(0, 60))
def test_what_is_cut_is_never_wider_than_asked(text: str, width: int) -> None:
    assert width_of(cut(text, width)) <= width


@pytest.mark.parametrize("width", [32, 40, 60, 80, 120, 200])
def test_a_list_of_jobs_fits_and_never_cuts_the_state(width: int) -> None:
    short = ("1795366120893043", "a", "b", "RUNNING", "2026-11-22 16:48:41Z", "")
    for rows in ([ROW, short], [short]):
        found = lines(job_columns(), *rows, width=width)
        assert all(width_of(line) <= width for line in found)
        for line, row in zip(found[1:], rows, strict=True):
            assert row[3] in line
            assert row[0] in line or width < 60


def test_at_80_columns_a_list_shows_the_name_and_the_message_too() -> None:
    (_, line) = lines(job_columns(), (*ROW[:3], "EXECUTION_FAILED", *ROW[4:]), width=80)
    assert re.search(r"^1795366120893042  zmu\S*…\S*x  EXECUTION_FAILED  exit .*…y*$", line)


def test_a_column_that_has_no_room_goes_by_its_rank_and_the_room_is_shared() -> None:
    columns = (Column("a", 3, 1), Column("b", 3, 2), Column("c", None, 0))
    row = ("x" * 10, "y" * 10, "zzz")
    assert ["xxxx…xxx", "yyyy…yyy", "zzz"] == lines(columns, row, width=23)[1].split()
    assert ["xx…x", "zzz"] == lines(columns, row, width=9)[1].split()
    assert ["zzz"] == lines(columns, row, width=3)[1].split()


def test_without_a_limit_nothing_is_cut() -> None:
    (_, line) = lines(job_columns(), ROW, width=None)
    assert all(cell in line for cell in ROW)
    assert "…" not in line


@pytest.mark.parametrize(
    ("time_us", "words"),
    [
        (-5, "0 ms"),
        (350_000, "350 ms"),
        (1_500_000, "1.5 s"),
        (59_400_000, "59 s"),
        (200_000_000, "3 min 20 s"),
        (18_120_000_000, "5 h 2 min"),
        (1_051_200_000_000, "12 d 4 h"),
    ],
)
def test_a_stretch_of_time_is_written_for_people(time_us: int, words: str) -> None:
    assert words == lasted(time_us)
