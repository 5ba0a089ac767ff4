"""
Owns the tests of daemon.hf_path: which addresses are ours, and what they name.

Knows nothing of handlers.
Invariants: each part is decoded once; nothing that leaves a repository is ever returned.
Source: daemon/hf_path.py; docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.refs import parse_path, parse_revision
from p2pcache.daemon.hf_path import check_forwardable, parse_api_address, parse_file_address
from p2pcache.errors import InvalidNameError

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("raw_path", "repo", "revision", "path"),
    [
        ("/org/name/resolve/main/config.json", "org/name", "main", "config.json"),
        ("/gpt2/resolve/main/config.json", "gpt2", "main", "config.json"),
        ("/datasets/org/set/resolve/main/a.bin", "datasets/org/set", "main", "a.bin"),
        ("/datasets/squad/resolve/main/a.bin", "datasets/squad", "main", "a.bin"),
        ("/spaces/org/app/resolve/main/app.py", "spaces/org/app", "main", "app.py"),
        (f"/org/name/resolve/{SHA}/a/b/c.bin", "org/name", SHA, "a/b/c.bin"),
        ("/org/name/resolve/refs%2Fpr%2F1/x", "org/name", "refs/pr/1", "x"),
        ("/org/name/resolve/main/a%2Fb", "org/name", "main", "a/b"),
        ("/org/name/resolve/main/a%2Bb%20c%2520", "org/name", "main", "a+b c%20"),
        ("/org/name/resolve/main/n%C3%A9.txt", "org/name", "main", "né.txt"),
        ("/org/name/resolve/main/x?download=true", "org/name", "main", "x"),
        ("/org/name/resolve/main/resolve/main/x", "org/name", "main", "resolve/main/x"),
        ("/org/resolve/resolve/main/x", "org/resolve", "main", "x"),
        ("//org/name/resolve/main/x", "org/name", "main", "x"),
    ],
)
def test_file_address_is_read(raw_path: str, repo: str, revision: str, path: str) -> None:
    """Every form that clients use names repository, revision and path."""
    address = parse_file_address(raw_path)
    assert address is not None
    assert str(address.reference.repo) == repo
    assert (address.reference.revision, address.path) == (revision, path)


@pytest.mark.parametrize(
    "raw_path",
    [
        "/",
        "",
        "/org/name",
        "/org/name/resolve",
        "/org/name/resolve/main",
        "/org/name/blob/main/config.json",
        "/a/b/c/resolve/main/x",
        "/_p2pcache/v1/models",
        "/api/models/org/name",
    ],
)
def test_file_address_of_another_form_is_none(raw_path: str) -> None:
    """What is not a file's address is left to others."""
    assert parse_file_address(raw_path) is None


@pytest.mark.parametrize(
    "raw_path",
    [
        "/org/name/resolve/main/../../../etc/passwd",
        "/org/name/resolve/main/..%2F..%2Fetc%2Fpasswd",
        "/org/name/resolve/main/%2E%2E/x",
        "/org/name/resolve/main/%2Fetc%2Fpasswd",
        "/org/name/resolve/main/a//b",
        "/org/name/resolve/main/a%00b",
        "/org/name/resolve/main/a%5Cb",
        "/org/name/resolve/main/a%0Ab",
        "/org/name/resolve/main/%FF%FE",
        "/org/name/resolve/main/",
        "/org/name/resolve/..%2Fmain/x",
        "/org/name/resolve/ma%20in/x",
        "/org/name/resolve/-x/x",
        "/org/name/resolve//x",
        "/../name/resolve/main/x",
        "/org/../resolve/main/x",
        "/org%2Fname/other/resolve/main/x",
        "/o--rg/name/resolve/main/x",
        "/org/na%20me/resolve/main/x",
        "/org/" + "n" * 200 + "/resolve/main/x",
        "/org/name/resolve/main/" + "p" * 300,
        "/org/name/resolve/main/" + "p/" * 2100 + "x",
        "/org/name/resolve/" + "r" * 300 + "/x",
    ],
)
def test_file_address_with_an_impossible_name_is_refused(raw_path: str) -> None:
    """Traversal, control characters, empty and over-long parts are an error of the caller."""
    with pytest.raises(InvalidNameError):
        parse_file_address(raw_path)


