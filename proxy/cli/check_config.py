"""`pullthrough check-config`: is this file good?"""

from pathlib import Path

import click

from proxy.cli.config import settings_or_exit
from proxy.cli.warnings import configuration_warnings


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config(file: Path) -> None:
    """Check FILE: exit 0 when it can be used, 2 with every mistake at once."""
    settings = settings_or_exit(file)
    for warning in configuration_warnings(settings):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{file}: good ({len(settings.upstreams)} upstreams, {len(settings.clusters)} clusters)")
