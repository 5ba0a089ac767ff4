"""
Owns the tests of what all commands share: help, exit codes, what is imported.

Knows nothing of answers.
Invariants: every command of the group is covered, later ones too.
Source: house-style.md (errors); design.md §8.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

import p2pcache as package
from p2pcache.cli.command import EXIT_CODES, Command
from p2pcache.cli.group import p2pcache
from p2pcache.errors import P2PCacheError

COMMANDS = sorted(p2pcache.commands)


def iter_error_classes(base: type[P2PCacheError]) -> Iterator[type[P2PCacheError]]:
    """Walk the tree of errors."""
    yield base
    for cls in base.__subclasses__():
        yield from iter_error_classes(cls)


def test_group_has_commands_of_this_release() -> None:
    """What is not built is not offered."""
    names = [
        "check", "env", "exec", "export", "gc", "import", "import-bundle", "jobs", "ls", "peers",
        "pin", "pull", "rm", "status", "storage", "unpin", "up", "versions", "wait",
    ]  # fmt: skip
    assert names == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_has_example_and_exit_codes(name: str) -> None:
    """Whoever reads --help can copy a line and script the outcome."""
    result = CliRunner().invoke(p2pcache, [name, "--help"], prog_name="p2pcache")
    assert result.exit_code == 0
    _, _, example = result.output.partition("\nExample:\n")
    assert example.lstrip().startswith(("p2pcache " + name, 'eval "$(p2pcache ' + name))
    _, _, codes = result.output.partition("\nExit codes:\n")
    command = p2pcache.commands[name]
    assert isinstance(command, Command)
    assert [line.split()[0] for line in codes.splitlines() if line[2:3] != " "] == [
        str(code) for code in command.exit_codes
    ]
    assert "--json" in result.output


def test_group_help_lists_commands_in_order() -> None:
    """The order in which people meet them, not the alphabet's."""
    result = CliRunner().invoke(p2pcache, ["--help"], prog_name="p2pcache")
    _, _, listing = result.output.partition("Commands:\n")
    assert [line.split()[0] for line in listing.splitlines()[:19]] == [
        "up", "pull", "pin", "unpin", "wait", "exec", "jobs", "ls", "versions", "status", "peers",
        "storage", "gc", "rm", "check", "import", "export", "import-bundle", "env",
    ]  # fmt: skip


def test_exit_codes_cover_all_errors() -> None:
    """Every class of error ends in a code that --help explains."""
    assert {cls.exit_code for cls in iter_error_classes(P2PCacheError)} <= set(EXIT_CODES)


@pytest.mark.parametrize("arguments", [["pull"], ["ls", "--nonsense"], ["nonsense"]])
def test_command_used_wrongly_exits_2(arguments: list[str]) -> None:
    """Click's own usage errors share the code of a caller's mistake."""
    assert CliRunner().invoke(p2pcache, arguments).exit_code == 2


def test_group_version_is_that_of_package() -> None:
    """One source for the version."""
    result = CliRunner().invoke(p2pcache, ["--version"])
    assert result.output == f"p2pcache {package.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["up", "--help"], ["ls"]])
def test_command_line_start_imports_nothing_heavy(arguments: list[str]) -> None:
    """A command that asks the daemon starts without the daemon's libraries."""
    script = (
        "import sys\n"
        "from p2pcache.__main__ import main\n"
        f"sys.argv = ['p2pcache', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'aiohttp', 'zeroconf', 'asyncio', 'tqdm', 'sqlite3', 'blake3'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "HEAVY []"
