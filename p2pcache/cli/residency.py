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
from p2pcache.errors import InputError

# Names in a line of text.
EVICTIONS_SHOWN_MAX = 3


@click.command(
    cls=Command,
    examples="""
    p2pcache status
    p2pcache status sentence-transformers/all-MiniLM-L6-v2 --json
    p2pcache status Qwen/Qwen3-32B --ask-hub --tp 8
    p2pcache status Qwen/Qwen3-32B --cluster
    """,
    exit_codes=CLIENT_EXIT_CODES,
)
@click.argument("ref", required=False)
@click.option("--cluster", "is_cluster", is_flag=True, help="Ask every peer what it has of REF.")
@click.option(
    "--ask-hub",
    "asks_hub",
    is_flag=True,
    help="First ask the hub which files REF has, and read the heads of its weight files.",
)
@click.option(
    "--include", multiple=True, metavar="GLOB", help="Files that count; again for more of them."
)
@click.option(
    "--exclude", multiple=True, metavar="GLOB", help="Files that do not; again for more of them."
)
@click.option(
    "--tp",
    type=click.IntRange(1),
    multiple=True,
    metavar="N",
    help="Tell the bytes of one of N ranks; again for more of them.",
)
@client_options
def status(
    ref: str | None, local: str | None, store: Path | None, is_json: bool, **wishes: Any
) -> None:
    """
    Tell how the daemon is, or how much of a model is here.

    Without REF: the daemon, and which of its sources failed lately. With REF
    ([hf:][datasets/]org/name[@revision]): absent, partial, verifying, resident or corrupt, and how
    many bytes are missing, where they are, how long they will take, and what the weights are. No
    hub is asked, unless with --ask-hub. Exit 0 says that there is an answer, not that the model is
    resident.
    """
    client = Client(local, store)
    if ref is None:
        if any(wishes.values()):
            raise InputError("These options are about a model; name it: p2pcache status REF")
        answer = client.status()
    else:
        answer = _ask(client, ref, **wishes)
    if is_json:
        echo_json(answer)
    elif ref is None:
        _echo_daemon(answer)
    else:
        _echo_residency(answer)


def _ask(
    client: Client,
    ref: str,
    *,
    asks_hub: bool,
    is_cluster: bool,
    **question: Any,
) -> dict[str, Any]:
    """Return the residency, after the daemon has asked the hub if that is wanted."""
    if asks_hub:
        client.learn(ref, include=question["include"], exclude=question["exclude"])
    return dict(client.residency(ref, is_cluster=is_cluster, **question))


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
    if answer.get("bytes_missing"):
        fields += [
            ("from peers", show_size(answer.get("missing_from_peers"))),
            ("from upstream", show_size(answer.get("missing_from_upstream"))),
            ("time left", _show_eta(answer.get("eta_s"))),
            ("disk free", show_size(answer.get("disk_free"))),
        ]
    fields += _show_weights(answer)
    if answer.get("verified_at") is not None:
        fields.append(("verified", show_time(answer["verified_at"])))
    if answer.get("path"):
        fields.append(("path", show_text(answer["path"])))
    echo_fields(fields)
    _echo_peers(answer)
    evictions = rows_of(answer, "would_evict")
    if evictions and answer.get("fits_disk"):
        sizes = (step.get("bytes") for step in evictions)
        freed = sum(size for size in sizes if isinstance(size, int))
        names = ", ".join(show_text(step.get("name")) for step in evictions[:EVICTIONS_SHOWN_MAX])
        more = len(evictions) - EVICTIONS_SHOWN_MAX
        names += f" and {more} more" if more > 0 else ""
        click.echo(f"A pull would evict {show_size(freed)} for it: {names}.", err=True)
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


def _show_weights(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines about the weights; one that says how to know, if nobody does."""
    if "weights" not in answer:
        return []  # an earlier release's daemon
    weights = answer["weights"]
    if answer.get("commit") is None:
        return [("weights", "not known; --ask-hub asks")]
    if not isinstance(weights, dict):
        return [("weights", "not read; --ask-hub reads their heads")]
    params = weights.get("params") or {}
    shown = ", ".join(f"{count:,} {dtype}" for dtype, count in params.items())
    size = f"{show_size(weights.get('bytes'))} in {weights.get('tensors')} tensors"
    files = f"{weights.get('files')} {show_text(weights.get('format'))} files"
    lines = [
        ("weights", f"{size}, {files}"),
        ("parameters", shown or "none"),
        ("largest tensor", show_size(weights.get("largest_tensor_bytes"))),
    ]
    if weights.get("variants"):
        lines.append(("variants", f"{weights['variants']}; choose one with --include"))
    if answer.get("memory_floor_bytes") is not None:
        lines.append(("memory floor", show_size(answer["memory_floor_bytes"])))
    floors = answer.get("memory_floor_per_rank_bytes") or {}
    for name, count in (weights.get("per_rank_bytes") or {}).items():
        floor = show_size(floors.get(name))
        lines.append((f"each of {name}", f"{show_size(count)}, memory floor {floor}"))
    return lines


def _echo_peers(answer: dict[str, Any]) -> None:
    peers = rows_of(answer, "peers")
    if "peers" not in answer:
        return
    click.echo("\nPeers:" if peers else "\nNo peer was asked.")
    if peers:
        echo_table(
            ("NAME", "HAS", "TIME LEFT"),
            (
                (
                    show_text(peer.get("name")),
                    show_size(peer.get("bytes_local")),
                    _show_eta(peer.get("eta_s")),
                )
                for peer in peers
            ),
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
        if value.get("p50") is None:
            return "not known; no rate was measured yet"
        return f"{show_duration(value.get('p50'))} to {show_duration(value.get('p95'))}"
    return show_duration(value)
