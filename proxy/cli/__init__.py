"""The command `pullthrough`: one file a command."""

import click

from proxy import __version__
from proxy.cli.check_config import check_config
from proxy.cli.hold import hold
from proxy.cli.hosts_toml import hosts_toml
from proxy.cli.pin import pin
from proxy.cli.purge import purge
from proxy.cli.refresh import refresh
from proxy.cli.release import release
from proxy.cli.serve import serve
from proxy.cli.tags import tags
from proxy.cli.warm import warm
from proxy.cli.worker import worker


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pullthrough")
def main() -> None:
    """A caching pull-through proxy for OCI registries."""


for command in (serve, check_config, hosts_toml, tags, refresh, purge, hold, release, pin, worker, warm):
    main.add_command(command)
