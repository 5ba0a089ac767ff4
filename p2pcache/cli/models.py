"""
Owns the command that lists what is here: ls.

Knows nothing of HTTP.
Invariants: --json prints what the daemon said, unchanged.
Source: design.md §8 (GET …/models).
"""

from __future__ import annotations

from pathlib import Path

import click

from p2pcache.cli.command import CLIENT_EXIT_CODES, Command, client_options
from p2pcache.cli.output import echo_json, echo_table, rows_of, show_share, show_size, show_text
from p2pcache.client import Client

# As git shortens them: unique in practice, and short enough to read out.
_COMMIT_CHARS = 12


@click.command(cls=Command, examples="p2pcache ls", exit_codes=CLIENT_EXIT_CODES)
@client_options
def ls(local: str | None, store: Path | None, is_json: bool) -> None:
    """
    List the snapshots in the store.

    HERE is the share of a snapshot's bytes that this machine holds.
    """
    answer = Client(local, store).models()
    if is_json:
        echo_json(answer)
        return
    models = rows_of(answer, "models")
    if not models:
        click.echo("Nothing is here yet; fetch a model with: p2pcache pull org/name", err=True)
        return
    echo_table(
        ("MODEL", "REVISIONS", "COMMIT", "STATE", "SIZE", "HERE", "PINNED"),
        (
            (
                show_text(model.get("model")),
                _show_list(model.get("revisions")),
                show_text(str(model.get("commit") or "")[:_COMMIT_CHARS]),
                show_text(model.get("state")),
                show_size(model.get("bytes_total")),
                show_share(model.get("bytes_local"), model.get("bytes_total")),
                show_text(bool(model.get("pinned"))),
            )
            for model in models
        ),
    )


def _show_list(value: object) -> str:
    return show_text(", ".join(str(item) for item in value) if isinstance(value, list) else value)
