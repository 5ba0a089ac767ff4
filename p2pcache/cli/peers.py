"""
Owns the command that lists the other daemons: peers.

Knows nothing of HTTP.
Invariants: --json prints what the daemon said, unchanged.
Source: design.md §8 (GET …/peers).
"""

from __future__ import annotations

from pathlib import Path

import click

from p2pcache.cli.command import CLIENT_EXIT_CODES, Command, client_options
from p2pcache.cli.output import (
    MISSING,
    echo_json,
    echo_table,
    rows_of,
    show_rate,
    show_size,
    show_text,
)
from p2pcache.client import Client


@click.command(cls=Command, examples="p2pcache peers", exit_codes=CLIENT_EXIT_CODES)
@client_options
def peers(local: str | None, store: Path | None, is_json: bool) -> None:
    """
    List the daemons that this one talks to.

    RATE is measured while it gave us something; RECEIVED is what it gave since both are up. A
    banned peer sent a wrong byte: REASON says which. An unreachable one was named or announced,
    and does not answer.
    """
    answer = Client(local, store).peers()
    if is_json:
        echo_json(answer)
        return
    rows = [
        (
            show_text(peer.get("name")),
            show_text(peer.get("address")),
            show_text(peer.get("state")),
            show_text(peer.get("version")),
            show_rate(peer.get("rate_bps")),
            show_size(peer.get("received_bytes")),
            show_text(peer.get("reason")),
        )
        for peer in rows_of(answer, "peers")
    ]
    rows += [
        (
            MISSING,
            show_text(peer.get("address")),
            "unreachable",
            MISSING,
            MISSING,
            MISSING,
            f"found by {show_text(peer.get('via'))}",
        )
        for peer in rows_of(answer, "unreachable")
    ]
    if not rows:
        click.echo(
            "No other daemon was found; name one with: p2pcache up --peer HOST:PORT", err=True
        )
        return
    echo_table(("NAME", "ADDRESS", "STATE", "VERSION", "RATE", "RECEIVED", "REASON"), rows)
