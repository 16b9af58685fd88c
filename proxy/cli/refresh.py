"""`pullthrough refresh`: ask the upstream for tags now."""

import sys
from pathlib import Path
from typing import Any

import click

from proxy.cli.admin_client import AdminClient, admin_options, run


@click.command()
@click.argument("references", nargs=-1, required=True)
@admin_options
def refresh(references: tuple[str, ...], admin: str, token_file: Path | None) -> None:
    """Ask the upstream now for each of REFERENCES, tags or patterns of tags; what has moved is served from then on.

    Exits with 1 where a tag could not be asked for.
    """

    async def ask() -> list[dict[str, Any]]:
        async with AdminClient(admin, token_file) as client:
            answers = [await client.tags("POST", "tags/refresh", body={"reference": one}) for one in references]
        return [tag for answer in answers for tag in answer]

    found: list[dict[str, Any]] = run(ask)
    for tag in found:
        if tag["error"] is not None:
            click.echo(f"{tag['reference']} was not refreshed: {tag['error']}", err=True)
        elif tag["changed"]:
            click.echo(f"{tag['reference']} is {tag['after']} now, and was {tag['before'] or 'unknown'}")
        else:
            click.echo(f"{tag['reference']} is {tag['after']}, as before")
    if not found:
        click.echo("no such tags", err=True)
    sys.exit(1 if not found or any(tag["error"] is not None for tag in found) else 0)
