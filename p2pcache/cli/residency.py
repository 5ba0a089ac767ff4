"""
Owns the command that tells how things are: status, of the daemon or of one model.

Knows nothing of HTTP.
Invariants: --json prints what the daemon said, unchanged.
Source: design.md §8 (residency).
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
    show_duration,
    show_size,
    show_text,
    show_time,
)
from p2pcache.client import Client


@click.command(
    cls=Command,
    examples="""
    p2pcache status
    p2pcache status sentence-transformers/all-MiniLM-L6-v2 --json
    """,
    exit_codes=CLIENT_EXIT_CODES,
)
@click.argument("ref", required=False)
@client_options
def status(ref: str | None, local: str | None, store: Path | None, is_json: bool) -> None:
    """
    Tell how the daemon is, or how much of a model is here.

    Without REF: the daemon, and which of its sources failed lately. With REF
    ([hf:][datasets/]org/name[@revision]): absent, partial, verifying, resident or corrupt, and how
    many bytes are missing. Exit 0 says that there is an answer, not that the model is resident.
    """
    client = Client(local, store)
    answer = client.status() if ref is None else client.residency(ref)
    if is_json:
        echo_json(answer)
    elif ref is None:
        _echo_daemon(answer)
    else:
        _echo_residency(answer)


def _echo_daemon(answer: dict[str, Any]) -> None:
    echo_fields(
        (
            ("name", show_text(answer.get("name"))),
            ("version", show_text(answer.get("version"))),
            ("local", show_text(answer.get("local"))),
            ("peer", show_text(answer.get("peer"))),
            ("store", show_text(answer.get("store"))),
            ("upstream", _show_upstream(answer)),
            ("up for", show_duration(answer.get("uptime_s"))),
            ("peers", _show_count(answer.get("peers"))),
            ("downloads", _show_count(answer.get("downloads"))),
        )
    )
    faults = rows_of(answer, "faults")
    if not faults:
        return
    click.echo("\nRecent faults of sources:")
    echo_table(
        ("AT", "SOURCE", "NAME", "REASON", "DETAIL"),
        (
            (
                show_time(fault.get("at")),
                show_text(fault.get("source")),
                show_text(fault.get("name")),
                show_text(fault.get("reason")),
                show_text(fault.get("detail")),
            )
            for fault in faults
        ),
    )


def _show_upstream(answer: dict[str, Any]) -> str:
    """Return the hub's address, and for how long it wants to be left alone."""
    paused_s = answer.get("upstream_paused_s")
    shown = show_text(answer.get("upstream"))
    if not isinstance(paused_s, int | float) or paused_s <= 0:
        return shown
    return f"{shown} (asked us to slow down; not asked for {show_duration(paused_s)})"


def _echo_residency(answer: dict[str, Any]) -> None:
    fields = [
        ("model", show_text(answer.get("model"))),
        ("commit", show_text(answer.get("commit"))),
        ("state", show_text(answer.get("state"))),
        ("pinned", show_text(bool(answer.get("pinned")))),
        ("size", show_size(answer.get("bytes_total"))),
        ("here", show_size(answer.get("bytes_local"))),
        ("missing", show_size(answer.get("bytes_missing"))),
    ]
    # What this release does not estimate is left out, not shown as nothing.
    if answer.get("bytes_missing") and "missing_from_peers" in answer:
        fields.append(("from peers", show_size(answer["missing_from_peers"])))
    if answer.get("bytes_missing") and "missing_from_upstream" in answer:
        fields.append(("from upstream", show_size(answer["missing_from_upstream"])))
    if answer.get("bytes_missing") and "eta_s" in answer:
        fields.append(("time left", _show_eta(answer["eta_s"])))
    if answer.get("bytes_missing"):
        fields.append(("disk free", show_size(answer.get("disk_free"))))
    if answer.get("verified_at") is not None:
        fields.append(("verified", show_time(answer["verified_at"])))
    if answer.get("path"):
        fields.append(("path", show_text(answer["path"])))
    echo_fields(fields)
    if answer.get("bytes_missing") and answer.get("fits_disk") is False:
        click.echo(
            "It does not fit, even if everything goes that may go; unpin or remove a model, raise "
            "--quota, or free some space: p2pcache storage.",
            err=True,
        )
    if answer.get("state") == "corrupt":
        click.echo(
            "A file of it is damaged here; p2pcache check --repair, or a pull, mends it.", err=True
        )


def _show_count(value: object) -> str:
    """Show a number, the length of a list, or the numbers of several states."""
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, dict):
        return ", ".join(f"{show_text(count)} {show_text(name)}" for name, count in value.items())
    return show_text(value)


def _show_eta(value: object) -> str:
    if isinstance(value, dict):
        return f"{show_duration(value.get('p50'))} to {show_duration(value.get('p95'))}"
    return show_duration(value)
