"""
Owns the commands about room: storage, gc, rm.

Knows nothing of HTTP.
Invariants: --json prints what the daemon said, unchanged; a dry run shows the plan that a run
would carry out.
Source: design.md §8 (command line); docs/how-to/limit-disk.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pcache.cli.command import CLIENT_EXIT_CODES, Command, client_options
from p2pcache.cli.output import (
    echo_fields,
    echo_json,
    echo_table,
    rows_of,
    show_size,
    show_text,
)
from p2pcache.client import SpaceClient
from p2pcache.core.refs import ModelReference


@click.command(cls=Command, examples="p2pcache storage", exit_codes=CLIENT_EXIT_CODES)
@client_options
def storage(local: str | None, store: Path | None, is_json: bool) -> None:
    """
    Tell what the store holds and how much room its disk has.

    "taken" is what the quota counts. "saved" is what the models here would take beyond that if
    each had files of its own. "evictable" could go if room were needed.
    """
    answer = SpaceClient(local, store).storage()
    if is_json:
        echo_json(answer)
        return
    quota = answer.get("quota")
    echo_fields(
        (
            ("store", show_text(answer.get("store"))),
            ("files", f"{show_text(answer.get('blobs'))}, {show_size(answer.get('blobs_bytes'))}"),
            ("partial", show_size(answer.get("partial_bytes"))),
            ("taken", show_size(answer.get("own_bytes"))),
            ("quota", "none" if quota is None else show_size(quota)),
            ("models", show_size(answer.get("logical_bytes"))),
            ("saved", show_size(answer.get("saved_bytes"))),
            ("adopted", show_size(answer.get("adopted_bytes"))),
            ("pinned", show_size(answer.get("pinned_bytes"))),
            ("evictable", show_size(answer.get("evictable_bytes"))),
            ("reserved", show_size(answer.get("reserved_bytes"))),
            ("disk free", show_size(answer.get("disk_free"))),
            ("stays free", show_size(answer.get("free_floor"))),
            ("disk total", show_size(answer.get("disk_total"))),
        )
    )
    warnings = answer.get("warnings")
    for warning in warnings if isinstance(warnings, list) else ():
        click.echo(f"warning: {show_text(warning)}", err=True)


@click.command(
    cls=Command,
    examples="""
    p2pcache gc --dry-run
    p2pcache gc
    """,
    exit_codes=CLIENT_EXIT_CODES,
)
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Show what would go; remove nothing.")
@client_options
def gc(is_dry_run: bool, local: str | None, store: Path | None, is_json: bool) -> None:
    """
    Remove what nobody can reach, and what the quota has no room for.

    First files that no model lists, downloads that nobody went on with for a week, and what
    crashes left. Then, only if the store is above its quota or its disk below --free-floor, whole
    models, the longest unused first; never one that is pinned, leased or in use.
    """
    answer = SpaceClient(local, store).gc(is_dry_run=is_dry_run)
    if is_json:
        echo_json(answer)
        return
    _echo_steps(answer)


def _echo_steps(answer: dict[str, Any]) -> None:
    steps = rows_of(answer, "steps")
    if steps:
        echo_table(
            ("WHAT", "NAME", "SIZE", "WHY"),
            (
                (
                    show_text(step.get("what")),
                    show_text(step.get("name")),
                    show_size(step.get("bytes")),
                    show_text(step.get("reason")),
                )
                for step in steps
            ),
        )
    freed = show_size(answer.get("bytes_freed"))
    quota = answer.get("quota")
    limit = "no quota" if quota is None else f"a quota of {show_size(quota)}"
    verb = "would be freed" if answer.get("dry_run") else "freed"
    click.echo(
        f"{freed} {verb}. The store takes {show_size(answer.get('own_bytes'))} and has {limit}; "
        f"its disk has {show_size(answer.get('disk_free'))} free."
    )


@click.command(
    cls=Command,
    examples="p2pcache rm sentence-transformers/all-MiniLM-L6-v2",
    exit_codes=CLIENT_EXIT_CODES,
)
@click.argument("ref")
@click.option("--force", "is_forced", is_flag=True, help="Also if it is pinned; unpins it.")
@client_options
def rm(ref: str, is_forced: bool, local: str | None, store: Path | None, is_json: bool) -> None:
    """
    Remove a model from this machine's store.

    Files that another model here lists stay; so does one that is leased or in use. Programs that
    have its files open read on, and the disk gets their bytes back when they end.
    """
    reference = ModelReference.parse(ref)
    answer = SpaceClient(local, store).remove(str(reference), is_forced=is_forced)
    if is_json:
        echo_json(answer)
        return
    click.echo(f"Removed {reference}: {show_size(answer.get('bytes_freed'))} freed.")
