"""`pullthrough warm`: bring images into the cache before anybody asks for them."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from proxy.cli.admin_client import AdminClient, admin_options, run
from proxy.cli.warm_progress import NOT_ENDED, ended_line, size, watched
from proxy.settings.units import parse_size

_INTERRUPTED = 130


def _size_option(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    try:
        return parse_size(value) if value is not None else None
    except ValueError as error:
        raise click.BadParameter(f"{error}, in bytes a second") from error


@click.command()
@click.argument("references", nargs=-1)
@click.option(
    "--from", "files", multiple=True, type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="Also the images in a list, one a line, or in Kubernetes YAML or a compose file; - is standard input.",
)  # fmt: skip
@click.option(
    "--platform", "platforms", multiple=True, help="linux/arm64 and the like, or all [linux/amd64 and arm64]."
)
@click.option("--cluster", help="Ask with the rights of this cluster [the first one whose blobs are kept].")
@click.option("--bandwidth", callback=_size_option, help="No more a second, all in all, such as 50MiB.")
@click.option("--concurrency", type=click.IntRange(1, 32), default=4, show_default=True, help="Blobs at a time.")
@click.option("--job", "named", help="Watch a job that was begun before.")
@click.option("--stop", is_flag=True, help="Stop the job that --job names.")
@click.option("--detach", is_flag=True, help="Begin it, and do not wait.")
@click.option("--json", "as_json", is_flag=True, help="Print the job as JSON, when it has ended.")
@admin_options
def warm(
    references: tuple[str, ...], files: tuple[Path, ...], named: str | None, stop: bool, detach: bool, as_json: bool,
    admin: str, token_file: Path | None, platforms: tuple[str, ...], cluster: str | None, bandwidth: int | None,
    concurrency: int,
) -> None:  # fmt: skip
    """Bring REFERENCES, each with its manifests and blobs, into the cache of a running server.

    Exits with 0 when all of them are there, with 1 when one of them failed. Ctrl-C leaves the job to the server.

    \b
    pullthrough warm docker.io/library/nginx:1.27 ghcr.io/team/model@sha256:...
    pullthrough warm --from deploy.yaml --bandwidth 50MiB
    """
    wanted = [*references, *(one for file in files for one in _references_in(file))]
    if bool(wanted) == (named is not None):
        raise click.UsageError("give references, or files with --from, or a job with --job")
    if stop and named is None:
        raise click.UsageError("--stop goes with --job")
    body = {"references": list(dict.fromkeys(wanted)), "platforms": list(platforms), "concurrency": concurrency}
    body |= {"cluster": cluster} if cluster is not None else {}
    body |= {"bandwidth": bandwidth} if bandwidth is not None else {}
    begun = [named] if named is not None else []

    async def ask() -> dict[str, Any]:
        async with AdminClient(admin, token_file) as client:
            if not begun:
                job = await client.call("POST", "warm", body=body)
                begun.append(job["id"])
                if detach:
                    return dict(job)
            path = f"warm/{begun[0]}"
            if stop:
                return dict(await client.call("DELETE", path))
            return await watched(client, path, as_json) if not detach else dict(await client.call("GET", path))

    try:
        job: dict[str, Any] = run(ask)
    except KeyboardInterrupt:
        if begun:
            click.echo(f"\nthe server goes on with it: pullthrough warm --job {begun[0]}", err=True)
        sys.exit(_INTERRUPTED)
    _tell(job, as_json)


def _references_in(file: Path) -> list[str]:
    """The images in a file. Ends the program with 2 where it cannot be read."""
    # The parser of YAML is loaded by whoever has a file.
    from proxy.cli.pin.documents import Unreadable
    from proxy.cli.pin.images import references_in

    try:
        with click.open_file(str(file), encoding="utf-8-sig") as opened:
            found = references_in(opened.read())
    except Unreadable as error:
        click.echo(f"{file}:{error.line}: {error}", err=True)
        sys.exit(2)
    except (OSError, ValueError) as error:
        click.echo(f"{file}: {getattr(error, 'strerror', None) or error}", err=True)
        sys.exit(2)
    if not found:
        click.echo(f"{file}: no images", err=True)
    return found


def _tell(job: dict[str, Any], as_json: bool) -> None:
    ended = job["state"] not in NOT_ENDED
    if as_json:
        click.echo(json.dumps(job, indent=2))
    elif ended:
        if job["note"] is not None:
            click.echo(job["note"], err=True)
        click.echo(ended_line(job))
    else:
        count = len(job["references"])
        click.echo(f"job {job['id']}: {count} image{'s' if count != 1 else ''}, {size(job['bytes']['done'])} so far")
        click.echo(f"to watch it: pullthrough warm --job {job['id']}", err=True)
    if ended and job["state"] != "done":
        sys.exit(1)
