"""
Owns the command that looks at every file again: check.

Knows nothing of HTTP or of how files are hashed.
Invariants: exit code 11 as long as a file is damaged and not here again; with --offline nothing is
asked of a daemon, a peer or the hub.
Source: design.md §8 (command line); docs/how-to/repair-store.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from p2pcache.cli.command import (
    CLIENT_EXIT_CODES,
    Command,
    InterruptedCommand,
    client_options,
)
from p2pcache.cli.output import (
    echo_json,
    echo_table,
    rows_of,
    show_size,
    show_text,
)
from p2pcache.cli.progress import open_progress
from p2pcache.client import CheckClient, default_store, find_named_store
from p2pcache.core.sizes import parse_size
from p2pcache.errors import InputError, IntegrityError

POLL_S = 0.25
_EXIT_CODES = tuple(sorted({*CLIENT_EXIT_CODES, IntegrityError.exit_code}))
# Chunk indexes in a line of the table; --json has all.
_CHUNKS_SHOWN_MAX = 6


@click.command(
    cls=Command,
    examples="""
    p2pcache check --repair
    p2pcache check --rate 50MB/s --time 3600
    p2pcache check --offline --store /data/p2pcache
    """,
    exit_codes=_EXIT_CODES,
)
@click.option(
    "--repair",
    is_flag=True,
    help="Fetch again what is damaged, from peers or the hub, and wait for it.",
)
@click.option("--rate", metavar="SIZE/s", help="Read no faster than this, for example 50MB/s.")
@click.option(
    "--time",
    "budget_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Stop after so many seconds; the next check goes on from there.",
)
@click.option(
    "--anew", is_flag=True, help="Begin again, also if a check that was stopped is not through."
)
@click.option(
    "--offline",
    is_flag=True,
    help="Look at the store itself, without a daemon and without network. Stop the daemon first.",
)
@client_options
def check(
    repair: bool,
    rate: str | None,
    budget_s: float | None,
    anew: bool,
    offline: bool,
    local: str | None,
    store: Path | None,
    is_json: bool,
) -> None:
    """
    Hash every file of the store again, and name what is damaged.

    What is damaged is set aside at once, so that nobody reads a wrong byte; its good chunks are
    kept. The daemon fetches the rest of public files within minutes by itself, with --repair now.
    A check that was stopped, also by Ctrl-C, is continued by the next one. The daemon checks
    everything once a week by itself. Ends with 11 while a damaged file is not here again. With
    --json: {state, started_at, blobs_total, blobs_done, bytes_total, bytes_done, rate_bps,
    damaged}.
    """
    rate_bps = None if rate is None else read_rate(rate)
    if offline:
        if repair:
            raise InputError(
                "--repair asks peers and the hub, --offline asks nobody; leave one of them out."
            )
        folder = find_named_store(store) or default_store()
        answer = _check_offline(folder, rate_bps, budget_s, is_anew=anew, is_json=is_json)
    else:
        client = CheckClient(local, store)
        client.start(is_repair=repair, rate_bps=rate_bps, budget_s=budget_s, is_anew=anew)
        answer = _follow(client, is_json=is_json)
    if is_json:
        echo_json(answer)
    else:
        _echo_outcome(answer)
    if any(row.get("state") != "healed" for row in rows_of(answer, "damaged")):
        click.get_current_context().exit(IntegrityError.exit_code)


def read_rate(text: str) -> int:
    """
    Read a size per second.

    Raises:
        InputError: It is none.
    """
    rate_bps = parse_size(text.strip().removesuffix("/s"))
    if rate_bps == 0:
        raise InputError("A check without any bytes per second never ends; give more.")
    return rate_bps


def _follow(client: CheckClient, *, is_json: bool) -> dict[str, Any]:
    """Show a check until it ends; return it."""
    try:
        with open_progress("check", is_silent=is_json) as progress:
            while True:
                answer = client.show()
                progress.show(answer)
                if answer.get("state") != "running":
                    return answer
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        client.stop()
        raise InterruptedCommand(
            "Interrupted; the check is stopped. The next one goes on from there."
        ) from None


def _check_offline(
    store: Path, rate_bps: float | None, budget_s: float | None, *, is_anew: bool, is_json: bool
) -> dict[str, Any]:
    # Here, for the engine takes longer to import than most commands to run.
    from p2pcache.daemon.check_api import describe_check
    from p2pcache.engine.checkup import CheckOrder, CheckRun
    from p2pcache.engine.offline import OfflineCheck

    order = CheckOrder(rate_bps=rate_bps, budget_s=budget_s, is_anew=is_anew)
    offline = OfflineCheck(store, order)

    def describe(run: CheckRun) -> dict[str, Any]:
        return describe_check(run, offline.damages, now_s=time.monotonic(), shows_all=True)

    try:
        with offline.open(), open_progress("check", is_silent=is_json) as progress:
            offline.look_at_all(lambda run: progress.show(describe(run)))
            return describe(offline.run)
    except KeyboardInterrupt:
        raise InterruptedCommand("Interrupted; the next check goes on from there.") from None


def _echo_outcome(answer: dict[str, Any]) -> None:
    damaged = rows_of(answer, "damaged")
    looked_at = (
        f"{show_text(answer.get('blobs_done'))} of {show_text(answer.get('blobs_total'))} files, "
        f"{show_size(answer.get('bytes_done'))}"
    )
    if answer.get("state") == "stopped":
        click.echo(f"Stopped after {looked_at}; the next check goes on from there.")
    else:
        click.echo(f"Checked {looked_at}: {_count(damaged)}.")
    if damaged:
        click.echo()
        echo_table(
            ("STATE", "CHUNKS", "FILE", "DETAIL"),
            (
                (
                    show_text(row.get("state")),
                    _show_chunks(row.get("chunks")),
                    _show_file(row),
                    show_text(row.get("detail")),
                )
                for row in damaged
            ),
        )


def _count(damaged: list[dict[str, object]]) -> str:
    """Say how many files are damaged, and how many are healed."""
    if not damaged:
        return "none is damaged"
    healed = sum(row.get("state") == "healed" for row in damaged)
    verb = "was" if len(damaged) == 1 else "were"
    return f"{len(damaged)} {verb} damaged, {healed} healed"


def _show_chunks(value: object) -> str:
    if not isinstance(value, list) or not value:
        return show_text(None)
    shown = ", ".join(show_text(index) for index in value[:_CHUNKS_SHOWN_MAX])
    more = len(value) - _CHUNKS_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def _show_file(row: dict[str, object]) -> str:
    """Return the first place of a file, and how many others it has; its digest if it has none."""
    files = row.get("files")
    if not isinstance(files, list) or not files:
        return show_text(row.get("blob"))
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return show_text(files[0]) + more
