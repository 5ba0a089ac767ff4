"""
Owns the tests of core.ratelimit, with headers as hubs send them and as nobody should.

Knows nothing of connections.
Invariants: the ones that the module's docstring names.
Source: core/ratelimit.py; answers of the real hub as users reported them.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.ratelimit import (
    HEADER_CHARS_MAX,
    QUOTAS_MAX,
    RETRY_AFTER_S_MAX,
    Quota,
    find_pause_s,
    parse_retry_after,
    read_quotas,
)

DATE = "Sun, 22 Nov 2026 17:46:02 GMT"
# The same moment, in seconds since 1970.
DATE_S = 1_795_369_562
NAMES = (
    "RateLimit", "RateLimit-Policy", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Limit",
    "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After", "Date",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("301", RETRY_AFTER_S_MAX),
        ("9" * 5000, RETRY_AFTER_S_MAX),
        ("Sun, 22 Nov 2026 17:46:32 GMT", 30.0),
        ("Sunday, 22-Nov-26 17:46:32 GMT", 30.0),
        ("Sun Nov 22 17:46:32 2026", 30.0),
        ("Sun, 22 Nov 2026 19:46:32 +0200", 30.0),
        ("Sun, 22 Nov 2026 17:46:01 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Sun, 22 Nov 2099 17:46:02 GMT", RETRY_AFTER_S_MAX),
        ("Sun, 99 Nov 2026 17:46:02 GMT", None),
        ("Sun, 22 Nov 99999999 17:46:02 GMT", None),
        ("Sun, 22 Nov 2026 17:46:02 +9999999999", None),
        (DATE + "x" * 5000, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_within_our_limit(
    text: str | None, seconds: float | None
) -> None:
    """Both forms of the RFC, dates in all three spellings; anything else counts as not said."""
    assert parse_retry_after(text, DATE) == seconds


@pytest.mark.parametrize("date", [None, "", "now", "Sun, 99 Nov 2026 17:46:02 GMT"])
def test_retry_after_with_a_date_needs_to_know_what_time_it_is_there(date: str | None) -> None:
    """Our own clock may be wrong by hours; without the hub's there is no telling."""
    assert parse_retry_after("Sun, 22 Nov 2026 17:46:32 GMT", date) is None


@pytest.mark.parametrize(
    ("headers", "quotas"),
    [
        ({}, ()),
        ({"RateLimit-Policy": '"api";q=500;w=300'}, ()),
        # The real hub: the kind of window stands before the name.
        (
            {
                "RateLimit": '"resolvers";r=2998;t=172',
                "RateLimit-Policy": '"fixed window";"resolvers";q=3000;w=300',
            },
            (Quota("resolvers", 2998, 172.0, 3000),),
        ),
        ({"ratelimit": '"api";r=0;t=55'}, (Quota("api", 0, 55.0, None),)),
        # The draft: several, in any order, with parameters of no interest, a name with a comma.
        (
            {
                "RateLimit": '"api" ; t=55 ; r=9;pk=:cHJlY2lvdXM=: , "a,b";r=1;t=2',
                "RateLimit-Policy": '"a,b";w=1;q=10, "api";q=500;qu="requests";w=300',
            },
            (Quota("api", 9, 55.0, 500), Quota("a,b", 1, 2.0, 10)),
        ),
        ({"RateLimit": "default;r=3;t=4"}, (Quota("default", 3, 4.0, None),)),
        ({"RateLimit": '"api";r=3'}, (Quota("api", 3, None, None),)),
        # An older draft.
        (
            {"RateLimit": "limit=100, remaining=50, reset=40"},
            (Quota("", 50, 40.0, 100),),
        ),
        # Older ones: a field each, one column for each window.
        (
            {
                "RateLimit-Limit": "100, 100;w=60",
                "RateLimit-Remaining": "7",
                "RateLimit-Reset": "9",
            },
            (Quota("", 7, 9.0, 100),),
        ),
        (
            {"X-RateLimit-Remaining": "1, x, 14000", "x-ratelimit-reset": "1, 2, 1419704"},
            (Quota("", 1, 1.0, None), Quota("", 14000, RETRY_AFTER_S_MAX, None)),
        ),
        (
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(DATE_S + 20), "Date": DATE},
            (Quota("", 0, 20.0, None),),
        ),
        (
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(DATE_S + 20)},
            (Quota("", 0, None, None),),
        ),
    ],
)
def test_quotas_are_read_in_every_form(headers: dict[str, str], quotas: tuple[Quota, ...]) -> None:
    """What is left, until when, and of how much, as far as it was said."""
    assert read_quotas(headers) == quotas


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",,,",
        '"api"',
        '"api";r',
        '"api";r=-1;t=5',
        '"api";r=1.5',
        '"api";r=٣',
        '"api";r=' + "9" * 13,
        '"' + "a" * 65 + '";r=1;t=1',
        ";r=0;t=5",
        '"api',
        "remaining",
        "remaining=-1, reset=5",
        '"api";r=0;t=5' + " " * HEADER_CHARS_MAX,
    ],
)
def test_quota_that_makes_no_sense_is_not_read(text: str) -> None:
    """Half a word on limits is none."""
    assert read_quotas({"RateLimit": text}) == ()


def test_quotas_without_end_are_read_up_to_a_limit() -> None:
    """A hub names a handful."""
    assert len(read_quotas({"RateLimit": ",".join(['"a";r=1;t=1'] * 100)})) == QUOTAS_MAX


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({}, None),
        ({"Retry-After": "7", "RateLimit": '"api";r=0;t=55'}, 7.0),
        ({"retry-after": "soon", "ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=0;t=55, "pages";r=0;t=70, "x";r=1;t=99'}, 70.0),
        ({"RateLimit": '"api";r=1;t=55'}, None),
        ({"RateLimit": '"api";r=0'}, None),
        ({"RateLimit": '"api";r=0;t=99999999'}, RETRY_AFTER_S_MAX),
        ({"Retry-After": "Sun, 22 Nov 2026 17:46:32 GMT", "Date": DATE}, 30.0),
    ],
)
def test_pause_is_what_retry_after_says_else_the_longest_of_what_is_used_up(
    headers: dict[str, str], pause_s: float | None
) -> None:
    """A quota of which something is left asks for no pause."""
    assert find_pause_s(headers) == pause_s


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=200), max_size=5))
def test_any_headers_give_bounded_readings(headers: dict[str, str]) -> None:
    """Whatever a hub, or somebody in its place, sends."""
    check_readings(headers)


@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.text('"rtqw=;, 0123456789-.abcRGMTSun:Nov', max_size=80),
        max_size=5,
    )
)
def test_any_headers_of_the_right_letters_give_bounded_readings(headers: dict[str, str]) -> None:
    """The same, nearer to what is read."""
    check_readings(headers)


def check_readings(headers: dict[str, str]) -> None:
    """Insist that every reading is within its bounds."""
    pause_s = find_pause_s(headers)
    assert pause_s is None or 0 <= pause_s <= RETRY_AFTER_S_MAX
    quotas = read_quotas(headers)
    assert len(quotas) <= QUOTAS_MAX
    for quota in quotas:
        assert 0 <= quota.remaining < 10**12
        assert quota.reset_s is None or 0 <= quota.reset_s <= RETRY_AFTER_S_MAX
        assert quota.quota is None or 0 <= quota.quota < 10**12
