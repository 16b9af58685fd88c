"""The command `pullthrough`: one file a command, imported when it is asked for, since a proxy is to start soon."""

from importlib import import_module

import click

from proxy import __version__

# By the names of their modules.
_COMMANDS = (
    "serve", "check_config", "hosts_toml", "tags", "refresh", "purge", "hold", "release", "pin", "worker", "warm",
    "ca",
)  # fmt: skip


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(name.replace("_", "-") for name in _COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("-", "_")
        if name not in _COMMANDS or "_" in cmd_name:
            return None
        command = getattr(import_module(f"{__name__}.{name}"), name)
        assert isinstance(command, click.Command)  # noqa: S101 - each of them has one of its name
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pullthrough")
def main() -> None:
    """A caching pull-through proxy for OCI registries."""
