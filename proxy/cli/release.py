"""`pullthrough release`: let held tags go by their upstreams again."""

import sys
from pathlib import Path
from typing import Any

import click

from proxy.cli.admin_client import AdminClient, admin_options, run


@click.command()
@click.argument("references", nargs=-1, required=True)
@admin_options
def release(references: tuple[str, ...], admin: str, token_file: Path | None) -> None:
    """Let each of REFERENCES, held tags or patterns of tags, go by its upstream again.

    Exits with 1 where none of them was held.
    """

    async def ask() -> list[dict[str, Any]]:
        async with AdminClient(admin, token_file) as client:
            answers = [await client.tags("POST", "tags/release", body={"reference": one}) for one in references]
        return [tag for answer in answers for tag in answer]

    found: list[dict[str, Any]] = run(ask)
    for tag in found:
        click.echo(f"{tag['reference']} is not held any more; it was {tag['digest'] or 'forgotten'} before")
    if not found:
        click.echo("no held tags", err=True)
        sys.exit(1)
