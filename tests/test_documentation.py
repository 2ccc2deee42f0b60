"""The documentation is true: pages are followed literally, and what repeats the code is the code's."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final
from xml.etree import ElementTree

import pytest
from documentation import Block, Command, File, Follower, blocks, matches, steps

import edgecore.testing
from docs.generate import refreshed, stale
from docs.generators.hooks import hooks_of
from edgecore import serial
from edgecore.config import read_site
from edgecore.errors import DefinitionError
from edgecore.hookspecs import ROLES, Lifecycle
from edgecore.models import ControlMessage, JobDefinition, StatusMessage, WarningMessage

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
PAGES: Final = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
FOLLOWED: Final = [path for path in PAGES if path.parent.name in ("tutorial", "how-to")]
WITH_A_SERVER: Final = {"put-balsam-at-your-centre", "use-rabbitmq"}
"""Followed elsewhere, beside the server that it needs."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -------------------------------------------------------------------------------- followed


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[Follower]:
    (tmp_path / "reader").mkdir()
    found = Follower(tmp_path / "reader")
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in FOLLOWED if page.stem not in WITH_A_SERVER], ids=named)
def test_who_does_what_a_page_says_sees_what_it_shows(page: Path, follower: Follower) -> None:
    follower.follow(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", FOLLOWED, ids=named)
def test_every_page_that_tells_what_to_do_has_something_to_do(page: Path) -> None:
    assert any(isinstance(step, Command) for step in steps(page.read_text(encoding="utf-8")))


def test_the_python_that_a_page_shows_fits_the_library(tmp_path: Path) -> None:
    places = {page: tmp_path / page.stem for page in FOLLOWED}
    for page, place in places.items():
        for step in steps(page.read_text(encoding="utf-8")):
            if isinstance(step, File) and step.name.endswith(".py"):
                path = place / step.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a" if step.added else "w", encoding="utf-8") as file:
                    file.write(step.content)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml"]
    command += ["--allow-untyped-defs", "--allow-incomplete-defs", "--allow-untyped-calls"]
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(map(str, places.values()))}
    written = list(map(str, tmp_path.rglob("*.py")))
    assert written
    result = subprocess.run(
        [*command, *written], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250
    )
    assert 0 == result.returncode, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", ["$ echo one\ntwo\n", "$ false\n", "$ true\n$ echo $?\n0\n", "$ echo one\nzero\n...\none\n"]
)
def test_a_page_that_shows_what_does_not_come_is_found(content: str, follower: Follower) -> None:
    with pytest.raises(AssertionError):
        follower.follow(f"```console\n{content}```\n")


@pytest.mark.slow
def test_the_files_of_a_page_are_there_for_its_commands_and_variables_stay(follower: Follower) -> None:
    page = (
        'First `a/b.txt`:\n\n```text\nit\'s "one"\n```\n\n```console\n$ A=a\n$ cat $A/b.txt\nit\'s "one"\n'
        "$ cat nothing\n...nothing...\n$ echo $?\n1\n$ cat <(echo \\\n    two) | cat\ntwo\n```\n"
    )
    follower.follow(page)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a...c", "abc"),
        ("a\n...\nz", "a\nb\nc\nz"),
        ("a\n...", "a"),
        ("...\nz", "z"),
        ("2026-11-22 14:09:23Z  DONE", "2027-01-02 00:00:00Z    DONE"),
        ("job 1795356560123456 (x)", "job 1999999999999999 (x)\n"),
        ("a [b] (c)", "a [b] (c)  \n"),
    ],
)
def test_what_varies_may_vary(shown: str, printed: str) -> None:
    assert matches(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a...c", "ab\nc"),
        ("a\n...\nz", "a\nb\nzz"),
        ("a", "a\nb"),
        ("a b", "a  b"),
        ("2026-11-22 14:09:23Z", "yesterday"),
        ("job 1795356560123456", "job 12"),
        ("a.c", "abc"),
    ],
)
def test_what_does_not_vary_must_not_differ(shown: str, printed: str) -> None:
    assert not matches(shown, printed)


def test_only_blocks_of_a_named_file_or_a_console_are_done() -> None:
    page = "`x.py`:\n```python\n1\n```\ntext\n```sh\nrm -rf /\n```\n```console\n$ one\n$ echo $?\n1\n```\n"
    assert [File("x.py", "1\n"), Command("one", "", fails=True), Command("echo $?", "1")] == list(steps(page))


# --------------------------------------------------------------------------------- generated


def test_what_is_generated_is_as_the_code_has_it() -> None:
    found = [named(path) for path, _ in stale()]
    assert [] == found, f"stale: {', '.join(found)}; refresh with: make docs"


