"""The house: a room imports only rooms to its right (DESIGN, section 2)."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")
STANDARD_ONLY = "oci"


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINTER, "--no-cache", "--config", str(ROOT / "pyproject.toml")], cwd=folder, capture_output=True, text=True
    )


def test_the_contract_is_kept() -> None:
    """import-linter, with the contract in pyproject.toml."""
    result = run(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Contracts: 1 kept, 0 broken." in result.stdout


def test_the_contract_names_every_room() -> None:
    """A room that is not in the contract would be free to import anything."""
    import tomllib

    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = document["tool"]["importlinter"]["contracts"]
    named = {room.strip().removeprefix("proxy.") for layer in contract["layers"] for room in layer.split("|")}
    rooms = {path.stem for path in (ROOT / "proxy").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert named == rooms - {"__pycache__", "__init__", "__main__"}


def test_the_vocabulary_stands_on_the_standard_library_alone() -> None:
    """`oci` could be taken out and used elsewhere."""
    for file in sorted((ROOT / "proxy" / STANDARD_ONLY).glob("*.py")):
        for module in imported(file):
            assert module in sys.stdlib_module_names or module.startswith("proxy.oci"), f"{file}: {module}"


def test_policy_and_vocabulary_have_no_clock_and_no_network() -> None:
    """They decide; `now` is passed in (DESIGN, section 2)."""
    for file in sorted([*(ROOT / "proxy" / "oci").glob("*.py"), *(ROOT / "proxy" / "policy").glob("*.py")]):
        found = set(imported(file)) & {"time", "socket", "asyncio", "random", "os", "aiohttp", "pathlib", "threading"}
        assert not found, f"{file}: {found}"


def imported(file: Path) -> list[str]:
    """What `file` imports: proxy's modules whole, others by their first part."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return [name if name.startswith("proxy") else name.partition(".")[0] for name in names]
