"""`pullthrough purge`: forget what tags and manifests are."""

import sys
from pathlib import Path

import click

from proxy.cli.admin_client import AdminClient, admin_options, run


@click.command()
@click.argument("references", nargs=-1, required=True)
@admin_options
def purge(references: tuple[str, ...], admin: str, token_file: Path | None) -> None:
    """Forget what each of REFERENCES is: tags, patterns of tags, or manifests by digest.

    The next request for it asks the upstream.

    Blobs stay; holds and history too. Exits with 1 where a pattern fits nothing.
    """

    async def ask() -> list[str]:
        async with AdminClient(admin, token_file) as client:
            answers = [await client.tags("DELETE", "tags", {"reference": one}) for one in references]
        return [tag for answer in answers for tag in answer]

    found: list[str] = run(ask)
    for tag in found:
        click.echo(f"{tag} is forgotten")
    if not found:
        click.echo("no such tags", err=True)
        sys.exit(1)
