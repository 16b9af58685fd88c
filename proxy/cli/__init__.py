"""The command `pullthrough`: one file a command."""

import click

from proxy import __version__
from proxy.cli.check_config import check_config
from proxy.cli.hosts_toml import hosts_toml
from proxy.cli.pin import pin
from proxy.cli.serve import serve
from proxy.cli.worker import worker


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pullthrough")
def main() -> None:
    """A caching pull-through proxy for OCI registries."""


main.add_command(serve)
main.add_command(check_config)
main.add_command(hosts_toml)
main.add_command(pin)
main.add_command(worker)
