"""Small files, short functions, words that mean something, tasks that somebody holds (STYLE, ten habits)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "proxy").rglob("*.py"))
VAGUE = {"utils", "util", "helper", "helpers", "manager", "managers", "common", "misc", "base_utils", "lib"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def functions(file: Path) -> Iterator[Function]:
    for node in ast.walk(tree(file)):
        if isinstance(node, Function):
            yield node


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_file_is_longer_than_400_lines(file: Path) -> None:
    """None over 400."""
    assert len(file.read_text().splitlines()) <= 400


def test_the_median_file_has_less_than_150_lines() -> None:
    """And the median function less than 10, docstrings counted."""
    lengths = sorted(len(file.read_text().splitlines()) for file in FILES)
    assert lengths[len(lengths) // 2] < 150
    bodies = sorted(length(function) for file in FILES for function in functions(file))
    assert bodies[len(bodies) // 2] < 10


def length(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_function_is_longer_than_50_lines(file: Path) -> None:
    """From its `def` to its last line."""
    assert [function.name for function in functions(file) if length(function) > 50] == []


@pytest.mark.parametrize("file", FILES, ids=name)
def test_modules_and_classes_are_named_for_what_they_are(file: Path) -> None:
    """No utils, no manager, no helper, no common."""
    assert file.stem not in VAGUE
    classes = [node.name for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef)]
    assert [word for word in classes if re.search(r"(Manager|Helper|Utils?)$", word)] == []


def is_task(call: ast.AST) -> bool:
    """Does this call make a task that lives only as long as somebody holds it?"""
    if not isinstance(call, ast.Call):
        return False
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return called in {"create_task", "ensure_future"}


def dropped_tasks(module: ast.Module) -> list[int]:
    """Lines where a task is made and nobody keeps it."""
    return [node.lineno for node in ast.walk(module) if isinstance(node, ast.Expr) and is_task(node.value)]


@pytest.mark.parametrize("file", FILES, ids=name)
def test_every_task_has_an_owner(file: Path) -> None:
    """The event loop holds tasks weakly: one that nobody keeps may vanish in the middle of its work."""
    assert dropped_tasks(tree(file)) == []


def test_a_dropped_task_would_be_found() -> None:
    """The check sees what it is for."""
    found = dropped_tasks(ast.parse("asyncio.create_task(f())\nloop.create_task(f())\nt = asyncio.create_task(f())"))
    assert found == [1, 2]


@pytest.mark.parametrize("file", FILES, ids=name)
def test_every_module_says_what_it_is_for(file: Path) -> None:
    """A docstring first."""
    assert ast.get_docstring(tree(file))


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("test_*.py")), ids=name)
def test_every_test_states_the_behaviour(file: Path) -> None:
    """In its docstring."""
    missing = [
        function.name
        for function in functions(file)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert missing == []
