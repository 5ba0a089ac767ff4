"""
Owns what a person sees while a download runs, on standard error.

Knows nothing of HTTP; it is shown the states of a download, as the daemon says them.
Invariants: nothing is written to standard output; a terminal has one bar, a log nothing at first,
and a line now and then of what takes long.
Source: tqdm; design.md §8 (downloads).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Protocol

import click

from p2pcache.cli.output import show_duration, show_share, show_size, show_text
from p2pcache.clock import Clock, SystemClock

# A line per ten seconds: a job's log of an hour's download has a few hundred lines.
LINE_INTERVAL_S = 10.0

OnProgress = Callable[[dict[str, Any]], None]


class Progress(Protocol):
    """Shows the states of one download. One thread."""

    def show(self, job: dict[str, Any]) -> None:
        """Show a state; called often."""
        ...


class ProgressBar:
    """A bar in bytes, with where they came from beside it."""

    def __init__(self, title: str) -> None:
        from tqdm import tqdm

        # Its watching thread helps bars that are updated rarely; ours is updated all the time.
        tqdm.monitor_interval = 0
        self._bar = tqdm(
            desc=title,
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            file=sys.stderr,
            dynamic_ncols=True,
            leave=True,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def show(self, job: dict[str, Any]) -> None:
        """Move the bar to a state."""
        total = job.get("bytes_total")
        if isinstance(total, int) and total > 0:
            self._bar.total = total
        done = job.get("bytes_done")
        self._bar.n = done if isinstance(done, int) else 0
        shown = (show_text(job.get("state")), show_sources(job))
        self._bar.set_postfix_str("; ".join(filter(None, shown)))


class ProgressLines:
    """
    Nothing for ten seconds, then a line in every ten, and one when the state changes.

    A script that is done by then has the outcome alone; the log of a job of hours shows that it
    goes on. A download's last line says where its bytes came from.
    """

    def __init__(self, title: str, *, clock: Clock | None = None) -> None:
        self._title = title
        self._clock = clock or SystemClock()
        self._state: object = None
        self._shown_s = self._clock.monotonic_s()
        self._is_late = False

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def show(self, job: dict[str, Any]) -> None:
        """Print a line, if it is time for one."""
        now_s = self._clock.monotonic_s()
        state = job.get("state")
        self._is_late = self._is_late or now_s - self._shown_s >= LINE_INTERVAL_S
        is_due = state != self._state or now_s - self._shown_s >= LINE_INTERVAL_S
        # Where the bytes came from is an outcome, not progress.
        is_outcome = state == "done" and bool(show_sources(job))
        if not is_outcome and not (self._is_late and is_due):
            return
        self._state, self._shown_s = state, now_s
        done, total = job.get("bytes_done"), job.get("bytes_total")
        line = f"{self._title}: {show_text(state)}"
        if isinstance(total, int) and total > 0:
            line += f", {show_size(done)} of {show_size(total)} ({show_share(done, total)})"
            line += f"; {show_sources(job)}" if show_sources(job) else ""
        if state == "downloading" and job.get("eta_s") is not None:
            line += f"; {show_duration(job.get('eta_s'))} left"
        click.echo(line, err=True)


class _Silent:
    """Shows nothing: standard output has the JSON, and nobody reads along."""

    def show(self, job: dict[str, Any]) -> None:
        """Do nothing."""


def open_progress(title: str, *, is_silent: bool) -> AbstractContextManager[Progress]:
    """Return the display that fits: a bar on a terminal, lines elsewhere, nothing if silent."""
    if is_silent:
        return nullcontext(_Silent())
    return ProgressBar(title) if sys.stderr.isatty() else ProgressLines(title)


def show_sources(job: dict[str, Any]) -> str:
    """Return where the bytes came from: peers 1.2 GB, upstream 3.4 MB, disk 0 B; '' if unsaid."""
    said = [name for name in ("peers", "upstream", "disk") if f"bytes_from_{name}" in job]
    return ", ".join(f"{name} {show_size(job[f'bytes_from_{name}'])}" for name in said)
