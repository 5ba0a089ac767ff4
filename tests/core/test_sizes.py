"""
Owns the tests of core.sizes.

Knows nothing of settings.
Invariants: the one that the module's docstring names.
Source: core/sizes.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.sizes import SIZE_BYTES_MAX, parse_size
from p2pcache.errors import InputError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("123456789", 123_456_789),
        ("500GB", 500 * 1000**3),
        ("500 gb", 500 * 1000**3),
        ("1.5TiB", 3 * 1024**4 // 2),
        ("64MiB", 64 * 1024**2),
        ("64Mi", 64 * 1024**2),
        ("2k", 2000),
        ("0.5B", 0),
        (" 1PB ", 1000**5),
    ],
)
def test_size_is_read_in_thousands_or_in_powers_of_two(text: str, size_bytes: int) -> None:
    """GB and GiB are told apart; a number alone is bytes."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "-1",
        "+1",
        "1e9",
        "1,5GB",
        "1 000",
        "5iB",
        "5EB",
        "0x10",
        "∞",
        "1..5",
        "٣GB",
        "inf",
    ],
)
def test_size_that_is_none_is_refused_with_an_example(text: str) -> None:
    """What could be read in two ways is not read at all."""
    with pytest.raises(InputError, match="500GB"):
        parse_size(text)


def test_size_beyond_any_disk_is_refused() -> None:
    """A unit too much shows at once, not as a quota that never binds."""
    assert parse_size(str(SIZE_BYTES_MAX)) == SIZE_BYTES_MAX
    with pytest.raises(InputError, match="any disk"):
        parse_size("5000PB")


@given(st.integers(0, SIZE_BYTES_MAX))
def test_size_in_plain_bytes_is_exact(size_bytes: int) -> None:
    """No float is in between."""
    assert parse_size(str(size_bytes)) == size_bytes
