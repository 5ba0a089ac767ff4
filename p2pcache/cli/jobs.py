"""
Owns the command that lists downloads, and pauses, resumes, cancels or follows one: jobs.

Knows nothing of HTTP.
Invariants: --json prints what the daemon said, unchanged; Ctrl-C while following leaves the
download alone.
Source: design.md §8 (command line).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from p2pcache.cli.command import PULL_EXIT_CODES, Command, InterruptedCommand, client_options
from p2pcache.cli.downloads import token_option
from p2pcache.cli.output import (
    echo_fields,
    echo_json,
    echo_table,
    rows_of,
    show_duration,
    show_rate,
    show_share,
    show_size,
    show_text,
    show_time,
)
from p2pcache.cli.progress import open_progress
from p2pcache.client import FINAL_STATES, Client
from p2pcache.errors import InputError


@click.command(
    cls=Command,
    examples="""
    p2pcache jobs
    p2pcache jobs 3df5501a33b83cc6
    p2pcache jobs --pause 3df5501a33b83cc6
    """,
    exit_codes=PULL_EXIT_CODES,
)
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--all", "is_all", is_flag=True, help="Also those that have ended.")
@click.option("--pause", metavar="ID", help="Stop a download until it is resumed.")
@click.option("--resume", metavar="ID", help="Let a paused download go on.")
@click.option("--cancel", metavar="ID", help="Stop a download for good; what it fetched is kept.")
@click.option("--follow", metavar="ID", help="Show a download until it ends.")
@token_option
@client_options
def jobs(
    job_id: str | None,
    is_all: bool,
    pause: str | None,
    resume: str | None,
    cancel: str | None,
    follow: str | None,
    token: str | None,
    local: str | None,
    store: Path | None,
    is_json: bool,
) -> None:
    """
    List the downloads that have not ended, or show one.

    Downloads go on when the daemon is started again. One that was ordered with a token waits then,
    if the hub wants it: tokens are not kept. Resume it with --token.
    """
    client = Client(local, store)
    chosen: list[tuple[str | None, Callable[[str], dict[str, Any]]]] = [
        (job_id, client.download),
        (pause, client.pause),
        (resume, lambda wanted: client.resume(wanted, token or None)),
        (cancel, client.cancel),
        (follow, lambda wanted: _follow(client, wanted, is_json=is_json)),
    ]
    verbs = [(wanted, verb) for wanted, verb in chosen if wanted]
    if len(verbs) > 1:
        raise InputError(
            "Ask for one thing at a time: ID, --pause, --resume, --cancel or --follow."
        )
    for wanted, verb in verbs:
        job = verb(str(wanted))
        if is_json:
            echo_json(job)
        else:
            _echo_job(job)
        return
    answer = client.downloads()
    if is_json:
        echo_json(answer)
        return
    listed = rows_of(answer, "downloads")
    _echo_jobs([j for j in listed if is_all or j.get("state") not in FINAL_STATES], is_all=is_all)


def _echo_jobs(listed: list[dict[str, Any]], *, is_all: bool) -> None:
    if not listed:
        hint = "" if is_all else "; those that have ended: p2pcache jobs --all"
        click.echo(f"Nothing is being downloaded{hint}.", err=True)
        return
    echo_table(
        ("ID", "MODEL", "STATE", "DONE", "SIZE", "RATE", "LEFT", "ON"),
        (
            (
                show_text(job.get("id")),
                f"{show_text(job.get('model'))}@{show_text(job.get('revision'))}",
                show_text(job.get("state")),
                show_share(job.get("bytes_done"), job.get("bytes_total")),
                show_size(job.get("bytes_total")),
                show_rate(job.get("rate_bps")),
                show_duration(job.get("eta_s")),
                ", ".join(show_text(w.get("name")) for w in rows_of(job, "workers")) or "here",
            )
            for job in listed
        ),
    )


def _echo_job(job: dict[str, Any]) -> None:
    error, left_out = job.get("error"), job.get("left_out")
    done = f"{show_size(job.get('bytes_done'))} of {show_size(job.get('bytes_total'))}"
    fields = [
        ("id", show_text(job.get("id"))),
        ("model", f"{show_text(job.get('model'))}@{show_text(job.get('revision'))}"),
        ("commit", show_text(job.get("commit"))),
        ("state", show_text(job.get("state"))),
        ("done", f"{done} ({show_share(job.get('bytes_done'), job.get('bytes_total'))})"),
        ("from peers", show_size(job.get("bytes_from_peers"))),
        ("from the hub", show_size(job.get("bytes_from_upstream"))),
        ("from disk", show_size(job.get("bytes_from_disk"))),
        ("rate", show_rate(job.get("rate_bps"))),
        ("time left", show_duration(job.get("eta_s"))),
        ("priority", show_text(job.get("priority"))),
        ("ordered", show_time(job.get("added_at"))),
    ]
    if isinstance(left_out, dict):
        files, size = show_text(left_out.get("files")), show_size(left_out.get("bytes"))
        fields.append(("left out", f"{files} files, {size}; get them with --include '*'"))
    if job.get("path"):
        fields.append(("path", show_text(job.get("download_path") or job.get("path"))))
    if isinstance(error, dict):
        fields.append(("error", show_text(error.get("message"))))
    echo_fields(fields)
    for worker in rows_of(job, "workers"):
        failure = worker.get("error")
        why = f": {show_text(failure.get('message'))}" if isinstance(failure, dict) else ""
        share = show_share(worker.get("bytes_done"), worker.get("bytes_total"))
        away = "" if worker.get("reachable") else ", does not answer"
        name, state = show_text(worker.get("name")), show_text(worker.get("state"))
        click.echo(f"  {name}: {state}, {share}{away}{why}")


def _follow(client: Client, job_id: str, *, is_json: bool) -> dict[str, Any]:
    title = show_text(client.download(job_id).get("model"))
    try:
        with open_progress(title, is_silent=is_json) as progress:
            return client.wait(job_id, progress.show)
    except KeyboardInterrupt:
        raise InterruptedCommand(f"The download {job_id} goes on.") from None
