"""
Owns the tests of core.ranges.

Knows nothing of files.
Invariants: what parse_range selects is what a byte-by-byte reading of RFC 9110 selects.
Source: core/ranges.py; RFC 9110 §14.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.ranges import ByteRange, parse_content_range, parse_range
from p2pcache.errors import InvalidRangeError, UpstreamProtocolError

Outcome = list[int] | str


def select_by_hand(first: int | None, last: int | None, size_bytes: int) -> Outcome:
    """Pick the bytes of a range one by one, as RFC 9110 §14.1.2 words it."""
    if first is None and last is None:
        return "ignored"
    if first is None:
        assert last is not None
        chosen = [n for n in range(size_bytes) if n >= size_bytes - last]
    elif last is None:
        chosen = [n for n in range(size_bytes) if n >= first]
    elif last < first:
        return "ignored"
    else:
        chosen = [n for n in range(size_bytes) if first <= n <= last]
    return chosen or "416"


numbers = st.none() | st.integers(0, 30)


@given(numbers, numbers, st.integers(0, 20), st.sampled_from(["", " ", "  "]))
def test_range_any_pair_selects_what_a_reading_by_hand_does(
    first: int | None, last: int | None, size_bytes: int, space: str
) -> None:
    """The parser agrees with a brute-force reading of the RFC."""
    texts = ["" if n is None else str(n) for n in (first, last)]
    header = f"{space}bytes={space}{texts[0]}-{texts[1]}{space}"
    outcome: Outcome
    try:
        found = parse_range(header, size_bytes)
        outcome = "ignored" if found is None else list(range(found.start, found.end + 1))
    except InvalidRangeError:
        outcome = "416"
    assert outcome == select_by_hand(first, last, size_bytes)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=1-2,4-5",
        "items=0-1",
        "bytes=5-2",
        "bytes=--5",
        "bytes=+1-2",
        "bytes=0x1-2",
        "bytes=١-٢",
        "bytes=0-1\x00",
        "bytes=" + "9" * 20 + "-",
        "bytes=0-" + "9" * 5000,
    ],
)
def test_range_unreadable_header_means_the_whole_file(header: str | None) -> None:
    """What the RFC tells us to ignore is ignored, and long numbers are never computed with."""
    assert parse_range(header, 10) is None


def test_range_beyond_the_end_error_has_status_416() -> None:
    """The error carries the status that the RFC asks for."""
    with pytest.raises(InvalidRangeError) as caught:
        parse_range("bytes=10-", 10)
    assert caught.value.http_status == 416


@given(st.text())
def test_range_any_text_is_a_range_inside_or_nothing(header: str) -> None:
    """Whatever the header, the range is inside the file and not empty."""
    try:
        found = parse_range(header, 100)
    except InvalidRangeError:
        return
    assert found is None or 0 <= found.start <= found.end < 100


@given(st.integers(1, 1000), st.data())
def test_content_range_own_form_is_read_back(total: int, data: st.DataObject) -> None:
    """parse_content_range is the inverse of to_content_range."""
    start = data.draw(st.integers(0, total - 1))
    end = data.draw(st.integers(start, total - 1))
    sent = ByteRange(start, end, total)
    assert parse_content_range(sent.to_content_range()) == sent
    assert sent.length == len(range(start, end + 1))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes 0-1/*",
        "bytes */10",
        "bytes 0-1",
        "bytes=0-1/10",
        "bytes 5-4/10",
        "bytes 0-10/10",
        "bytes 0-0/0",
        "bytes 0-1/" + "9" * 20,
        "bytes ٠-١/١٠",
        "bytes -1-5/10",
    ],
)
def test_content_range_impossible_header_is_the_upstreams_fault(header: str | None) -> None:
    """A 206 that does not say what it holds is a protocol error."""
    with pytest.raises(UpstreamProtocolError):
        parse_content_range(header)
