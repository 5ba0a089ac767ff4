"""
Owns the commands that bring a model here and keep it: pull, pin, unpin.

Knows nothing of HTTP.
Invariants: a malformed reference is refused before anything is sent; the snapshot's path is the
last line of standard output; a token is never shown.
Source: design.md §8 (command line).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from p2pcache.cli.command import (
    CLIENT_EXIT_CODES,
    PULL_EXIT_CODES,
    Command,
    Function,
    InterruptedCommand,
    client_options,
)
from p2pcache.cli.output import echo_json, rows_of, show_size, show_text
from p2pcache.cli.progress import open_progress
from p2pcache.cli.warming import warm_snapshot
from p2pcache.client import Client
from p2pcache.client.answers import error_of_download
from p2pcache.core.refs import ModelReference
from p2pcache.errors import InputError, P2PCacheError

# How often copies on other machines are looked at.
COPIES_POLL_S = 0.5


class _TokenOption(click.Option):
    """--token: from the environment only what is meant for the hub that is asked."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return P2PCACHE_TOKEN, else the variable of the hub that a reference names."""
        ref, own = ctx.params.get("ref"), None
        if isinstance(ref, str):
            own = "MODELSCOPE_API_TOKEN" if ref.startswith("ms:") else "HF_TOKEN"
        for name in filter(None, ("P2PCACHE_TOKEN", own)):
            if os.environ.get(name):
                return os.environ[name]
        return None


def token_option(function: Function) -> Function:
    """Add --token."""
    return click.option(
        "--token",
        cls=_TokenOption,
        metavar="T",
        envvar=["P2PCACHE_TOKEN", "HF_TOKEN", "MODELSCOPE_API_TOKEN"],
        show_envvar=True,
        help="Your token for the hub, for gated and private models. Prefer the environment: other "
        "users see a command's arguments. It is sent to the hub alone, and a hub's own variable "
        "to that hub alone.",
    )(function)


@click.command(
    cls=Command,
    examples="""
    p2pcache pull sentence-transformers/all-MiniLM-L6-v2
    p2pcache pull Qwen/Qwen3-8B@main --include '*.safetensors' --include '*.json'
    p2pcache pull Qwen/Qwen3-8B --on gpu-1 --on zone=a
    MODEL=$(p2pcache pull Qwen/Qwen3-8B)
    """,
    exit_codes=PULL_EXIT_CODES,
)
@click.argument("ref")
@click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help="Fetch only these files; '*' for all, also the same weights in a second format.",
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not fetch these files.")
@click.option(
    "--on",
    multiple=True,
    metavar="NAME",
    help="Fetch it on that machine instead: a name or id of `p2pcache peers`, key=value for those "
    "with a label, '*' for all and this one. Repeatable.",
)
@click.option(
    "--path",
    metavar="DIR",
    help="Put the files into this folder as well, without copying where the disk can; it lies "
    "below one of the daemon's --allow-path.",
)
@click.option(
    "--priority", type=click.IntRange(-100, 100), metavar="N", help="More is sooner; 0 is usual."
)
@click.option(
    "--warm",
    "is_warm",
    is_flag=True,
    help="Then bring the files into memory (the page cache), up to half of what is available.",
)
@token_option
@click.option("--detach", is_flag=True, help="Return at once; prints the id of the download.")
@client_options
def pull(
    ref: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    on: tuple[str, ...],
    path: str | None,
    priority: int | None,
    is_warm: bool,
    token: str | None,
    detach: bool,
    local: str | None,
    store: Path | None,
    is_json: bool,
) -> None:
    """
    Fetch a model; print the path of its snapshot.

    REF is [hf:|ms:][datasets/]org/name[@revision]. Returns when every file is here and proven, or
    there with --on. Weights that the repository has as safetensors are not fetched in another
    format once more; what was left out is told. The daemon may be restarted meanwhile. Ctrl-C
    cancels the download and keeps what was fetched. With --json the last line is the download:
    {id, model, commit, state, bytes_total, …, path}; if it failed, "error" in it says why.
    """
    reference = ModelReference.parse(ref)
    if is_warm and (detach or on):
        raise InputError("--warm follows a download to this machine; leave out --detach and --on.")
    client = Client(local, store)
    started = client.pull(
        str(reference.repo),
        reference.revision,
        include,
        exclude,
        token=token or None,
        workers=on,
        path=None if path is None else str(Path(path).absolute()) if not on else path,
        priority=priority,
    )
    if detach:
        if is_json:
            echo_json(started)
        else:
            click.echo(f"p2pcache jobs {started.get('id', '')} shows how far it is.", err=True)
            click.echo(str(started.get("id", "")))
        return
    job = _follow(client, reference, started, token or None, is_json=is_json)
    if is_warm and job.get("path"):
        warm_snapshot(Path(str(job["path"])), include, exclude, is_silent=is_json)
    if is_json:
        echo_json(job)
        return
    _tell_left_out(job)
    for worker in rows_of(job, "workers"):
        click.echo(f"{show_text(worker.get('name'))}: {show_text(worker.get('path'))}")
    if job.get("path"):
        click.echo(str(job.get("download_path") or job["path"]))


def _tell_left_out(job: dict[str, Any]) -> None:
    """Say what a pull did not bring, and how to get it."""
    left_out = job.get("left_out")
    if isinstance(left_out, dict):
        click.echo(
            f"Left out {show_text(left_out.get('files'))} files of "
            f"{show_size(left_out.get('bytes'))}, for example {show_text(left_out.get('example'))}:"
            " the same weights are in the safetensors. Get them with --include '*'.",
            err=True,
        )


