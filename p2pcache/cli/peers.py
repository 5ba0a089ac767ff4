"""
Owns the command that lists the other daemons: peers.

Knows nothing of HTTP.
Invariants: --json prints what the daemon said, unchanged; below the table stands a sentence with a
next step for everything in it that is not as it should be.
Source: design.md §8 (GET …/peers) and §6.6.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    show_time,
)
from p2pcache.client import Client

_HEAD = (
    "NAME", "ADDRESS", "FOUND BY", "STATE", "VERSION", "RATE", "RECEIVED", "ASKED", "FAULTS",
)  # fmt: skip


@click.command(cls=Command, examples="p2pcache peers", exit_codes=CLIENT_EXIT_CODES)
@client_options
def peers(local: str | None, store: Path | None, is_json: bool) -> None:
    """
    List the daemons that this one talks to.

    RATE is measured while it gave us something; RECEIVED is what it gave since both are up; ASKED
    counts the requests under way. A banned peer sent a wrong byte, or broke its promises three
    times in a row: below the table stands which, and until when it is left alone. A silent one was
    named or announced, and does not answer.
    """
    answer = Client(local, store).peers()
    if is_json:
        echo_json(answer)
        return
    listed, silent = rows_of(answer, "peers"), rows_of(answer, "unreachable")
    if not listed and not silent:
        click.echo(
            "No other daemon was found; name one with: p2pcache up --peer HOST:PORT", err=True
        )
        return
    echo_table(_HEAD, [_show_peer(peer) for peer in [*listed, *map(_as_silent, silent)]])
    notes = [note for peer in listed for note in _explain_peer(peer)]
    notes += [note for peer in silent for note in _explain_silence(peer)]
    if notes:
        click.echo()
    for note in notes:
        click.echo(note)


def _as_silent(peer: dict[str, object]) -> dict[str, object]:
    return {**peer, "state": "silent"}


def _show_peer(peer: dict[str, object]) -> tuple[str, ...]:
    faults = rows_of(peer, "faults")
    return (
        show_text(peer.get("name")),
        show_text(peer.get("address")),
        show_text(peer.get("via")),
        show_text(peer.get("state")),
        show_text(peer.get("version")),
        show_rate(peer.get("rate_bps")),
        show_size(peer.get("received_bytes")),
        show_text(peer.get("requests_inflight")),
        str(len(faults)) if "faults" in peer else MISSING,
    )


def _explain_peer(peer: dict[str, object]) -> Iterator[str]:
    """Yield what a peer did wrong, and what to do about it."""
    name = show_text(peer.get("name"))
    if peer.get("state") == "banned":
        yield (
            f"{name} is banned until {show_time(peer.get('banned_until'))}: "
            f"{show_text(peer.get('reason'))}"
        )
        yield (
            f"  Run p2pcache check on {name}, and look at its disk and memory if that finds "
            "something; p2pcache up, started again here, forgets the ban."
        )
    for fault in rows_of(peer, "faults"):
        reason, detail = show_text(fault.get("reason")), show_text(fault.get("detail"))
        yield f"{name}, {show_time(fault.get('at'))}, {reason}: {detail}"
    if peer.get("state") == "silent":
        yield from _explain_silence(peer)


def _explain_silence(peer: dict[str, object]) -> Iterator[str]:
    yield (
        f"{show_text(peer.get('address'))} does not answer: see that p2pcache runs there, and that "
        "no firewall is in between."
    )
