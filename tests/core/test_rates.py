"""
Owns the tests of core.rates.

Knows nothing of settings.
Invariants: the ones that the module's docstring names.
Source: core/rates.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.rates import RATE_BPS_MAX, RATE_BPS_MIN, parse_rate
from p2pcache.errors import InputError


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [
        ("200Mbit", 25_000_000),
        ("200 mbit/s", 25_000_000),
        ("1Gbit", 125_000_000),
        ("1.5Gbit/s", 187_500_000),
        ("1Mbit", RATE_BPS_MIN),
        ("1000000bit", RATE_BPS_MIN),
        ("25MB/s", 25_000_000),
        ("25MB", 25_000_000),
        ("25MiB", 25 * 1024**2),
        ("25 MiB/s", 25 * 1024**2),
        ("8Mibit", 1024**2),
        (" 200000 ", 200_000),
        ("200000B/s", 200_000),
        ("none", None),
        (" None ", None),
        ("0", None),
        ("0Mbit", None),
    ],
)
def test_rate_is_read_in_bits_or_bytes(text: str, rate_bps: int | None) -> None:
    """Mbit and MB are told apart, MB and MiB too; nothing and none are no limit."""
    assert parse_rate(text) == rate_bps


@pytest.mark.parametrize(
    "text",
    [
        "", "fast", "-1", "200M", "200Mb", "200Mbps", "25mb/s", "25MB/h", "MB", "iB", "5iB/s",
        "1e9", "1,5Gbit", "٣Mbit", "inf", "25MB/s/s", "/s", "200000/s", "9" * 40,
    ],
)  # fmt: skip
def test_rate_that_is_none_is_refused_with_examples(text: str) -> None:
    """What could be bits or bytes is not read at all."""
    with pytest.raises(InputError, match="write it like 200Mbit, 25MB/s or 25MiB, or none"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["1", "124999", "100kB/s", "0.1bit"])
def test_rate_at_which_everybody_gives_up_is_refused(text: str) -> None:
    """A line that slow is left for dead by peers and clients; better told at the start."""
    with pytest.raises(InputError, match="less than 1Mbit"):
        parse_rate(text)


def test_rate_beyond_any_network_is_refused() -> None:
    """A unit too much shows at once, not as a cap that never binds."""
    assert parse_rate(str(RATE_BPS_MAX)) == RATE_BPS_MAX
    with pytest.raises(InputError, match="check the unit"):
        parse_rate("5000TB/s")


@given(st.integers(RATE_BPS_MIN, RATE_BPS_MAX))
def test_rate_in_plain_bytes_is_exact(rate_bps: int) -> None:
    """No float is in between."""
    assert parse_rate(str(rate_bps)) == rate_bps
