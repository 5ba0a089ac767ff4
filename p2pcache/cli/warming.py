"""
Owns showing how a model is brought into memory, for the commands that do so.

Knows nothing of how that is done.
Invariants: standard output gets nothing; what could not be warmed is said, and is no error.
Source: store/warming.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pcache.cli.output import show_duration, show_size

if TYPE_CHECKING:
    from p2pcache.store.warming import Warmth


def warm_snapshot(
    folder: Path, include: Sequence[str], exclude: Sequence[str], *, is_silent: bool
) -> Warmth:
    """Bring the files of a pull into the page cache, as far as there is memory for them."""
    from p2pcache.store.warming import find_budget, list_snapshot_files, warm_files

    warmth = warm_files(list_snapshot_files(folder, include, exclude), find_budget())
    # What was there already is no news.
    if not is_silent and (warmth.bytes_read or warmth.bytes_warm < warmth.bytes_total):
        line = f"In memory: {show_size(warmth.bytes_warm)} of {show_size(warmth.bytes_total)}"
        if warmth.bytes_warm < warmth.bytes_total:
            line += f", the first ones; there is room for {show_size(warmth.budget_bytes)}"
        line += f" ({show_size(warmth.bytes_read)} read in {show_duration(warmth.elapsed_s)})"
        click.echo(line, err=True)
    return warmth