@click.command(
    cls=Command,
    examples="""
    p2pcache pin sentence-transformers/all-MiniLM-L6-v2
    p2pcache pin Qwen/Qwen3-8B --replicas 3
    """,
    exit_codes=PULL_EXIT_CODES,
)
@click.argument("ref")
@click.option("--on", multiple=True, metavar="NAME", help="On that machine instead; see pull.")
@click.option(
    "--replicas",
    type=click.IntRange(1),
    metavar="N",
    help="Keep N copies in the neighbourhood: this daemon chooses who holds them, and replaces one "
    "that leaves.",
)
@token_option
@client_options
def pin(
    ref: str,
    on: tuple[str, ...],
    replicas: int | None,
    token: str | None,
    local: str | None,
    store: Path | None,
    is_json: bool,
) -> None:
    """
    Fetch a model as pull does, then protect it from eviction.

    With --json the last line is the download, with "pinned": true; with --replicas {model,
    revision, commit, replicas, copies, holders}.
    """
    reference = ModelReference.parse(ref)
    client = Client(local, store)
    if on and replicas:
        raise InputError("Name the machines with --on, or let --replicas choose them, not both.")
    if replicas:
        _keep_copies(client, reference, replicas, is_json=is_json)
        return
    if on:
        model, revision = str(reference.repo), reference.revision
        ordered = client.pull(model, revision, token=token or None, pin=True, workers=on)
        job = _follow(client, reference, ordered, token or None, is_json=is_json)
        if is_json:
            echo_json({**job, "pinned": True})
        else:
            click.echo(f"Pinned {reference} on {', '.join(ordered.get('workers', on))}.", err=True)
        return
    started = client.pull(str(reference.repo), reference.revision, token=token or None)
    job = _follow(client, reference, started, token or None, is_json=is_json)
    Client(local, store).pin(str(reference))  # a daemon that was restarted may be elsewhere now
    if is_json:
        echo_json({**job, "pinned": True})
        return
    click.echo(f"Pinned {reference}.", err=True)
    if job.get("path"):
        click.echo(str(job["path"]))


@click.command(
    cls=Command,
    examples="p2pcache unpin sentence-transformers/all-MiniLM-L6-v2",
    exit_codes=CLIENT_EXIT_CODES,
)
@click.argument("ref")
@client_options
def unpin(ref: str, local: str | None, store: Path | None, is_json: bool) -> None:
    """
    Protect a model from eviction no longer.

    Nothing is deleted by that.
    """
    reference = ModelReference.parse(ref)
    Client(local, store).unpin(str(reference))
    if is_json:
        echo_json({"model": str(reference.repo), "revision": reference.revision, "pinned": False})
    else:
        click.echo(f"Unpinned {reference}.")


def _keep_copies(client: Client, reference: ModelReference, count: int, *, is_json: bool) -> None:
    """Wait until enough daemons hold a copy; Ctrl-C leaves it to the daemon."""
    kept = client.pin(str(reference), count)
    told: set[str] = set()
    name = (str(reference.repo), reference.revision)
    try:
        while int(kept.get("copies", 0)) < count:
            for holder in rows_of(kept, "holders"):
                line = f"{show_text(holder.get('name'))}: {show_text(holder.get('state'))}"
                if line not in told and not is_json:
                    click.echo(line, err=True)
                told.add(line)
            time.sleep(COPIES_POLL_S)
            rows = rows_of(client.pins(), "replicas")
            kept = next(r for r in rows if (r.get("model"), r.get("revision")) == name)
    except KeyboardInterrupt:
        raise InterruptedCommand("The daemon goes on; see: p2pcache jobs") from None
    except StopIteration:
        raise P2PCacheError(f"{reference} was unpinned meanwhile; pin it again.") from None
    if is_json:
        echo_json(kept)
    else:
        names = ", ".join(show_text(holder.get("name")) for holder in rows_of(kept, "holders"))
        click.echo(f"Pinned {reference} on {names}.")


def _follow(
    client: Client,
    reference: ModelReference,
    started: dict[str, Any],
    token: str | None,
    *,
    is_json: bool,
) -> dict[str, Any]:
    """
    Show a download until it ends; return it, done.

    Raises:
        P2PCacheError: It failed; with --json the download has been printed then.
        InterruptedCommand: Ctrl-C; the download is cancelled.
    """
    download_id = str(started.get("id", ""))
    last: dict[str, Any] = {}

    def show(job: dict[str, Any]) -> None:
        last.update(job)
        progress.show(job)

    try:
        with open_progress(str(reference.repo), is_silent=is_json) as progress:
            return client.wait(download_id, show, token=token)
    except KeyboardInterrupt:
        raise InterruptedCommand(_cancel(client, reference, download_id)) from None
    except P2PCacheError as error:
        if is_json and error_of_download(last) is not None:
            last["error"] = {"error": error.code, "message": str(error)}
            click.echo(f"error: {show_text(error)}", err=True)
            echo_json(last)
            click.get_current_context().exit(error.exit_code)
        raise


def _cancel(client: Client, reference: ModelReference, download_id: str) -> str:
    """Cancel a download after Ctrl-C; return the sentence that says what became of it."""
    again = f"p2pcache pull {reference} goes on from there."
    try:
        client.cancel(download_id)
    except P2PCacheError as error:
        return f"Interrupted; cancelling failed ({error}). What was fetched is kept; {again}"
    return f"Interrupted; the download is cancelled. What was fetched is kept; {again}"
