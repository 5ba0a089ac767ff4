"""
Owns the house rules that no linter knows.

Knows nothing of behaviour.
Invariants: every rule is checked on every module of the package.
Source: docs/explanation/architecture.md; the project's house style.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "p2pcache"
LINES_MAX = 600
LINES_TO_LOOK_TWICE = 400
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
WITH_DOCSTRING = [m for m in MODULES if not m.endswith(("/__init__.py", "/__main__.py"))]
BANNED_WORDS = {"utils", "util", "helpers", "helper", "misc", "manager"}


@cache
def parse(module: str) -> ast.Module:
    """Parse a module of the package."""
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def words_of(name: str) -> set[str]:
    """Split snake_case and CamelCase into lower-case words."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return {word.lower() for word in re.split(r"[^A-Za-z0-9]+|_", spaced) if word}


def calls_in(module: str) -> list[str]:
    """List the names of everything that a module calls: `f` of `f()` and of `x.f()`."""
    functions = [node.func for node in ast.walk(parse(module)) if isinstance(node, ast.Call)]
    return [f.id for f in functions if isinstance(f, ast.Name)] + [
        f.attr for f in functions if isinstance(f, ast.Attribute)
    ]


def imports_of(module: str) -> set[str]:
    """List the modules that a module imports, by their full names."""
    found: set[str] = set()
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_package_modules_are_found() -> None:
    """The rules below look at something."""
    assert "p2pcache/core/verify.py" in MODULES
    assert len(MODULES) > 40


def test_verified_chunk_is_made_by_core_verify_only() -> None:
    """Unverified bytes have another type: nobody else constructs or copies a VerifiedChunk."""
    makers = [module for module in MODULES if "VerifiedChunk" in calls_in(module)]
    assert makers == ["p2pcache/core/verify.py"]
    copiers = [
        module
        for module in MODULES
        if "VerifiedChunk" in (ROOT / module).read_text()
        and "dataclasses.replace" in imports_of(module)
    ]
    assert copiers == []


@pytest.mark.parametrize("module", MODULES)
def test_module_length_is_within_the_limit(module: str) -> None:
    """Look twice at 400 lines, split at 600."""
    count = len((ROOT / module).read_text().splitlines())
    assert count <= LINES_MAX
    if count >= LINES_TO_LOOK_TWICE:
        print(f"look twice: {module} has {count} lines")


@pytest.mark.parametrize("module", WITH_DOCSTRING)
def test_module_docstring_has_the_four_lines(module: str) -> None:
    """What it owns, what it knows nothing of, what always holds, where that comes from."""
    docstring = ast.get_docstring(parse(module)) or ""
    missing = [
        word
        for word in ("Owns", "Knows nothing", "Invariants:", "Source:")
        if word not in docstring
    ]
    assert missing == []
    assert docstring.startswith("Owns ")


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("p2pcache/cli/")])
def test_module_outside_the_command_line_prints_nothing(module: str) -> None:
    """A daemon logs; only the command line prints."""
    assert "print" not in calls_in(module)


@pytest.mark.parametrize("module", MODULES)
def test_module_unpickles_nothing(module: str) -> None:
    """Formats that run code when they are read are not used, whoever wrote the file."""
    banned = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
    assert not {name.partition(".")[0] for name in imports_of(module)} & banned
    assert "eval" not in calls_in(module)
    assert "exec" not in calls_in(module)


@pytest.mark.parametrize("module", MODULES)
def test_module_names_are_the_vocabularys(module: str) -> None:
    """Modules, classes and functions are named for what they are, not `utils` or `Manager`."""
    names = [Path(module).stem] + [
        node.name
        for node in ast.walk(parse(module))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [name for name in names if words_of(name) & BANNED_WORDS] == []
