"""`pullthrough hosts-toml`: what to put on nodes so that they use the proxy.

containerd gets a certs.d tree: `<out>/<registry>/hosts.toml`. It tries the proxy first with a short `dial_timeout`
(the default of 30 s would be paid by every request while the proxy is down), and then `server`, the registry itself;
with --no-fallback the proxy is the `server` too, so that an outage does not send every node to the upstream.
containerd takes nothing from one of its hosts for another, so what TLS needs then stands in the file twice.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from proxy.cli.config import CONFIG_OPTION, settings_or_exit
from proxy.settings import Settings, check_url

_DIAL_TIMEOUT = "1s"


@dataclass(frozen=True, slots=True)
class NodeTLS:
    """Files on nodes, by their paths there: the authority of the proxy's certificate, and a client's own pair."""

    ca: str | None = None
    client: tuple[str, str] | None = None


def _url_option(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        url = check_url(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}; write http://proxy:5000") from error
    if urlsplit(url).path:
        raise click.BadParameter("write http://proxy:5000, without a path")
    return url


@click.command("hosts-toml")
@CONFIG_OPTION
@click.option("--url", required=True, callback=_url_option, help="How nodes reach the proxy: http://proxy:5000.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to write.")
@click.option("--no-fallback", is_flag=True, help="Never let nodes go to the registries themselves.")
@click.option("--ca", help="Where nodes have the authority of an https proxy's certificate: /etc/pullthrough/ca.crt.")
@click.option("--client", nargs=2, metavar="CERTIFICATE KEY", help="Where nodes have a client certificate and its key.")
def hosts_toml(
    config: Path, url: str, out: Path, no_fallback: bool, ca: str | None, client: tuple[str, str] | None
) -> None:
    """Write containerd's certs.d tree, and snippets for Docker and podman."""
    settings, tls = settings_or_exit(config), NodeTLS(ca, client)
    if tls != NodeTLS() and not url.startswith("https://"):
        raise click.UsageError("--ca and --client go with an https:// URL")
    files = node_files(settings, url, no_fallback, tls)
    try:
        for name, text in files.items():
            file = out / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            click.echo(file)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
    for line in _certificate_folders(url, tls):
        click.echo(line, err=True)


def node_files(settings: Settings, url: str, no_fallback: bool, tls: NodeTLS) -> dict[str, str]:
    """Every file by its path below the folder: for containerd one a registry, for Docker and podman one each."""
    files = {
        f"{registry}/hosts.toml": hosts_file(registry, upstream.url, url, no_fallback, tls)
        for registry, upstream in settings.upstreams.items()
    }
    files["docker/daemon.json"] = _docker(url)
    files["podman/registries.conf"] = _podman(settings, url)
    return files


def hosts_file(registry: str, upstream_url: str, url: str, no_fallback: bool, tls: NodeTLS) -> str:
    """containerd's hosts.toml for `registry`."""
    server = url if no_fallback else upstream_url
    after = "no other host is tried" if no_fallback else "the registry itself is tried when the proxy cannot be reached"
    files = [f"ca = {json.dumps(tls.ca)}\n"] if tls.ca is not None else []
    files += [f"client = [{json.dumps(tls.client)}]\n"] if tls.client is not None else []
    return "".join(
        (
            f"# {registry} through pullthrough; {after}.\n",
            f'server = "{server}"\n',
            *(files if no_fallback else ()),
            "\n",
            f'[host."{url}"]\n',
            '  capabilities = ["pull", "resolve"]\n',
            f'  dial_timeout = "{_DIAL_TIMEOUT}"\n',
            *(f"  {line}" for line in files),
        )
    )


def _certificate_folders(url: str, tls: NodeTLS) -> list[str]:
    """Docker and podman find certificates by their names in a folder for the proxy, not by a setting."""
    files = [f"{tls.ca} as ca.crt"] if tls.ca is not None else []
    files += [f"{tls.client[0]} as client.cert", f"{tls.client[1]} as client.key"] if tls.client is not None else []
    return [
        f"{name}: put {', '.join(files)} into {folder}/certs.d/{urlsplit(url).netloc} on each node"
        for name, folder in (("Docker", "/etc/docker"), ("podman", "/etc/containers"))
        if files
    ]


def _docker(url: str) -> str:
    settings: dict[str, list[str]] = {"registry-mirrors": [url]}
    if url.startswith("http://"):
        settings["insecure-registries"] = [urlsplit(url).netloc]
    return json.dumps(settings, indent=2) + "\n"


def _podman(settings: Settings, url: str) -> str:
    place, insecure = urlsplit(url).netloc, "true" if url.startswith("http://") else "false"
    blocks = []
    for registry, upstream in settings.upstreams.items():
        # A path cannot hold a port's colon, so a registry with a port is named by an alias without one.
        names = [name for name in (registry, *upstream.aliases) if ":" not in name]
        if names:
            blocks.append(
                "[[registry]]\n"
                f'prefix = "{registry}"\n'
                f'location = "{registry}"\n'
                "[[registry.mirror]]\n"
                f'location = "{place}/{names[0]}"\n'
                f"insecure = {insecure}\n"
            )
    return "\n".join(blocks)
