"""
Owns the tests of how values and progress are shown.

Knows nothing of commands.
Invariants: time is a ManualClock.
Source: p2pcache/cli/output.py and progress.py.
"""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.cli.output import show_duration, show_rate, show_share, show_size, show_text
from p2pcache.cli.progress import ProgressBar, ProgressLines, open_progress
from p2pcache.clock import ManualClock
from tests.cli.fakedaemon import make_job


class Terminal(io.StringIO):
    """A text stream that says that somebody looks at it."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (4_500_000_000_000, "4.5 TB"),
        (10**21, "1000000.0 PB"),
        (None, "-"),
        (True, "-"),
        ("1", "-"),
    ],
)
def test_show_size_of_value_has_fitting_unit(value: object, expected: str) -> None:
    """Decimal units, one digit; what is no number is '-'."""
    assert show_size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3_661, "1h01m"),
        (90_000, "1d01h"),
        (-1, "-"),
        (float("nan"), "-"),
        (float("inf"), "-"),
        (None, "-"),
    ],
)
def test_show_duration_of_value_has_two_units(value: object, expected: str) -> None:
    """Never more than two units; what is no duration is '-'."""
    assert show_duration(value) == expected


def test_show_share_of_almost_all_is_not_all() -> None:
    """100 % means that nothing is missing."""
    assert show_share(999_999, 1_000_000) == "99 %"
    assert show_share(0, 0) == "100 %"
    assert show_share(None, 5) == "-"


def test_show_rate_of_nothing_is_missing() -> None:
    """A peer that was never asked has no rate."""
    assert [show_rate(value) for value in (0, None, 1_500)] == ["-", "-", "1.5 kB/s"]


@given(st.text(max_size=50))
def test_show_text_of_any_text_is_printable(text: str) -> None:
    """Nothing moves the cursor or starts a line."""
    assert show_text(text).isprintable()


def test_progress_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """None for ten seconds, then when the state changes, else one in ten seconds."""
    clock = ManualClock()
    lines = ProgressLines("org/name", clock=clock)
    lines.show(make_job("resolving"))
    for seconds in (0, 1, 1, 8, 5, 5, 1):
        clock.advance(seconds)
        lines.show(make_job("downloading", eta_s=None))
    lines.show(make_job("verifying"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(",")[0] for line in captured.err.splitlines()] == [
        "org/name: downloading",
        "org/name: downloading",
        "org/name: verifying",
    ]


def test_open_progress_on_terminal_is_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar counts bytes and says where they came from."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    with open_progress("org/name", is_silent=False) as progress:
        assert isinstance(progress, ProgressBar)
        progress.show({"state": "resolving"})
        progress.show(make_job("downloading"))
    last = terminal.getvalue().split("\r")[-1]
    assert "org/name:  25%" in last
    assert "500/2.00k" in last
    assert "downloading; peers 500 B, upstream 0 B, disk 0 B" in last


def test_open_progress_silent_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json nobody reads along."""
    with open_progress("org/name", is_silent=True) as progress:
        progress.show(make_job("downloading"))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
