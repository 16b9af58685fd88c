"""How commands read the configuration file: all mistakes on standard error, then exit 2."""

import sys
from pathlib import Path

import click

from proxy.settings import ConfigurationError, Settings, load_settings

CONFIG_OPTION = click.option(
    "--config", "config", required=True, type=click.Path(path_type=Path), help="The configuration file (YAML)."
)


def settings_or_exit(file: Path) -> Settings:
    """The settings in `file`; ends the program with status 2 and every mistake where it has some."""
    try:
        return load_settings(file)
    except ConfigurationError as error:
        count = len(error.mistakes)
        click.echo(f"{file}: {count} mistake{'s' if count != 1 else ''}", err=True)
        for mistake in error.mistakes:
            click.echo(f"  {mistake}", err=True)
        sys.exit(2)
