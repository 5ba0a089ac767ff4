"""
Owns how values are shown: sizes, rates, durations, tables, JSON.

Knows nothing of the daemon; values of any type are taken, since a daemon of another release may
leave fields out.
Invariants: no control character of a daemon, a peer or a hub reaches the terminal.
Source: SI prefixes, as the hub's web pages show sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import click

Row = Sequence[str]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
MISSING = "-"


def echo_json(value: object, *, err: bool = False) -> None:
    """Print one JSON value on one line; with err on standard error."""
    click.echo(json.dumps(value, ensure_ascii=True), err=err)


def show_text(value: object) -> str:
    """Return a value in one line, without control characters; '-' for nothing."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(char if char.isprintable() else "?" for char in str(value))


def show_size(value: object) -> str:
    """Return a number of bytes with a decimal prefix: 1.2 GB."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    size = float(value)
    for unit in _UNITS:
        # Beyond 999.95 a number would show with four digits before its point.
        if abs(size) < 999.95 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def show_rate(value: object) -> str:
    """Return bytes per second; '-' for none."""
    return f"{show_size(value)}/s" if isinstance(value, int | float) and value else MISSING


def show_duration(value: object) -> str:
    """Return seconds as 45s, 3m20s, 5h07m or 2d03h."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return MISSING
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def show_time(value: object) -> str:
    """Show seconds since the epoch as UTC; a text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return show_text(value)
    try:
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return MISSING


def show_share(part: object, whole: object) -> str:
    """Return part of whole in percent, rounded down: 100 % means all of it."""
    if not isinstance(part, int) or not isinstance(whole, int):
        return MISSING
    return f"{100 * part // whole} %" if whole > 0 else "100 %"


def rows_of(answer: dict[str, object], key: str) -> list[dict[str, object]]:
    """Return the objects of a list field; [] where there is none."""
    value = answer.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def echo_table(head: Row, rows: Iterable[Row]) -> None:
    """Print columns that are as wide as their widest cell."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def echo_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print one field per line, the values under each other."""
    entries = list(fields)
    width = max(len(name) for name, _ in entries)
    for name, value in entries:
        click.echo(f"{name.ljust(width)}  {value}")