@pytest.mark.parametrize(
    ("raw_path", "repo", "action", "revision", "path"),
    [
        ("/api/models/org/name", "org/name", "info", "main", ""),
        ("/api/models/org/name/", "org/name", "info", "main", ""),
        ("/api/models/gpt2", "gpt2", "info", "main", ""),
        ("/api/models/gpt2/revision/main", "gpt2", "revision", "main", ""),
        ("/api/models/org/name/revision/refs%2Fpr%2F1", "org/name", "revision", "refs/pr/1", ""),
        ("/api/models/org/name/tree/main?recursive=true", "org/name", "tree", "main", ""),
        ("/api/models/org/name/tree/main/a/b%20c", "org/name", "tree", "main", "a/b c"),
        ("/api/datasets/org/set/paths-info/main", "datasets/org/set", "paths-info", "main", ""),
        ("/api/models/org/name/refs", "org/name", "refs", "main", ""),
        ("/api/models/org/name/xet-read-token/main", "org/name", "xet-read-token", "main", ""),
        ("/api/spaces/org/app", "spaces/org/app", "info", "main", ""),
    ],
)
def test_api_address_is_read(
    raw_path: str, repo: str, action: str, revision: str, path: str
) -> None:
    """Every metadata call that clients make is understood."""
    address = parse_api_address(raw_path)
    assert address is not None
    assert str(address.reference.repo) == repo
    assert (address.action, address.reference.revision) == (action, revision)
    assert address.path == path


@pytest.mark.parametrize(
    "raw_path",
    [
        "/api",
        "/api/models",
        "/api/models?search=bert",
        "/api/whoami-v2",
        "/api/models/org/name/discussions",
        "/api/other/org/name",
        "/org/name",
    ],
)
def test_api_address_of_another_form_is_none(raw_path: str) -> None:
    """What this dialect does not know is passed on or refused elsewhere."""
    assert parse_api_address(raw_path) is None


@pytest.mark.parametrize(
    "raw_path",
    [
        "/api/models/../name",
        "/api/models/org/name/tree/main/..%2F..",
        "/api/models/org/name/tree/main/a%00",
        "/api/models/org/name/revision/..",
        "/api/models/org%2F..%2Fname/x/revision/main",
        "/api/models/%FF/name/revision/main",
    ],
)
def test_api_address_with_an_impossible_name_is_refused(raw_path: str) -> None:
    """As for files."""
    with pytest.raises(InvalidNameError):
        parse_api_address(raw_path)


_NAMES = ["org", "name", "main", "x.bin", "é", "", "?", "#", "api", "models", "datasets"]
_WORDS = ["resolve", "tree", "revision", "..", ".", "%2e%2e", "%2F", "%00", "a%2Fb", "%5c", "%zz"]
_PARTS = st.sampled_from([*_NAMES, *_WORDS])


@given(st.lists(_PARTS, max_size=10))
def test_any_address_is_none_refused_or_safe(parts: list[str]) -> None:
    """Whatever is asked for, what comes out names something inside a repository."""
    raw_path = "/" + "/".join(parts)
    for parse in (parse_file_address, parse_api_address):
        try:
            address = parse(raw_path)
        except InvalidNameError:
            continue
        if address is not None:
            assert parse_revision(address.reference.revision)
            assert address.path == "" or parse_path(address.path)
            assert ".." not in address.reference.repo.name


@pytest.mark.parametrize(
    "address",
    [
        "/api/../secret",
        "/api/models/org/x/../../../y",
        "/api/%2e%2e/y",
        "/api/models/%2E%2E/%2e/y?a=b",
        "/%61pi/models/org/x",
        "/other",
        "/api/%ff",
    ],
)
def test_address_that_leads_elsewhere_is_not_passed_on(address: str) -> None:
    """It would reach another page of the hub's server, or another hub, with the caller's token."""
    with pytest.raises(InvalidNameError):
        check_forwardable(address, ("/api/",))


def test_address_of_the_api_is_passed_on() -> None:
    """Dots within names, and in a query, are names."""
    check_forwardable("/api/models/org/x..y/.z?a=../b", ("/api/",))
