"""`pullthrough check-config`: is this file good?"""

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from proxy.cli.config import settings_or_exit
from proxy.cli.warnings import configuration_warnings
from proxy.server.tls import TLSError, check_files
from proxy.settings import InterceptSettings, Settings


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config(file: Path) -> None:
    """Check FILE: exit 0 when it can be used, 2 with every mistake at once."""
    settings = settings_or_exit(file)
    if mistakes := list(_certificates(settings)):
        for mistake in mistakes:
            click.echo(f"{file}: {mistake}", err=True)
        sys.exit(2)
    for warning in configuration_warnings(settings):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{file}: good ({len(settings.upstreams)} upstreams, {len(settings.clusters)} clusters)")


def _certificates(settings: Settings) -> Iterator[str]:
    """What is wrong with the files of listeners; those that are not here may be where the proxy is to run."""
    for position, listen in enumerate(settings.listen):
        if listen.tls is not None:
            try:
                check_files(listen.tls)
            except TLSError as error:
                yield f"listen[{position}].tls: {error}"
            except OSError as error:
                click.echo(f"warning: listen[{position}].tls: {error.filename}: {error.strerror}", err=True)
        if listen.intercept is not None:
            yield from _authority(f"listen[{position}].intercept", listen.intercept)


def _authority(where: str, intercept: InterceptSettings) -> Iterator[str]:
    for file in (intercept.ca_certificate, intercept.ca_key):
        try:
            file.read_bytes()
        except OSError as error:
            click.echo(f"warning: {where}: {file}: {error.strerror}", err=True)
            return
    try:
        from proxy.server.intercept_ca import read_authority

        read_authority(intercept.ca_certificate, intercept.ca_key, datetime.datetime.now(datetime.UTC))
    except ImportError as error:
        click.echo(f"warning: {where} needs the extra `intercept`: {error.name} is not installed", err=True)
    except TLSError as error:
        yield f"{where}: {error}"
