"""
Owns the tests of core.durations.

Knows nothing of settings.
Invariants: every form that the docs name is read.
Source: core/durations.py.
"""

from __future__ import annotations

import pytest

from p2pcache.core.durations import parse_duration
from p2pcache.errors import InputError

DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("90", 90.0),
        ("90s", 90.0),
        ("10m", 600.0),
        (" 1.5h ", 5400.0),
        ("1 D", DAY_S),
        ("0.25s", 0.25),
    ],
)
def test_parse_duration_reads_what_people_write(text: str, seconds: float) -> None:
    """A number with a unit, or seconds."""
    assert parse_duration(text, s_max=DAY_S) == seconds


@pytest.mark.parametrize("text", ["", "none", "-1s", "1w", "1h30m", "inf", "1e3", "٣s", "1..5s"])
def test_parse_duration_nonsense_is_refused(text: str) -> None:
    """What could be read in two ways, or in none, is not guessed at."""
    with pytest.raises(InputError, match="write it like 90s"):
        parse_duration(text, s_max=DAY_S)


@pytest.mark.parametrize("text", ["25h", "86401", "999999999d"])
def test_parse_duration_beyond_its_limit_is_refused(text: str) -> None:
    """A setting says how much is too much."""
    with pytest.raises(InputError, match="at most 24h"):
        parse_duration(text, s_max=DAY_S)
