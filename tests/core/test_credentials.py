"""
Owns the tests of core.credentials: a token shows nowhere.

Knows nothing of hubs.
Invariants: only headers() and secret_bytes() hand the token out.
Source: core/credentials.py.
"""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.credentials import ANONYMOUS, TOKEN_CHARS_MAX, Credentials
from p2pcache.core.upstream import UpstreamLocation
from p2pcache.errors import InputError

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


def test_credentials_any_text_form_hides_the_token(caplog: pytest.LogCaptureFixture) -> None:
    """repr, str, format, % and a log line never show it."""
    credentials = Credentials(TOKEN)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").info("asking with %s and %r", credentials, credentials)
    forms = [
        repr(credentials),
        str(credentials),
        f"{credentials}",
        f"{credentials!r:>40}",
        "{}".format([credentials]),  # noqa: UP032
        "%s" % credentials,  # noqa: UP031
        caplog.text,
    ]
    assert not [form for form in forms if TOKEN in form]


def test_credentials_location_repr_hides_the_headers() -> None:
    """The dataclass that carries headers does not print them."""
    location = UpstreamLocation(
        "http://hub", "http://hub/x", "a file", headers=Credentials(TOKEN).headers()
    )
    assert TOKEN not in repr(location)
    assert TOKEN not in f"{location}"
    assert TOKEN not in str([location])
    assert location.headers == {"Authorization": f"Bearer {TOKEN}"}


def test_credentials_malformed_token_error_does_not_repeat_it() -> None:
    """The message of a refused token does not show the token."""
    with pytest.raises(InputError) as caught:
        Credentials(TOKEN + "\n")
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "token", ["", "a\nb", "a\r\nX-Evil: 1", "a\x00", "é", "\ud800", "x" * (TOKEN_CHARS_MAX + 1)]
)
def test_credentials_unsendable_token_is_refused(token: str) -> None:
    """What cannot be in a header, or could end one, is an input error."""
    with pytest.raises(InputError):
        Credentials(token)


@pytest.mark.parametrize(
    "header", [None, "", "Basic dXNlcjpwdw==", "Bearer", "Bearer ", "Bearer   ", "bear x"]
)
def test_credentials_no_bearer_token_is_anonymous(header: str | None) -> None:
    """Other schemes and empty tokens count as no token."""
    credentials = Credentials.from_authorization(header)
    assert credentials.is_anonymous
    assert credentials.headers() == {}
    assert credentials.secret_bytes() == b""


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer   {TOKEN}  ", f"BEARER {TOKEN}"])
def test_credentials_bearer_token_is_read(header: str) -> None:
    """The scheme is case-insensitive and spaces around the token do not count."""
    credentials = Credentials.from_authorization(header)
    assert not credentials.is_anonymous
    assert credentials.headers() == {"Authorization": f"Bearer {TOKEN}"}
    assert credentials.secret_bytes() == TOKEN.encode()


@given(st.text())
def test_credentials_any_header_is_read_or_refused(header: str) -> None:
    """Whatever the header, the token can be sent or InputError is raised."""
    try:
        credentials = Credentials.from_authorization(header)
    except InputError:
        return
    for text in credentials.headers().values():
        assert text.isascii()
        assert text.isprintable()


def test_credentials_anonymous_says_so() -> None:
    """The shared anonymous caller has a readable form."""
    assert repr(ANONYMOUS) == "<Credentials anonymous>"


@pytest.mark.parametrize(
    ("token", "cookie"),
    [(TOKEN, f"m_session_id={TOKEN}"), ("a;b", None), ('a"b', None), ("a b", None), ("a,b", None)],
)
def test_credentials_cookie_holds_the_token_or_is_left_out(token: str, cookie: str | None) -> None:
    """A hub that looks at a cookie finds it there, unless it would end the cookie early."""
    shown = Credentials(token).headers(cookie="m_session_id")
    assert shown["Authorization"] == f"Bearer {token}"
    assert shown.get("Cookie") == cookie


def test_credentials_of_nobody_make_no_cookie() -> None:
    """Anonymous is anonymous."""
    assert ANONYMOUS.headers(cookie="m_session_id") == {}
