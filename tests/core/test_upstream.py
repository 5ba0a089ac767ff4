"""
Owns the tests of core.upstream.

Knows nothing of connections.
Invariants: a token stays at the hub's origin; https stays https; every status has one meaning.
Source: core/upstream.py; RFC 9110 §15.4.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.upstream import (
    error_of_answer,
    follow_redirect,
    origin_of,
)
from p2pcache.errors import (
    EntryNotFoundError,
    GatedRepositoryError,
    P2PCacheError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    UpstreamAuthError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)

HUB = "https://hub.example"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://a/x", ("http", "a", 80)),
        ("https://A.Example", ("https", "a.example", 443)),
        ("http://a:8080/x?y", ("http", "a", 8080)),
        ("http://[::1]:7/x", ("http", "::1", 7)),
        ("https://user:pw@a/x", ("https", "a", 443)),
    ],
)
def test_origin_of_http_address_is_read(url: str, origin: tuple[str, str, int]) -> None:
    """Scheme, host and port, with the scheme's default."""
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "ftp://a",
        "file:///etc/passwd",
        "http://",
        "http://a:99999",
        "http://a:b",
        "http://[",
    ],
)
def test_origin_of_other_address_is_refused(url: str) -> None:
    """What is no http address, or cannot be parsed, is a protocol error and nothing else."""
    with pytest.raises(UpstreamProtocolError):
        origin_of(url)


@pytest.mark.parametrize(
    ("current", "location", "url", "may_send_token"),
    [
        (f"{HUB}/a", "/b", f"{HUB}/b", True),
        (f"{HUB}/a/b", "c?d", f"{HUB}/a/c?d", True),
        (f"{HUB}/a", "https://hub.example:443/b", "https://hub.example:443/b", True),
        (f"{HUB}/a", "//cdn.example/b", "https://cdn.example/b", False),
        (f"{HUB}/a", "https://cdn.example/b?sig=1", "https://cdn.example/b?sig=1", False),
        (f"{HUB}/a", "https://hub.example:444/b", "https://hub.example:444/b", False),
        (f"{HUB}/a", "https://hub.example.evil/b", "https://hub.example.evil/b", False),
        (f"{HUB}/a", "https://hub.example@evil/b", "https://hub.example@evil/b", False),
        ("https://cdn.example/b", f"{HUB}/c", f"{HUB}/c", True),
        ("https://cdn.example/b", "/c", "https://cdn.example/c", False),
    ],
)
def test_redirect_next_hop_gets_the_token_only_at_the_hub(
    current: str, location: str, url: str, may_send_token: bool
) -> None:
    """Scheme, host and port must all be the hub's own."""
    hop = follow_redirect(HUB, current, location)
    assert (hop.url, hop.may_send_token) == (url, may_send_token)


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "http://hub.example/b",
        "http://cdn.example/b",
        "file:///etc/passwd",
        "https://a:x/",
        "http://[",
        "//[::1",
        "https://a/\r\nX-Evil: 1",
        "https://a/ b",
        "https://a/é",
        "javascript:alert(1)",
    ],
)
def test_redirect_to_a_bad_address_is_refused(location: str | None) -> None:
    """No downgrade, no other scheme, no address that splits a request; always one error."""
    with pytest.raises(UpstreamProtocolError):
        follow_redirect(HUB, f"{HUB}/a", location)


def test_redirect_from_http_may_become_https() -> None:
    """Only the way down is closed; a token does not follow to another scheme."""
    hop = follow_redirect("http://hub", "http://hub/a", "https://hub/a")
    assert hop.url == "https://hub/a"
    assert not hop.may_send_token


@given(st.text())
def test_redirect_any_location_is_followed_or_refused(location: str) -> None:
    """Whatever the header, the token only goes to the hub."""
    try:
        hop = follow_redirect(HUB, f"{HUB}/a", location)
    except UpstreamProtocolError:
        return
    assert origin_of(hop.url)[0] == "https"
    assert hop.may_send_token is (origin_of(hop.url) == origin_of(HUB))


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, GatedRepositoryError),
        (401, {"X-Error-Code": "GatedRepo"}, GatedRepositoryError),
        (404, {"X-Error-Code": "RevisionNotFound"}, RevisionNotFoundError),
        (404, {"X-Error-Code": "EntryNotFound"}, EntryNotFoundError),
        (404, {"X-Error-Code": "RepoNotFound"}, RepositoryNotFoundError),
        (401, {"X-Error-Code": "RepoNotFound"}, RepositoryNotFoundError),
        (404, {"x-error-code": "EntryNotFound"}, EntryNotFoundError),
        (401, {}, RepositoryNotFoundError),
        (404, {}, RepositoryNotFoundError),
        (401, {"X-Error-Message": "Invalid credentials in header"}, UpstreamAuthError),
        (403, {}, UpstreamAuthError),
        (429, {}, UpstreamRateLimitedError),
        (408, {}, UpstreamUnreachableError),
        (425, {}, UpstreamUnreachableError),
        (500, {}, UpstreamUnreachableError),
        (503, {"X-Error-Code": "?"}, UpstreamUnreachableError),
        (400, {}, UpstreamProtocolError),
        (416, {}, UpstreamProtocolError),
        (204, {}, UpstreamProtocolError),
    ],
)
def test_answer_status_and_code_mean_one_error(
    status: int, headers: dict[str, str], kind: type[P2PCacheError]
) -> None:
    """Missing, refused, slow down, down and nonsense are told apart."""
    error = error_of_answer(status, headers, "org/name", has_token=False)
    assert type(error) is kind
    assert "org/name" in str(error)


def test_answer_rate_limit_carries_the_pause() -> None:
    """Retry-After is read in any spelling of its name, RateLimit where it is missing."""
    for headers in ({"retry-after": "7"}, {"rateLIMIT": '"api";r=0;t=7'}):
        error = error_of_answer(429, headers, "x", has_token=False)
        assert isinstance(error, UpstreamRateLimitedError)
        assert error.retry_after_s == 7.0


def test_answer_message_of_the_hub_is_shown_cleaned_and_short() -> None:
    """What the hub says is passed on without control characters, up to a limit."""
    said = "no\x1b[31m" + "x" * 1000
    text = str(error_of_answer(503, {"X-Error-Message": said}, "y", has_token=False))
    assert "The hub says: no[31mxxx" in text
    assert "\x1b" not in text
    assert len(text) < 500


def test_answer_hint_depends_on_the_token() -> None:
    """Who has a token already is not told to pass one."""
    anonymous = error_of_answer(404, {}, "x", has_token=False)
    known = error_of_answer(404, {}, "x", has_token=True)
    assert "token" in str(anonymous)
    assert "token" not in str(known)
