"""`pullthrough ca`: the authority that nodes trust where a listener intercepts."""

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click

from proxy.cli.ca_trust import Node, instructions
from proxy.cli.config import settings_or_exit
from proxy.policy.intercept import server_names
from proxy.settings import Settings
from proxy.settings.bases import is_host

_USUAL_DAYS = 3650


@click.group()
def ca() -> None:
    """Make the authority that nodes trust where a listener intercepts, and say how they do."""


def _names(config: Path | None, names: Collection[str]) -> frozenset[str]:
    configured = server_names(settings_or_exit(config).upstreams) if config is not None else frozenset[str]()
    return configured | {_name(name) for name in names}


def _name(text: str) -> str:
    """A host as certificates have it: a registry's port is no part of its name there."""
    name = text.lower()
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_network(name)) if "/" in name else str(ipaddress.ip_address(name))
    try:
        parts = urlsplit(f"//{name}")
        good = is_host(parts) and parts.netloc.rpartition("@")[0] == "" and not (parts.path or parts.query)
    except ValueError:
        good = False
    if not good or "#" in name:
        raise click.BadParameter(f"{text!r} is no host: write registry.example", param_hint="--name")
    return (parts.hostname or "").rstrip(".")


_CONFIG = click.option("--config", type=click.Path(path_type=Path), help="The configuration file, for its registries.")
_CERTIFICATE = click.option(
    "--certificate",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("ca.crt"),
    show_default=True,
    help="The authority's certificate.",
)


@ca.command()
@_CERTIFICATE
@click.option(
    "--key", type=click.Path(path_type=Path, dir_okay=False), default=Path("ca.key"), show_default=True, help="Its key."
)
@_CONFIG
@click.option("--name", "names", multiple=True, help="A registry's name that it may sign for; may be given again.")
@click.option(
    "--days", type=click.IntRange(1, 36500), default=_USUAL_DAYS, show_default=True, help="How long it lives."
)
def create(certificate: Path, key: Path, config: Path | None, names: tuple[str, ...], days: int) -> None:
    """Make an authority: a certificate, and a key that only its owner can read.

    It can sign for the registries of --config, and for what --name says, and nothing else: whoever gets hold of its key
    can pass for these only. Without either it can sign for every name.
    """
    if certificate.resolve() == key.resolve():
        raise click.UsageError("the certificate and its key need a file each")
    permitted = _names(config, names)
    try:
        from proxy.server.intercept_ca import create_authority
    except ImportError as error:
        raise click.ClickException(f"this needs the extra `intercept`: {error.name} is not installed") from error
    try:
        made = create_authority(permitted, datetime.datetime.now(datetime.UTC), datetime.timedelta(days=days))
    except (ValueError, OverflowError) as error:
        raise click.ClickException(f"no authority can be made of that: {error}") from error
    try:
        with _new(key, 0o600, made.key), _new(certificate, 0o644, made.certificate):
            pass
    except FileExistsError as error:
        raise click.ClickException(f"{error.filename} is there already, and nodes may trust it: it stays") from error
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
    click.echo(f"{certificate} is for nodes to trust, {key} for the proxy alone")
    if not permitted:
        click.echo("warning: it may sign for every name; --config FILE has it sign for its registries only", err=True)


@ca.command()
@_CERTIFICATE
@_CONFIG
@click.option("--proxy", help="Where a listener with `connect: true` is: http://proxy:3128.")
@click.option("--address", help="The IP address of a listener that intercepts on port 443, for hosts files.")
def trust(certificate: Path, config: Path | None, proxy: str | None, address: str | None) -> None:
    """Say what to install where, so that nodes trust the authority and come to the proxy."""
    if not certificate.is_file():
        raise click.ClickException(f"{certificate} is not there: `pullthrough ca create` makes one")
    registries = (
        _registries(settings_or_exit(config))
        if config is not None
        else {"docker.io": ("docker.io", "registry-1.docker.io")}
    )
    click.echo(instructions(Node(str(certificate), registries, proxy, address)), nl=False)


def _registries(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Each registry's names, its own first."""
    return {name: (name, *upstream.aliases) for name, upstream in settings.upstreams.items()}


@contextlib.contextmanager
def _new(file: Path, mode: int, content: bytes) -> Iterator[None]:
    """A file that was not there before; it goes again where what is inside fails. Raises OSError."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            # Whatever the umask has taken away is not asked for.
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            file.unlink()
        raise
