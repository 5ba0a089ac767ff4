"""
Owns the commands that bring a model here and keep it: pull, pin, unpin.

Knows nothing of HTTP.
Invariants: a malformed reference is refused before anything is sent; the snapshot's path is the
last line of standard output; a token is never shown.
Source: design.md §8 (command line).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pcache.cli.command import (
    CLIENT_EXIT_CODES,
    EXIT_CODES,
    Command,
    Function,
    InterruptedCommand,
    client_options,
)
from p2pcache.cli.output import echo_json, show_text
from p2pcache.cli.progress import open_progress
from p2pcache.client import Client
from p2pcache.core.refs import ModelReference
from p2pcache.errors import P2PCacheError


def token_option(function: Function) -> Function:
    """Add --token."""
    return click.option(
        "--token",
        metavar="T",
        envvar=["P2PCACHE_TOKEN", "HF_TOKEN"],
        show_envvar=True,
        help="Your token for the hub, for gated and private models. Prefer the environment: other "
        "users see a command's arguments. It is sent to the hub alone.",
    )(function)


@click.command(
    cls=Command,
    examples="""
    p2pcache pull sentence-transformers/all-MiniLM-L6-v2
    p2pcache pull Qwen/Qwen3-8B@main --include '*.safetensors' --include '*.json'
    MODEL=$(p2pcache pull Qwen/Qwen3-8B)
    """,
    exit_codes=tuple(EXIT_CODES),
)
@click.argument("ref")
@click.option("--include", multiple=True, metavar="GLOB", help="Fetch only these files.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not fetch these files.")
@token_option
@click.option("--detach", is_flag=True, help="Return at once; prints the id of the download.")
@client_options
def pull(
    ref: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    token: str | None,
    detach: bool,
    local: str | None,
    store: Path | None,
    is_json: bool,
) -> None:
    """
    Fetch a model; print the path of its snapshot.

    REF is [hf:][datasets/]org/name[@revision]. Returns when every file is here and proven. Ctrl-C
    cancels the download and keeps what was fetched. With --json the last line is the download:
    {id, model, commit, state, bytes_total, …, path}; if it failed, "error" in it says why.
    """
    reference = ModelReference.parse(ref)
    client = Client(local, store)
    started = client.pull(
        str(reference.repo), reference.revision, include, exclude, token=token or None
    )
    if detach:
        if is_json:
            echo_json(started)
        else:
            click.echo(f"p2pcache status {reference} shows how far it is.", err=True)
            click.echo(str(started.get("id", "")))
        return
    job = _follow(client, reference, started, is_json=is_json)
    if is_json:
        echo_json(job)
    elif job.get("path"):
        click.echo(str(job["path"]))


@click.command(
    cls=Command,
    examples="p2pcache pin sentence-transformers/all-MiniLM-L6-v2",
    exit_codes=tuple(EXIT_CODES),
)
@click.argument("ref")
@token_option
@client_options
def pin(ref: str, token: str | None, local: str | None, store: Path | None, is_json: bool) -> None:
    """
    Fetch a model as pull does, then protect it from eviction.

    With --json the last line is the download, with "pinned": true.
    """
    reference = ModelReference.parse(ref)
    client = Client(local, store)
    started = client.pull(str(reference.repo), reference.revision, token=token or None)
    job = _follow(client, reference, started, is_json=is_json)
    client.pin(str(reference))
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


def _follow(
    client: Client, reference: ModelReference, started: dict[str, Any], *, is_json: bool
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
            return client.wait(download_id, show)
    except KeyboardInterrupt:
        raise InterruptedCommand(_cancel(client, reference, download_id)) from None
    except P2PCacheError as error:
        if is_json and last.get("state") in ("failed", "cancelled"):
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
