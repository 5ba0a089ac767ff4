"""
Owns the command that waits until a model is here: wait.

Knows nothing of HTTP.
Invariants: exit 0 says that the model is resident, or that the download is done, and nothing else
does; the snapshot's path is the last line of standard output.
Source: design.md §8 (command line).
"""

from __future__ import annotations

from pathlib import Path

import click

from p2pcache.cli.command import WAIT_EXIT_CODES, Command, client_options
from p2pcache.cli.output import echo_json
from p2pcache.cli.progress import open_progress
from p2pcache.client import Client


@click.command(
    cls=Command,
    examples="""
    p2pcache wait Qwen/Qwen3-8B --timeout 1200 && sbatch serve.sh
    p2pcache wait Qwen/Qwen3-8B@9216db5781bf21249d130ec9da846c4624c16137
    p2pcache wait "$(p2pcache pull --detach Qwen/Qwen3-8B --include '*.safetensors')"
    """,
    exit_codes=WAIT_EXIT_CODES,
)
@click.argument("ref")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds to wait; 0 looks once. Without it: as long as it takes.",
)
@client_options
def wait(
    ref: str, timeout_s: float | None, local: str | None, store: Path | None, is_json: bool
) -> None:
    """
    Wait until a model is here; print the path of its snapshot.

    REF is [hf:][datasets/]org/name[@revision], or the id of a download, as pull --detach prints
    it. Fetches nothing by itself: somebody pulls, here or for this machine. A download that fails
    ends the wait with its cause; so does one that was for some of the files, unless it is waited
    for by its id. The daemon may be restarted meanwhile. Ctrl-C ends the wait, not the download.
    With --json: the residency, or the download.
    """
    client = Client(local, store)
    with open_progress(ref, is_silent=is_json) as progress:
        found = client.wait(ref, progress.show, timeout_s=timeout_s)
    if is_json:
        echo_json(found)
    elif found.get("path"):
        click.echo(str(found["path"]))
