"""`pullthrough serve`: run the proxy."""

import asyncio
import contextlib
import logging
import resource
import sys
from pathlib import Path

import click

from proxy import app, processes
from proxy.cli.config import CONFIG_OPTION, settings_or_exit
from proxy.cli.warnings import configuration_warnings
from proxy.server.listener import ListenError
from proxy.settings import Address, Settings, load_settings, parse_address
from proxy.sharing import StartError
from proxy.storage.base import StorageError
from proxy.telemetry.logs import setup_logging


def _listen_option(_context: click.Context, _option: click.Parameter, value: str | None) -> Address | None:
    try:
        return parse_address(value) if value is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@CONFIG_OPTION
@click.option("--listen", callback=_listen_option, help="Listen here instead of where the file says.")
def serve(config: Path, listen: Address | None) -> None:
    """Run the proxy until SIGTERM; SIGHUP reads the file again."""
    settings = _listening_on(settings_or_exit(config), listen)
    setup_logging(settings.log.level, settings.log.format, settings.log.access)
    log = logging.getLogger("pullthrough")
    _raise_open_file_limit()
    _warn(settings)

    def reread() -> Settings:
        again = _listening_on(load_settings(config), listen)
        _warn(again)
        return again

    # asyncio's own loop, not uvloop, which has no sendfile. Measured with 1 GB blobs: reading in a thread and writing
    # cost uvloop 1.4 to 2.0 times the processor time and 14 to 45 % of the throughput of asyncio with sendfile; for
    # small manifests it gave 20 to 32 % more requests a second. Blobs are what clients wait for, and manifests scale
    # with workers.
    try:
        if processes.worker_count(settings) == 1:
            asyncio.run(app.serve(settings, reread))
        else:
            asyncio.run(processes.supervise(settings, reread))
    except (StorageError, ListenError, StartError) as error:
        log.error("%s", error)
        sys.exit(1)


def _warn(settings: Settings) -> None:
    for warning in configuration_warnings(settings):
        logging.getLogger("pullthrough").warning("%s", warning)


def _listening_on(settings: Settings, address: Address | None) -> Settings:
    """The settings with `--listen` in the place of the file's addresses, where it was given."""
    if address is None:
        return settings
    return settings.model_copy(update={"listen": (settings.listen[0].model_copy(update={"address": address}),)})


def _raise_open_file_limit() -> None:
    """Take what the system would give anyway: the soft limit is often 1,024, and the hard one far above."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
