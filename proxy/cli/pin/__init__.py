"""`pullthrough pin`: image tags in Kubernetes YAML and compose files become digests; nothing else in them changes.

The parser of YAML is loaded by whoever pins, so that `serve` goes without it.
"""

import os
import sys
from pathlib import Path

import click

from proxy.settings import check_url

__all__ = ["pin"]


def _url_option(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    try:
        return check_url(value) if value is not None else None
    except ValueError as error:
        raise click.BadParameter(f"{error}; write http://proxy:5000") from error


def _docker_config(given: Path | None) -> Path | None:
    """The file with the user's credentials, where there is one: what is given, or what Docker itself reads."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expandvars("$HOME/.docker")
    place = given or Path(folder)
    file = place / "config.json" if place.is_dir() else place
    return file if given is not None or file.is_file() else None


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Ask and write nothing; list what is not pinned, and exit with 1.")
@click.option("--diff", is_flag=True, help="Write nothing; print what would change.")
@click.option("--proxy", callback=_url_option, help="Ask through a proxy (http://proxy:5000), not the registries.")
@click.option("--plain-http", multiple=True, metavar="REGISTRY", help="A registry without TLS; loopback has none.")
@click.option("--token-realm", multiple=True, metavar="HOST", help="May issue tokens of registries on other hosts.")
@click.option(
    "--docker-config",
    type=click.Path(exists=True, path_type=Path),
    help="The config.json with credentials for registries.  [default: $DOCKER_CONFIG, ~/.docker]",
)
def pin(
    files: tuple[Path, ...],
    check: bool,
    diff: bool,
    proxy: str | None,
    plain_http: tuple[str, ...],
    token_realm: tuple[str, ...],
    docker_config: Path | None,
) -> None:
    """Pin the images in FILES, directories (*.yaml, *.yml) or - (standard input to output) to their digests.

    Exit 0: all images are pinned. 1: some are not, or could not be. 2: a file cannot be read, nothing was done.
    """
    from proxy.cli.pin.digests import Ways
    from proxy.cli.pin.pinning import pin_all, read_all, unpinned

    if check and diff:
        raise click.UsageError("--check asks for no digests, so it has no --diff")
    works = read_all(files, _say)
    if works is None:
        sys.exit(2)
    if check:
        lines = unpinned(works)
        for line in lines:
            click.echo(line)
        sys.exit(1 if lines else 0)
    registries = frozenset(registry.lower() for registry in plain_http)
    ways = Ways(proxy, registries, tuple(host.lower() for host in token_realm), _docker_config(docker_config))
    sys.exit(0 if pin_all(works, ways, _show if diff else None, _say) else 1)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _show(text: str) -> None:
    click.echo(text.encode(), nl=False)
