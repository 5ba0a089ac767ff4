"""
Owns the command about a model's commits: versions.

Knows nothing of HTTP.
Invariants: --json prints what the daemon said, unchanged; nothing is removed without --keep.
Source: docs/reference/http-api.md ("Versions").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pcache.cli.command import CLIENT_EXIT_CODES, Command, client_options
from p2pcache.cli.output import (
    echo_json,
    echo_table,
    rows_of,
    show_share,
    show_size,
    show_text,
)
from p2pcache.client import VersionClient
from p2pcache.errors import InputError

_COMMIT_CHARS = 12


@click.command(
    cls=Command,
    examples="""
    p2pcache versions Qwen/Qwen3-8B
    p2pcache versions Qwen/Qwen3-8B --diff 9216db5781bf main
    p2pcache versions Qwen/Qwen3-8B --keep 2 --dry-run
    """,
    exit_codes=CLIENT_EXIT_CODES,
)
@click.argument("ref")
@click.option("--diff", nargs=2, metavar="A B", help="Compare two commits, in files and bytes.")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Remove all but the last N; what a branch points to, or a pin protects, stays anyway.",
)
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Show what --keep would remove.")
@client_options
def versions(
    ref: str,
    diff: tuple[str, str] | None,
    keep: int | None,
    is_dry_run: bool,
    local: str | None,
    store: Path | None,
    is_json: bool,
) -> None:
    """
    List the commits of a model that are here, compare two, or keep only the last.

    A commit may be given by its first digits.
    """
    if diff and keep:
        raise InputError("Ask for --diff or for --keep, not for both.")
    client = VersionClient(local, store)
    if keep:
        answer = client.keep(ref, keep, is_dry_run=is_dry_run)
        show = _echo_kept
    elif diff:
        known = [str(row.get("commit")) for row in rows_of(client.list_all(ref), "versions")]
        answer = client.diff(ref, *(_complete(side, known) for side in diff))
        show = _echo_diff
    else:
        answer, show = client.list_all(ref), _echo_versions
    if is_json:
        echo_json(answer)
    else:
        show(answer)


def _complete(side: str, known: list[str]) -> str:
    """Return the commit that begins so; whatever else was written stays."""
    fitting = [commit for commit in known if len(side) >= 4 and commit.startswith(side)]
    return fitting[0] if len(fitting) == 1 else side


def _echo_versions(answer: dict[str, Any]) -> None:
    listed = rows_of(answer, "versions")
    if not listed:
        model = show_text(answer.get("model"))
        click.echo(f"Nothing of {model} is here; fetch it with: p2pcache pull {model}", err=True)
        return
    echo_table(
        ("COMMIT", "REVISIONS", "STATE", "SIZE", "HERE", "PINNED"),
        (
            (
                show_text(str(row.get("commit"))[:_COMMIT_CHARS]),
                _show_list(row.get("revisions")),
                show_text(row.get("state")),
                show_size(row.get("bytes_total")),
                show_share(row.get("bytes_local"), row.get("bytes_total")),
                show_text(bool(row.get("pinned"))),
            )
            for row in listed
        ),
    )


def _show_list(value: object) -> str:
    return show_text(", ".join(map(str, value)) if isinstance(value, list) else value)


def _echo_diff(answer: dict[str, Any]) -> None:
    changes = rows_of(answer, "changes")
    if changes:
        echo_table(
            ("FILE", "FROM", "TO"),
            (
                (
                    show_text(row.get("path")),
                    show_size(row.get("bytes_from")),
                    show_size(row.get("bytes_to")),
                )
                for row in changes
            ),
        )
    similar = answer.get("bytes_new_in_known_chunks")
    known = "" if similar is None else f", {show_size(similar)} of them in chunks that are known"
    click.echo(
        f"{show_size(answer.get('bytes_shared'))} shared, {show_size(answer.get('bytes_new'))} new"
        f"{known}, {show_size(answer.get('bytes_gone'))} gone."
    )


def _echo_kept(answer: dict[str, Any]) -> None:
    verb = "would be removed" if answer.get("dry_run") else "removed"
    for row in rows_of(answer, "removed"):
        freed = "" if row.get("bytes_freed") is None else f", {show_size(row['bytes_freed'])} freed"
        click.echo(f"{show_text(row.get('commit'))} {verb}{freed}")
    for row in rows_of(answer, "refused"):
        click.echo(
            f"{show_text(row.get('commit'))} stays: {show_text(row.get('reason'))}", err=True
        )
    click.echo(f"{show_text(answer.get('kept'))} kept.")
