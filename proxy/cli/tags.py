"""`pullthrough tags`: what is sticky, since when, until when, who was given it, and where the upstream has moved on."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from proxy.cli.admin_client import AdminClient, admin_options, run

_SHORT = len("sha256:") + 12
_MOST_NODES = 20


@click.command()
@click.argument("reference", required=False)
@click.option("--drifted", is_flag=True, help="Only tags that are other ones upstream, with who was given them.")
@click.option("--held", is_flag=True, help="Only tags that are held.")
@click.option("--unchecked", is_flag=True, help="Only tags that the proxy cannot check by itself.")
@click.option("--registry", help="Only of this registry.")
@click.option("--repository", help="Only of repositories that fit this pattern, such as 'library/*'.")
@click.option("--cluster", help="Only what this cluster was given, with the times that hold for it.")
@click.option("--all-nodes", is_flag=True, help=f"List every node, not the last {_MOST_NODES}.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@admin_options
def tags(
    reference: str | None,
    as_json: bool,
    all_nodes: bool,
    admin: str,
    token_file: Path | None,
    **filters: str | bool | None,
) -> None:
    """List sticky tags: all, those that fit REFERENCE as a pattern, or everything about one.

    \b
    pullthrough tags --drifted              which nodes got an old image, since when, until when, what to do
    pullthrough tags 'docker.io/library/*'
    pullthrough tags docker.io/library/nginx:latest
    """
    query = {name: str(value).lower() if value is True else str(value) for name, value in filters.items() if value}
    if reference is not None:
        query["reference"] = reference
    detailed = bool(filters["drifted"]) or (reference is not None and not set("*?[") & set(reference))
    if detailed or as_json:
        query["nodes"] = "true"

    async def ask() -> list[dict[str, Any]]:
        async with AdminClient(admin, token_file) as client:
            return await client.all_tags(query)

    found: list[dict[str, Any]] = run(ask)
    if as_json:
        click.echo(json.dumps({"tags": found}, indent=2))
    elif not found:
        click.echo("no such tags", err=True)
    elif detailed:
        click.echo("\n\n".join("\n".join(_in_detail(tag, None if all_nodes else _MOST_NODES)) for tag in found))
    else:
        _print_table(found)


def _print_table(found: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("REFERENCE", "STATE", "DIGEST", "CHECKED", "UNTIL", "PULLS", "CLUSTERS", "UPSTREAM"):
        table.add_column(title, overflow="fold", no_wrap=title in {"STATE", "DIGEST", "PULLS"})
    for tag in found:
        table.add_row(
            tag["reference"], tag["state"], _short(tag["digest"]), _ago(tag["checked"]), _until(tag),
            str(tag["pulls"]), ", ".join(tag["clusters"]), _upstream(tag),
        )  # fmt: skip
    # Where nobody looks at it, whatever reads it gets whole lines.
    console = Console(markup=False, highlight=False)
    console = console if console.is_terminal else Console(markup=False, highlight=False, width=400)
    console.print(table)


def _in_detail(tag: dict[str, Any], most_nodes: int | None) -> Iterator[str]:
    yield tag["reference"] + ("  DRIFTED" if tag["drifted"] else "")
    yield f"  serves    {tag['digest'] or 'nothing'} ({tag['state']})"
    if tag["checked"] is not None:
        yield f"  since     {tag['fetched']}, last checked {_ago(tag['checked'])}"
        yield f"  until     {_until(tag)}{_until_elsewhere(tag)}"
    yield f"  upstream  {(not tag['gone'] and tag['upstream_digest']) or _upstream(tag)}"
    if tag["held"] is not None:
        yield f"  held      since {tag['held']['since']} by {tag['held']['by']}"
    for one in tag["history"]:
        clusters = ", ".join(f"{name} {count}" for name, count in one["clusters"].items()) or "nobody"
        yield f"  {one['first_seen']} to {one['last_seen']}  {one['digest']}"
        yield f"    {one['pulls']} pulls: {clusters}"
        nodes = one["nodes"][:most_nodes]
        for node in nodes:
            yield f"    {node['address']} ({node['cluster']}) {node['pulls']} pulls, last {node['last']}"
        if (more := len(one["nodes"]) - len(nodes)) or one["other_pulls"]:
            yield f"    and {more} more nodes, {one['other_pulls']} pulls of others (--all-nodes)"
    if tag["held"] is not None:
        yield f"  to let it go by the upstream again: pullthrough release {tag['reference']}"
    elif tag["drifted"]:
        yield f"  to serve the new one now: pullthrough refresh {tag['reference']}"
        yield f"  to stay with the old one: pullthrough hold {tag['reference']}@{tag['digest']}"


def _short(digest: str | None) -> str:
    return digest[:_SHORT] if digest else "-"


def _upstream(tag: dict[str, Any]) -> str:
    if tag["gone"] is not None:
        return f"deleted, as it said {_ago(tag['gone'])}"
    if tag["drifted"]:
        return _short(tag["upstream_digest"])
    if tag["unchecked"] is not None:
        return f"unchecked: {tag['unchecked']}"
    return "the same when last checked" if tag["checked"] is not None else "-"


def _until(tag: dict[str, Any]) -> str:
    if tag["held"] is not None:
        return "released"
    if tag["expires"] is None:
        return "-"
    return str(tag["expires"]) if tag["state"] == "fresh" else "the next request"


def _until_elsewhere(tag: dict[str, Any]) -> str:
    """Where the nodes of a cluster have it for another time, because it has a TTL of its own."""
    if tag["held"] is not None:
        return ""
    now = datetime.now(UTC)
    others = {name: until for name, until in tag["expires_in"].items() if until != tag["expires"]}
    return "".join(
        f"; {name}: {until if datetime.fromisoformat(until) > now else 'the next request'}"
        for name, until in others.items()
    )


def _ago(time: str | None) -> str:
    if time is None:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{seconds}s ago"
