"""Show what was found in a site that was examined."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgecore.cli.common import find_site, json_option
from edgecore.cli.output import console, show_json, visible, width
from edgecore.errors import ConfigurationError
from edgecore.models import Finding, Level

if TYPE_CHECKING:
    from edgecore.config import SiteConfig
    from edgecore.doctor import Section

__all__ = ["doctor"]

_NARROW: Final = 40
_WIDTH: Final = 80
_WIDE: Final = 120
_WORDS: Final = {Level.OK: "ok", Level.WARNING: "warning", Level.FAILURE: "FAILURE"}
_SIGNS: Final = {Level.OK: "\N{CHECK MARK}", Level.WARNING: "!", Level.FAILURE: "\N{BALLOT X}"}
_COLOURS: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}
_SUBJECT: Final = 16
"""Room for a subject beside its message; a longer one has a line of its own."""


@click.command()
@click.argument(
    "site", metavar="[SITE.toml]", type=click.Path(path_type=Path), envvar="EDGECORE_SITE", required=False
)
@json_option
def doctor(site: Path | None, as_json: bool) -> None:
    """Examine the site whose file is SITE.toml: everything that its service will need, and what to do.

    SITE.toml is by default EDGECORE_SITE, else ./site.toml. Looked at are the host, the directories (by writing
    into them), the store, plugins and drivers (broker, batch system, every transfer prefix: opened and asked),
    launchers, applications and limits. Run it as the account of the service: before the first start, after each
    change, and when something is wrong.

    A service that works is not disturbed: no message is taken, no job is touched and no setting is changed. Only
    queues and a driver's own directory are made where they are missing, as every start does. What gives no
    answer in time is a failure like any other.

    \b
    Examples:
      edgecore doctor /etc/edgecore/theta.toml
      edgecore doctor --json | jq '.findings[] | select(.level != "ok")'

    Exit code: 0 when nothing will fail (there may be warnings), 1 when something will, 2 when the site's file
    must be corrected first.
    """
    try:
        config = find_site(site)
    except ConfigurationError as error:
        if as_json:
            _show_json(None, [_unreadable(error)])
            click.get_current_context().exit(2)
        raise
    from edgecore.doctor import diagnose

    # What drivers log meanwhile is among the findings, or none of the reader's business.
    logging.getLogger().addHandler(logging.NullHandler())
    sections = []
    if not as_json:
        click.echo(f"site {config.site}, {visible(str(config.source))}")
    for section in diagnose(config):
        sections.append(section)
        if not as_json:
            _show(section)
    if as_json:
        _show_json(config, sections)
    else:
        click.echo("\n" + "\n".join(_wrapped(_summary(sections), "", "", _WIDTH)))
    click.get_current_context().exit(int(_count(sections, Level.FAILURE) > 0))


def _unreadable(error: ConfigurationError) -> Section:
    """Return the problems of a site's file that cannot be used as findings."""
    from edgecore.doctor import Section

    remedy = f"correct {error.source}"
    found = (Finding("site file", Level.FAILURE, str(problem), remedy) for problem in error.problems)
    return Section("configuration", tuple(found))


def _count(sections: Iterable[Section], level: Level) -> int:
    return sum(section.count(level) for section in sections)


def _show_json(config: SiteConfig | None, sections: Sequence[Section]) -> None:
    failures, warnings = _count(sections, Level.FAILURE), _count(sections, Level.WARNING)
    show_json(
        {
            "site": None if config is None else config.site,
            "source": None if config is None else str(config.source),
            "ok": failures == 0,
            "failures": failures,
            "warnings": warnings,
            "findings": [
                {
                    "section": section.title,
                    "subject": finding.subject,
                    "level": finding.level.value,
                    "message": finding.message,
                    "remedy": finding.remedy,
                }
                for section in sections
                for finding in section.findings
            ],
        }
    )


def _summary(sections: Sequence[Section]) -> str:
    failures, warnings = _count(sections, Level.FAILURE), _count(sections, Level.WARNING)
    total = sum(len(section.findings) for section in sections)
    told = [_number(failures, "failure")] if failures else []
    told += [_number(warnings, "warning")] if warnings else []
    if not failures:
        return f"nothing will fail: {total} findings, {told[0] if told else 'no warning'}"
    first = next((s.title, f.subject) for s in sections for f in s.findings if f.level is Level.FAILURE)
    return f"{', '.join(told)}: fix {first[0]}, {first[1]} first"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# ------------------------------------------------------------------------------------ lines


def _show(section: Section) -> None:
    """Write one section: at a terminal with signs and colours, else in plain words."""
    terminal = console()
    if terminal is None:
        click.echo(f"\n{section.title}")
        for finding in section.findings:
            for line in _lines(finding, _WORDS[finding.level].ljust(8), _width()):
                click.echo(line)
        return
    from rich.text import Text

    room = max(_NARROW, min(terminal.width, _WIDE))
    terminal.print(Text(f"\n{section.title}", style="bold"))
    for finding in section.findings:
        sign = _SIGNS[finding.level]
        first, *rest = _lines(finding, sign.ljust(2), room)
        text = Text(first)
        text.stylize(_COLOURS[finding.level], 2, 3)
        terminal.print(text, soft_wrap=True)
        for each in rest:
            terminal.print(Text(each), soft_wrap=True)


def _width() -> int:
    """Return how wide plain lines may be; a file or a pipe gets what every screen can show."""
    return max(_NARROW, min(width() or _WIDTH, _WIDTH))


def _lines(finding: Finding, sign: str, width: int) -> Iterator[str]:
    """Lay a finding out: its level, its subject, and beside them the message and what to do."""
    subject = visible(finding.subject)
    before = f"  {sign} "
    indent = " " * (len(before) + _SUBJECT + 1)
    if len(subject) > _SUBJECT:
        yield f"{before}{subject}"
        before = indent
    else:
        before += f"{subject.ljust(_SUBJECT)} "
    yield from _wrapped(finding.message, before, indent, width)
    if finding.remedy:
        yield from _wrapped(finding.remedy, f"{indent}-> ", f"{indent}   ", width)


def _wrapped(words: str, first: str, rest: str, width: int) -> list[str]:
    """Break a text between words only: a path stays whole, to be copied."""
    return textwrap.wrap(
        visible(words),
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
