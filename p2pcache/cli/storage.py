"""
Owns the command that tells how full the store is: storage.

Knows nothing of HTTP.
Invariants: --json prints what the daemon said, unchanged.
Source: design.md §8 (GET …/storage).
"""

from __future__ import annotations

from pathlib import Path

from click import command

from p2pcache.cli.command import CLIENT_EXIT_CODES, Command, client_options
from p2pcache.cli.output import echo_fields, echo_json, show_size, show_text
from p2pcache.client import Client


@command(cls=Command, examples="p2pcache storage", exit_codes=CLIENT_EXIT_CODES)
@client_options
def storage(local: str | None, store: Path | None, is_json: bool) -> None:
    """
    Tell what the store holds and how much room its disk has.
    """
    answer = Client(local, store).storage()
    if is_json:
        echo_json(answer)
        return
    echo_fields(
        (
            ("store", show_text(answer.get("store"))),
            ("files", f"{show_text(answer.get('blobs'))}, {show_size(answer.get('blobs_bytes'))}"),
            ("partial", show_size(answer.get("partial_bytes"))),
            ("disk free", show_size(answer.get("disk_free"))),
            ("disk total", show_size(answer.get("disk_total"))),
        )
    )
