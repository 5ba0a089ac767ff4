"""
Owns the command that adopts another program's cache: import.

Knows nothing of HTTP.
Invariants: standard output has the outcome alone; what was left alone is named on standard error,
with --json in the result; Ctrl-C ends the import, never what was imported.
Source: design.md §8 (command line); docs/how-to/adopt-a-cache.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pcache.cli.command import (
    CLIENT_EXIT_CODES,
    Command,
    InterruptedCommand,
    client_options,
)
from p2pcache.cli.output import echo_json, rows_of, show_size, show_text
from p2pcache.cli.progress import open_progress
from p2pcache.client import ImportClient
from p2pcache.errors import NotFoundError, P2PCacheError

# As many reasons as fit on a screen; --json has them all.
_SKIPPED_SHOWN_MAX = 20
_HOW = ("linked", "reflinked", "copied", "referred", "present")


@click.command(
    name="import",
    cls=Command,
    examples="""
    p2pcache import ~/.cache/huggingface
    p2pcache import ~/.cache/huggingface --watch
    p2pcache import /data/hub/models--org--name --public
    """,
    exit_codes=CLIENT_EXIT_CODES,
)
@click.argument("dir", type=click.Path(path_type=Path))
@click.option(
    "--watch/--no-watch",
    "is_watch",
    default=None,
    help="Keep looking for new downloads in DIR, also after a restart; --no-watch ends that and "
    "imports nothing.",
)
@click.option(
    "--public",
    "is_public",
    is_flag=True,
    help="Your word that anybody may have what is in DIR, as long as the hub does not answer. "
    "Without it, what the hub did not prove public stays on this machine.",
)
@client_options
def import_(
    dir: Path,
    is_watch: bool | None,
    is_public: bool,
    local: str | None,
    store: Path | None,
    is_json: bool,
) -> None:
    """
    Adopt a Hugging Face cache without downloading or copying it.

    DIR is a cache's folder, one that has it as hub, or one models-- folder of it. Every file is
    hashed; what is not what its name says is named and left alone. The rest is shared with the
    store by hard links, else by reflinks, copies where there is room, or links to where it lies.
    Nothing in DIR is changed. With --json the last line is the import.
    """
    client = ImportClient(local, store)
    path = dir.expanduser().absolute()
    if is_watch is False:
        _end_watch(client, path, is_json=is_json)
        return
    started = client.start(path, is_watch=bool(is_watch), is_public=is_public)
    job = _follow(client, path, started, is_json=is_json)
    if is_json:
        echo_json(job)
        return
    _echo_outcome(job)
    if is_watch:
        click.echo(f"{path} is watched; p2pcache import {path} --no-watch ends that.", err=True)


def _end_watch(client: ImportClient, path: Path, *, is_json: bool) -> None:
    watches = [job for job in rows_of(client.list_all(), "imports") if job.get("watch") is True]
    watches = [job for job in watches if job.get("state") != "cancelled"]
    running = [job for job in watches if job.get("path") == str(path)]
    if not running:
        known = ", ".join(show_text(job.get("path")) for job in watches) or "no folder is"
        raise NotFoundError(f"{path} is not watched; watched: {known}.")
    job = client.stop(str(running[0].get("id")))
    if is_json:
        echo_json(job)
    else:
        click.echo(f"{path} is not watched any more; what was imported is kept.")


def _follow(
    client: ImportClient, path: Path, started: dict[str, Any], *, is_json: bool
) -> dict[str, Any]:
    """
    Show an import until it ends; return it, done.

    Raises:
        P2PCacheError: It failed.
        InterruptedCommand: Ctrl-C; the import is cancelled.
    """
    import_id = str(started.get("id", ""))
    try:
        with open_progress(f"import {path.name or path}", is_silent=is_json) as progress:
            return client.wait(import_id, progress.show)
    except KeyboardInterrupt:
        raise InterruptedCommand(_cancel(client, path, import_id)) from None


def _cancel(client: ImportClient, path: Path, import_id: str) -> str:
    """Cancel an import after Ctrl-C; return the sentence that says what became of it."""
    again = f"p2pcache import {path} goes on from there."
    try:
        client.stop(import_id)
    except P2PCacheError as error:
        return f"Interrupted; cancelling failed ({error}). What was imported is kept; {again}"
    return f"Interrupted; the import is cancelled. What was imported is kept; {again}"


def _echo_outcome(job: dict[str, Any]) -> None:
    skipped, snapshots = rows_of(job, "skipped"), rows_of(job, "snapshots")
    for row in skipped[:_SKIPPED_SHOWN_MAX]:
        path, reason = show_text(row.get("path")), show_text(row.get("reason"))
        click.echo(f"skipped {path}: {reason}", err=True)
    total = job.get("skipped_total")
    if isinstance(total, int) and total > _SKIPPED_SHOWN_MAX:
        click.echo(f"… and {total - _SKIPPED_SHOWN_MAX} more; --json names them.", err=True)
    for row in snapshots:
        _echo_snapshot(row)
    how = ", ".join(f"{show_text(job[name])} {name}" for name in _HOW if job.get(name))
    click.echo(
        f"Imported {show_text(job.get('files_done'))} files, {show_size(job.get('bytes_done'))}: "
        f"{how or 'nothing'}; {show_text(total)} skipped."
    )


def _echo_snapshot(row: dict[str, object]) -> None:
    revisions = row.get("revisions")
    names = ", ".join(map(show_text, revisions)) if isinstance(revisions, list) else ""
    click.echo(
        f"{show_text(row.get('model'))}@{show_text(row.get('commit'))}"
        f"{f' ({names})' if names else ''}: {show_text(row.get('files_here'))} of "
        f"{show_text(row.get('files'))} files, "
        f"{'public' if row.get('public') is True else 'not shared with peers'}"
    )
    notes = row.get("notes")
    for note in notes if isinstance(notes, list) else []:
        click.echo(f"  {show_text(note)}")
