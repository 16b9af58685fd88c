"""`pullthrough hold`: serve one digest for a tag until it is released."""

import sys
from pathlib import Path
from typing import Any

import click

from proxy.cli.admin_client import AdminClient, admin_options, run


@click.command()
@click.argument("reference")
@admin_options
def hold(reference: str, admin: str, token_file: Path | None) -> None:
    """Serve the digest of REFERENCE (registry/repository:tag@sha256:…) for its tag, whatever the upstream moves it to.

    Without a digest the tag, or each tag that fits a pattern, is held at what it is now. Holding an earlier digest is
    rolling back; `pullthrough tags REFERENCE` lists what a tag had.

    What the upstream deletes is not found here either, unless it is configured to be served on (serve_deleted).
    """

    async def ask() -> Any:
        async with AdminClient(admin, token_file) as client:
            return await client.tags("POST", "tags/hold", body={"reference": reference})

    found: list[dict[str, Any]] = run(ask)
    for tag in found:
        click.echo(f"{tag['reference']} is held at {tag['digest']}")
    if not found:
        click.echo("no such tags, or all of them are held already", err=True)
        sys.exit(1)
