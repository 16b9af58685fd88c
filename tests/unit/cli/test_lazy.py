"""Commands are imported when they are asked for: a proxy starts soon, and whoever mistypes is told."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result

from proxy.cli import _COMMANDS, main

SHOWN = (
    "ca", "check-config", "hold", "hosts-toml", "pin", "purge", "refresh", "release", "serve", "tags", "warm",
)  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def imported(statement: str) -> set[str]:
    """The outermost packages that are there after it, in a process of its own."""
    program = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    )


def test_the_help_names_every_command() -> None:
    """In order, each with what it is for; not the one that is the supervisor's alone."""
    lines = run("--help").output.partition("Commands:\n")[2].splitlines()
    shown = [line.split(maxsplit=1) for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert [name for name, _ in shown] == list(SHOWN)
    assert all(text[0].isupper() for _, text in shown)
    assert {name.replace("_", "-") for name in _COMMANDS} - set(SHOWN) == {"worker"}


def test_importing_the_command_imports_nothing_large() -> None:
    """Neither the server's nor any other command's libraries."""
    found = imported("import proxy.cli")
    assert "click" in found
    assert (
        found & {"rich", "ruamel", "aiohttp", "pydantic", "yaml", "diskcache", "prometheus_client", "asyncio"} == set()
    )


def test_serving_imports_no_other_commands_libraries() -> None:
    """Tables and texts are for those who look at them."""
    found = imported("from proxy.cli import main; main.get_command(None, 'serve')")
    assert "aiohttp" in found
    assert found & {"rich", "ruamel"} == set()


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help_of_its_own(name: str) -> None:
    """The hidden one as well."""
    shown = name.replace("_", "-")
    command = main.get_command(click.Context(main), shown)
    assert command is not None
    assert command.name == shown
    result = run(shown, "--help")
    assert (result.exit_code, result.output.startswith(f"Usage: main {shown}")) == (0, True)


@pytest.mark.parametrize(
    "name", ["check_config", "hosts_toml", "nothing", "admin_client", "", "-", "__init__", "SERVE"]
)
def test_what_is_no_command(name: str) -> None:
    """Is a usage error, also where there is a module of that name."""
    result = run(name)
    assert result.exit_code == 2
    assert f"No such command '{name}'" in result.output
