"""
Owns the tests of core.hubjson.

Knows nothing of HTTP.
Invariants: a listing is read whole or refused with the hub as the one to blame.
Source: core/hubjson.py.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.digest import BlobDigest
from p2pcache.core.hubjson import read_commit, read_siblings, read_tree, strip_xet
from p2pcache.core.snapshot import FileEntry
from p2pcache.errors import UpstreamProtocolError
from tests.samples import COMMIT

OID = "12" * 20
SHA = "34" * 32
SMALL = FileEntry("config.json", 5, BlobDigest("gitsha1", OID), OID)
LARGE = FileEntry("a/model.safetensors", 7_000_000, BlobDigest("sha256", SHA), OID)
TREE: list[object] = [
    {"type": "directory", "path": "a", "oid": "56" * 20, "size": 0},
    {"type": "file", "path": "config.json", "oid": OID, "size": 5},
    {
        "type": "file",
        "path": "a/model.safetensors",
        "oid": OID,
        "size": 7_000_000,
        "lfs": {"oid": SHA, "size": 7_000_000, "pointerSize": 134},
        "xetHash": "78" * 32,
    },
]
SIBLINGS: dict[str, object] = {
    "sha": COMMIT,
    "siblings": [
        {"rfilename": "config.json", "blobId": OID, "size": 5},
        {
            "rfilename": "a/model.safetensors",
            "blobId": OID,
            "size": 7_000_000,
            "lfs": {"sha256": SHA, "size": 7_000_000, "pointerSize": 134},
        },
    ],
}


def test_listing_both_shapes_give_the_same_files() -> None:
    """Tree and siblings say the same in different words; folders are no files."""
    assert read_tree(TREE) == [SMALL, LARGE]
    assert read_siblings(SIBLINGS) == [SMALL, LARGE]


@pytest.mark.parametrize("lfs", [None, {}, False])
def test_listing_without_lfs_is_named_by_git(lfs: object) -> None:
    """An empty lfs field means a plain git file."""
    item = {"type": "file", "path": "config.json", "oid": OID, "size": 5, "lfs": lfs}
    assert read_tree([item]) == [SMALL]


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../x"},
        {"path": "/x"},
        {"path": None},
        {"oid": "xyz"},
        {"oid": None},
        {"size": -1},
        {"size": None},
        {"size": "5"},
        {"size": 1 << 60},
        {"lfs": "x"},
        {"lfs": {"oid": "x", "size": 5}},
        {"lfs": {"oid": SHA}},
        {"lfs": {"oid": SHA, "size": -5}},
        {"lfs": [1]},
    ],
)
def test_listing_hostile_entry_refuses_the_whole(change: dict[str, object]) -> None:
    """One impossible file and nothing of the listing is believed."""
    item = {"type": "file", "path": "config.json", "oid": OID, "size": 5, **change}
    with pytest.raises(UpstreamProtocolError):
        read_tree([TREE[1], item])


@pytest.mark.parametrize("about", [None, [], {}, {"siblings": None}, {"siblings": {}}, "x"])
def test_siblings_without_a_list_are_refused(about: object) -> None:
    """A page that is no description of a repository is the address's fault."""
    with pytest.raises(UpstreamProtocolError):
        read_siblings(about)


@pytest.mark.parametrize("item", [None, 1, "x", [], {}])
def test_listing_entry_of_another_shape_is_refused(item: object) -> None:
    """An entry that is no object is refused in both shapes."""
    with pytest.raises(UpstreamProtocolError):
        read_tree([item])
    with pytest.raises(UpstreamProtocolError):
        read_siblings({"siblings": [item]})


def test_commit_of_a_description_is_read_or_refused() -> None:
    """Only 40 hex digits are a commit."""
    assert read_commit(SIBLINGS) == COMMIT
    for about in (None, {}, {"sha": None}, {"sha": "main"}, {"sha": COMMIT.upper()}):
        with pytest.raises(UpstreamProtocolError):
            read_commit(about)


def test_strip_xet_removes_every_key_that_names_it() -> None:
    """At any depth, in any spelling; values and other keys stay."""
    given_json = {
        "xetHash": 1,
        "xet_hash": 1,
        "XetEnabled": True,
        "tags": ["xet", {"useXet": 1, "b": [{"xet": 2}, 3]}],
        "a": None,
    }
    assert strip_xet(given_json) == {"tags": ["xet", {"b": [{}, 3]}], "a": None}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("xetXETa", max_size=5), inner),
    max_leaves=20,
)


@given(json_values)
def test_strip_xet_any_json_has_no_such_key_afterwards(value: object) -> None:
    """No key that contains the word is left, and a second pass changes nothing."""
    stripped = strip_xet(value)
    keys: list[str] = []
    json.loads(
        json.dumps(stripped), object_pairs_hook=lambda pairs: keys.extend(k for k, _ in pairs)
    )
    assert not [key for key in keys if "xet" in key.lower()]
    assert strip_xet(stripped) == stripped


@given(json_values)
def test_listing_any_json_is_refused_with_protocol_error_only(value: object) -> None:
    """No shape of JSON makes a reader fail in another way; none of these lists a file."""
    for read in (read_siblings, read_commit, lambda item: read_tree([item])):
        try:
            found = read(value)
        except UpstreamProtocolError:
            continue
        assert found == [], f"{read} made something of {value!r}"
