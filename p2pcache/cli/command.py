"""
Owns what all commands share: exit codes, how an error is shown, the form of --help, the options
that find the daemon.

Knows nothing of any one command.
Invariants: an error of ours never shows a traceback; with --json standard output has exactly one
JSON value per line and the last one is the result, or {"error", "message"}; the sentence goes to
standard error in any case.
Source: the table of errors in docs/reference/errors.md; design.md §8.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from p2pcache.cli.output import echo_json, show_text
from p2pcache.errors import P2PCacheError

Function = TypeVar("Function", bound=Callable[..., Any])

# 128 + SIGINT, as shells report a program that Ctrl-C ended.
INTERRUPTED_EXIT_CODE = 130

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "another failure; the sentence on standard error says which",
    2: "asked wrongly: a malformed reference or option, or not allowed",
    3: "a setting that cannot work",
    10: "not found: repository, revision, file, download; or nobody has the bytes",
    11: "bytes that are not what their digest says",
    12: "a peer or the hub did not do its part, or wants another token",
    13: "this machine's disk or index",
    14: "no daemon answers",
    124: "the time to wait is over; what was waited for goes on",
    126: "the command to run cannot be run",
    127: "the command to run is not there",
    INTERRUPTED_EXIT_CODE: "interrupted with Ctrl-C",
}
# What commands end with that bring a model here, or wait for it, and run nothing.
PULL_EXIT_CODES = (0, 1, 2, 3, 10, 11, 12, 13, 14, 130)
WAIT_EXIT_CODES = (0, 1, 2, 3, 10, 11, 12, 13, 14, 124, 130)
# What a command that only asks the daemon can end with.
CLIENT_EXIT_CODES = (0, 1, 2, 3, 10, 12, 13, 14, 130)


class InterruptedCommand(Exception):  # noqa: N818 - not a failure: the person wanted it
    """Ctrl-C, with a sentence about what became of the work."""


class Command(click.Command):
    """A command with an example, a table of its exit codes, and errors told in one sentence."""

    def __init__(
        self, *args: Any, examples: str = "", exit_codes: tuple[int, ...] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.exit_codes = exit_codes

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the Example block and the exit codes."""
        with formatter.section("Example"):
            for line in self.examples.strip().splitlines():
                formatter.write(" " * formatter.current_indent + line.strip() + "\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), EXIT_CODES[code]) for code in self.exit_codes])

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; turn errors of ours and Ctrl-C into a sentence and an exit code."""
        is_json = bool(ctx.params.get("is_json"))
        try:
            return super().invoke(ctx)
        except P2PCacheError as error:
            _report(error.code, str(error), is_json=is_json)
            ctx.exit(error.exit_code)
        except InterruptedCommand as error:
            _report("Interrupted", str(error), is_json=is_json, prefix="")
            ctx.exit(INTERRUPTED_EXIT_CODE)
        except KeyboardInterrupt:
            _report("Interrupted", "Interrupted.", is_json=is_json, prefix="")
            ctx.exit(INTERRUPTED_EXIT_CODE)


def _report(code: str, message: str, *, is_json: bool, prefix: str = "error: ") -> None:
    click.echo(prefix + show_text(message), err=True)
    if is_json:
        echo_json({"error": code, "message": message})


def json_option(function: Function) -> Function:
    """Add --json."""
    return click.option(
        "--json", "is_json", is_flag=True, help="Print one JSON value instead of text."
    )(function)


def client_options(function: Function) -> Function:
    """Add --local, --store and --json: what every command that asks the daemon takes."""
    function = json_option(function)
    function = click.option(
        "--store",
        type=click.Path(path_type=Path),
        metavar="DIR",
        envvar="P2PCACHE_STORE",
        show_envvar=True,
        help="The daemon's store, where its endpoint and admin token are found.",
    )(function)
    return click.option(
        "--local",
        metavar="HOST:PORT",
        envvar="P2PCACHE_LOCAL",
        show_envvar=True,
        help="The daemon's local endpoint, if it is not the one that the store names.",
    )(function)
