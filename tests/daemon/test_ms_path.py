"""
Owns the tests of the ModelScope URL grammar.

Knows nothing of handlers.
Invariants: what is not ours is None, what cannot be is an error of the caller's.
Source: daemon/ms_path.py; requests of modelscope 1.40.
"""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.refs import ModelReference, RepoId
from p2pcache.daemon.ms_path import ModelScopeAddress, parse_address
from p2pcache.errors import InputError

MODEL = RepoId("ms", "models", "org/name")
DATASET = RepoId("ms", "datasets", "org/name")
MASTER = ModelReference(MODEL)
V1 = ModelReference(MODEL, "v1")


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("models/org/name", ModelScopeAddress(MASTER, "repository")),
        ("models/org/name?Revision=v1", ModelScopeAddress(V1, "repository")),
        ("models/org/name/revisions?EndTime=1", ModelScopeAddress(MASTER, "revisions")),
        ("models/org/name/repo/files", ModelScopeAddress(MASTER, "files")),
        (
            "models/org/name/repo/files?Revision=v1&Recursive=True&Root=a%2Fb",
            ModelScopeAddress(V1, "files", "a/b", is_deep=True),
        ),
        ("models/org/name/repo/files?Root=/&Revision=", ModelScopeAddress(MASTER, "files")),
        (
            "datasets/org/name/repo/tree?Revision=master&Recursive=True&PageNumber=2&PageSize=200",
            ModelScopeAddress(
                ModelReference(DATASET), "tree", is_deep=True, page=2, page_entries=200
            ),
        ),
        (
            "datasets/org/name/repo/tree?PageSize=9999&PageNumber=0",
            ModelScopeAddress(ModelReference(DATASET), "tree", page=1, page_entries=500),
        ),
        (
            "models/org/name/repo?Revision=v1&FilePath=a%2Fb+c.txt",
            ModelScopeAddress(V1, "file", "a/b c.txt"),
        ),
        ("models/org/name/archive/zip/master", ModelScopeAddress(MASTER, "archive")),
    ],
)
def test_address_of_a_client_is_read(path: str, address: ModelScopeAddress) -> None:
    """Each part lands where it belongs; no revision is master."""
    assert parse_address(f"/api/v1/{path}") == address


@pytest.mark.parametrize(
    "path",
    [
        "/api/models/org/name",
        "/api/v1/models",
        "/api/v1/models/org",
        "/api/v1/datasets/1234/repo/tree",
        "/api/v1/models/org/name/commits?Ref=master",
        "/api/v1/studios/org/name",
        "/openapi/v1/models/org/name",
        "/org/name/resolve/main/a",
    ],
)
def test_address_of_something_else_is_none(path: str) -> None:
    """Other routes, a data set's inner number, other dialects: not ours to understand."""
    assert parse_address(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "models/org/name/repo",
        "models/org/name/repo?FilePath=../x",
        "models/org/name/repo?FilePath=/etc/passwd",
        "models/org/name/repo?FilePath=a%00b",
        "models/org/name/repo?FilePath=%ff",
        "models/org/name/repo?FilePath=a&Revision=../x",
        "models/org/name/repo/files?Root=a/../../b",
        "models/..%2F../name/repo/files",
        "models/org/a--b/repo/files",
        "models/%ff/name/repo/files",
        "datasets/org/name/repo/tree?PageNumber=-1",
        "datasets/org/name/repo/tree?PageSize=1e9",
        "datasets/org/name/repo/tree?PageSize=99999999999999999999",
        "models/org/name/repo/files?" + "&".join(f"a{n}=1" for n in range(65)),
    ],
)
def test_address_that_cannot_be_is_the_callers_error(path: str) -> None:
    """Traversal, no file, no number, no UTF-8, too much."""
    with pytest.raises(InputError):
        parse_address(f"/api/v1/{path}")


@given(st.text(min_size=1), st.sampled_from([quote, quote_plus]))
def test_file_of_any_name_is_read_back_or_refused(name: str, escape: object) -> None:
    """However a client escapes a path, it is decoded once."""
    assert callable(escape)
    try:
        escaped = escape(name, safe="")
    except UnicodeEncodeError:
        return
    try:
        address = parse_address(f"/api/v1/models/org/name/repo?FilePath={escaped}")
    except InputError:
        return
    assert address is not None
    assert address.path == name