def test_only_the_generated_parts_of_a_page_are_rewritten() -> None:
    page = "before <!-- x -->\n<!-- generated: errors -->\nold\n<!-- end -->\nafter\n"
    fresh = refreshed(page)
    assert fresh.startswith("before <!-- x -->\n<!-- generated: errors -->\n")
    assert fresh.endswith("<!-- end -->\nafter\n")
    assert "old" not in fresh
    assert "SchedulerUnavailable" in fresh
    assert fresh == refreshed(fresh)


def test_every_hook_has_a_section_that_says_who_calls_it_and_when() -> None:
    page = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### `(\w+\.\w+)`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    every = {f"{role.__name__}.{name}" for role in (*ROLES.values(), Lifecycle) for name in hooks_of(role)}
    assert every == set(sections)
    for name, section in sections.items():
        assert f"<!-- generated: hook {name} -->" in section
        for word in ("Called", "By"):
            assert re.search(rf"^\*\*{word}:?\*\*", section, re.MULTILINE), f"{name}: say {word}"


@pytest.mark.parametrize(("page", "module"), [("python", edgecore), ("testing", edgecore.testing)])
def test_every_public_name_is_described(page: str, module: ModuleType) -> None:
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert [] == [name for name in module.__all__ if f"{module.__name__}.{name}" not in text]


@pytest.mark.parametrize("picture", sorted((DOCS / "pictures").glob("*.svg")), ids=named)
def test_a_picture_is_sound_and_stands_in_a_page(picture: Path) -> None:
    ElementTree.parse(picture)
    assert any(f"pictures/{picture.name}" in page.read_text(encoding="utf-8") for page in PAGES)


# ------------------------------------------------------------------------------------ shown


def shown(page: Path, language: str) -> list[Block]:
    return [block for block in blocks(page.read_text(encoding="utf-8")) if block.language == language]


MESSAGES: Final = shown(DOCS / "reference" / "messages.md", "json")


def read_message(document: dict[str, object]) -> object:
    if "sequence" in document:
        return serial.structure(StatusMessage, document, source="page", error=DefinitionError)
    if "warning" in document:
        return serial.structure(WarningMessage, document, source="page", error=DefinitionError)
    kind = ControlMessage if "command" in document else JobDefinition
    return serial.structure(kind, document, source="page", error=DefinitionError)


@pytest.mark.parametrize("number", range(len(MESSAGES)))
def test_an_example_of_a_message_is_one(number: int) -> None:
    assert read_message(json.loads(MESSAGES[number].content))


def test_there_is_an_example_of_every_message() -> None:
    kinds = {type(read_message(json.loads(block.content))) for block in MESSAGES}
    assert {JobDefinition, ControlMessage, StatusMessage, WarningMessage} == kinds


def test_the_dry_words_of_an_example_are_not_taken_for_granted() -> None:
    with pytest.raises(DefinitionError):
        read_message({"name": "x", "site": "y"})


# ------------------------------------------------------------------------------------- named


@functools.cache
def names_of_tests() -> frozenset[str]:
    found = set()
    places = (ROOT / name for name in ("tests", "edgecore/testing", "drivers"))
    for path in (path for place in places for path in place.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return frozenset(name for name in found if name.startswith("test_"))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    words = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    assert set() == words - names_of_tests()


def test_every_promise_about_security_names_the_test_that_shows_it() -> None:
    page = (DOCS / "explanation" / "security.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| promise \| shown by \|\n\| --- \| --- \|\n((?:\| .*\n)+)", page, re.MULTILINE)
    promises = [row for table in tables for row in table.splitlines()]
    assert len(promises) > 20
    for row in promises:
        assert "`test_" in row.rstrip(" |").rpartition("| ")[2], f"by which test: {row}"


# -------------------------------------------------------------------------------------- links


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "examples").rglob("*.md"), *PAGES],
    ids=named,
)
def test_every_file_that_a_page_links_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert [] == [link for link in links if not (page.parent / link).exists()]


def test_every_page_is_reached_from_the_first() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    missing = [named(page) for page in PAGES if str(page.relative_to(DOCS).with_suffix("")) not in index]
    assert ["docs/index.md"] == missing


def test_the_configuration_that_the_pages_link_is_read() -> None:
    assert "example" == read_site(ROOT / "examples" / "balsam" / "config.toml").site


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-b", "html"]
    places = ["-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")]
    result = subprocess.run([*command, *places], capture_output=True, text=True, timeout=250)
    assert 0 == result.returncode, result.stdout + result.stderr
    for page in PAGES:
        assert (tmp_path / "html" / page.relative_to(DOCS).with_suffix(".html")).is_file()
