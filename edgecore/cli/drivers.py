"""List the drivers, layers and listeners that are installed, and say which of them work."""

from __future__ import annotations

import click

from edgecore.cli.common import json_option
from edgecore.cli.output import show_json, show_table, visible
from edgecore.drivers import list_drivers

__all__ = ["drivers"]


@click.command()
@click.option("--check", is_flag=True, help="Import each one and check its hooks; exit 1 if one is unusable.")
@json_option
def drivers(check: bool, as_json: bool) -> None:
    """List the drivers and plugins that installed packages offer; nothing is imported without --check.

    \b
    Examples:
      edgecore drivers
      edgecore drivers --check --json | jq '.[] | select(.status == "unusable")'
    """
    found = list_drivers(check=check)
    if as_json:
        show_json(found)
    else:
        show_table(
            ("role", "name", "package", "version", "needs edgecore", "status"),
            [(d.role, d.name, d.package, d.version, d.requires or "any", d.status) for d in found],
        )
    unusable = any(each.status == "unusable" for each in found)
    for each in found:
        if each.error and not as_json:
            kind = "error" if each.status == "unusable" else "note"
            click.echo(f"{kind}: {visible(each.error)}", err=True)
    click.get_current_context().exit(int(check and unusable))
