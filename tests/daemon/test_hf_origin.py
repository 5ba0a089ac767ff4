"""
Owns the tests of daemon.hf_origin: prefixes before the dialect, links that lead back.

Knows nothing of handlers.
Invariants: no link leads to the hub.
Source: daemon/hf_origin.py.
"""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.daemon.hf_origin import PREFIX_SEGMENTS_MAX, find_base, lead_back, split_prefix

HUB = "https://hub.example/mirror"
BASE = "http://127.0.0.1:7277/p"


@pytest.mark.parametrize(
    ("raw_path", "prefix", "address"),
    [
        ("/org/name/resolve/main/a", "", "/org/name/resolve/main/a"),
        ("//api/models/org/name", "", "/api/models/org/name"),
        ("///org/name/resolve/main/a", "", "/org/name/resolve/main/a"),
        ("/p/org/name/resolve/main/a?x=1", "/p", "/org/name/resolve/main/a?x=1"),
        ("/p/q/org/name/resolve/main/a", "/p/q", "/org/name/resolve/main/a"),
        ("/p/datasets/org/name/resolve/main/a", "/p", "/datasets/org/name/resolve/main/a"),
        ("/p/datasets/squad/resolve/main/a", "/p", "/datasets/squad/resolve/main/a"),
        ("/datasets/squad/resolve/main/a", "", "/datasets/squad/resolve/main/a"),
        ("/gpt2/resolve/main/a", "", "/gpt2/resolve/main/a"),
        ("/p/gpt2/resolve/main/a", "", "/p/gpt2/resolve/main/a"),
        ("/org/name/resolve/main/resolve/api/a", "", "/org/name/resolve/main/resolve/api/a"),
        ("/p/org/name/resolve/main/api/a", "/p", "/org/name/resolve/main/api/a"),
        (
            "/p/api/models/org/name/tree/main/a%2Fapi",
            "/p",
            "/api/models/org/name/tree/main/a%2Fapi",
        ),
        ("/p/api/telemetry/x", "/p", "/api/telemetry/x"),
        ("/kernels/org/name/resolve/main/a", "", "/kernels/org/name/resolve/main/a"),
        ("/p/kernels/org/name/resolve/main/a", "", "/p/kernels/org/name/resolve/main/a"),
        ("/../org/name/resolve/main/a", "", "/../org/name/resolve/main/a"),
        ("/%2e/org/name/resolve/main/a", "", "/%2e/org/name/resolve/main/a"),
        ("/1/2/3/4/5/org/name/resolve/main/a", "", "/1/2/3/4/5/org/name/resolve/main/a"),
        ("/_p2pcache/v1/api/models/x", "", "/_p2pcache/v1/api/models/x"),
        ("/", "", "/"),
        ("", "", "/"),
    ],
)
def test_prefix_is_split_from_the_address(raw_path: str, prefix: str, address: str) -> None:
    """What comes before the dialect is the prefix; what is not sure to be one is none."""
    assert split_prefix(raw_path) == (prefix, address)


@given(
    st.lists(st.sampled_from(["api", "resolve", "datasets", "models", "a", "..", "", "kernels"]))
)
def test_prefix_and_address_are_the_path(parts: list[str]) -> None:
    """Nothing is lost, whatever the path; a prefix is short and leads nowhere else."""
    raw_path = "/" + "/".join(parts)
    prefix, address = split_prefix(raw_path)
    assert prefix + address == "/" + raw_path.lstrip("/")
    assert address.startswith("/")
    assert prefix.count("/") <= PREFIX_SEGMENTS_MAX
    assert ".." not in prefix.split("/")


@pytest.mark.parametrize(
    ("link", "back"),
    [
        (
            f'<{HUB}/api/x?cursor=a%3D&b=c>; rel="next"',
            f'<{BASE}/api/x?cursor=a%3D&b=c>; rel="next"',
        ),
        ('<https://other.example/api/x>; rel="next"', f'<{BASE}/api/x>; rel="next"'),
        ("</api/x?c=1>; rel=next", f'<{BASE}/api/x?c=1>; rel="next"'),
        (f'<{HUB}/t>; rel="xet-auth", <{HUB}/n>; rel="next"', f'<{BASE}/n>; rel="next"'),
        (f'<{HUB}/t>; rel="xet-auth"', None),
        ("nonsense", None),
    ],
)
def test_link_to_the_next_page_leads_back(link: str, back: str | None) -> None:
    """Whatever host the hub names; other relations do not pass."""
    assert lead_back(link, hub_url=HUB, base=BASE) == back


def test_base_is_what_the_client_used() -> None:
    """A proxy's headers count where they have the form of an address."""
    plain = make_mocked_request("GET", "/api/x", headers={"Host": "127.0.0.1:1"})
    assert find_base(plain, "/p") == "http://127.0.0.1:1/p"
    headers = {"Host": "127.0.0.1:1", "X-Forwarded-Prefix": "/a/b/", "X-Forwarded-Host": "[::1]:8"}
    behind = make_mocked_request("GET", "/api/x", headers=headers)
    assert find_base(behind, "") == "http://[::1]:8/a/b"
    assert find_base(behind, "/a/b/c") == "http://[::1]:8/a/b/c"
    assert find_base(behind, "/a/bc") == "http://[::1]:8/a/b/a/bc"
    odd = {"Host": "h:1", "X-Forwarded-Prefix": "//evil", "X-Forwarded-Proto": "ftp"}
    assert find_base(make_mocked_request("GET", "/", headers=odd), "") == "http://h:1"
