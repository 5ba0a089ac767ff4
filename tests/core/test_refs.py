"""
Owns the tests of core.refs.

Knows nothing of hubs.
Invariants: no parsed name leaves its folder or its place in a URL.
Source: core/refs.py.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.refs import (
    ModelReference,
    RepoId,
    SnapshotId,
    is_commit,
    parse_commit,
    parse_path,
    parse_revision,
)
from p2pcache.errors import InvalidNameError
from tests.samples import COMMIT

# Hostile in any place where a name is read.
HOSTILE_NAMES = [
    "",
    "..",
    "../x",
    "a/../b",
    "a/..",
    "/etc/passwd",
    "//host/x",
    "a//b",
    "a/",
    "a\\b",
    "..\\x",
    "a\x00b",
    "a\nb",
    "a\rb",
    "a\x7fb",
    "a\x1bb",
    "a\x85b",
    "a\u2028b",
    "a\u2029b",
    "\ud800",
    "a/\udfffb",
    "x" * 256,
    "é" * 128,
    "/".join(["x" * 200] * 30),
]


@pytest.mark.parametrize("text", [*HOSTILE_NAMES, ".", "./a", "a/./b", "a/" + "y" * 256])
def test_path_hostile_text_is_refused(text: str) -> None:
    """Traversal, absolute and over-long paths and control characters never pass."""
    with pytest.raises(InvalidNameError) as caught:
        parse_path(text)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        "config.json",
        "a/b/c/d/e.bin",
        "with space/and more.txt",
        ".gitattributes",
        "...",
        "..a",
        "a..b/c..",
        "日本語/模型.bin",
        "emoji 🤗.md",
        "x" * 255,
        "a:b*c?d",
        "-rf",
        "~",
        "%2e%2e",
    ],
)
def test_path_of_a_repository_passes_unchanged(text: str) -> None:
    """What repositories really hold is left as it is."""
    assert parse_path(text) == text


@given(st.text())
def test_path_any_text_stays_inside_or_is_refused(text: str) -> None:
    """A path that passes has as many components as it shows, and can be encoded."""
    try:
        path = parse_path(text)
    except InvalidNameError:
        return
    pure = PurePosixPath(path)
    assert not pure.is_absolute()
    assert ".." not in pure.parts
    assert str(pure) == path
    assert len(path.encode()) <= 4096


@pytest.mark.parametrize(
    "text",
    [
        *HOSTILE_NAMES,
        "-x",
        ".hidden",
        "a/.hidden",
        "x.lock",
        "x.",
        "a b",
        "a~1",
        "a^",
        "a:b",
        "a?b",
        "a*b",
        "a[b",
        "a@{1}",
    ],
)
def test_revision_hostile_text_is_refused(text: str) -> None:
    """What git could not have as a name is refused."""
    with pytest.raises(InvalidNameError):
        parse_revision(text)


@pytest.mark.parametrize(
    "text", ["main", "refs/pr/1", "v1.0", "feature/x-y_z", COMMIT, "zweig-ü", "x" * 255, "a@b"]
)
def test_revision_of_git_passes_unchanged(text: str) -> None:
    """Branches, tags, pull requests and commits pass."""
    assert parse_revision(text) == text


@given(st.text())
def test_revision_any_text_is_a_safe_relative_path_or_refused(text: str) -> None:
    """A revision becomes a file below refs/: it must not leave it."""
    try:
        pure = PurePosixPath(parse_revision(text))
    except InvalidNameError:
        return
    assert not pure.is_absolute()
    assert all(not part.startswith(".") for part in pure.parts)


@pytest.mark.parametrize("text", ["", COMMIT.upper(), COMMIT[:-1], COMMIT + "0", COMMIT + "\n"])
def test_commit_other_text_is_refused(text: str) -> None:
    """A commit is 40 lower-case hex digits and nothing else."""
    assert not is_commit(text)
    with pytest.raises(InvalidNameError):
        parse_commit(text)


def test_commit_of_forty_digits_passes() -> None:
    """The form of an immutable id."""
    assert is_commit(COMMIT)
    assert parse_commit(COMMIT) == COMMIT


@pytest.mark.parametrize(
    "name",
    [
        *HOSTILE_NAMES,
        "a/b/c",
        ".a/b",
        "-a/b",
        "a-/b",
        "a./b",
        "a--b/c",
        "a..b/c",
        "a b/c",
        "ä/b",
        "a/b@c",
        "a/b:c",
        "x" * 97,
    ],
)
def test_repository_hostile_name_is_refused(name: str) -> None:
    """A name that no hub has is refused, before it becomes a folder or a URL."""
    with pytest.raises(InvalidNameError) as caught:
        RepoId.of("hf", "models", name)
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("hub", "kind"), [("xx", "models"), ("hf", "model"), ("", "models"), ("hf", "")]
)
def test_repository_unknown_hub_or_kind_is_refused(hub: str, kind: str) -> None:
    """Hubs and kinds are a closed list."""
    with pytest.raises(InvalidNameError):
        RepoId.of(hub, kind, "a/b")


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("org/name", RepoId("hf", "models", "org/name"), "main"),
        ("hf:org/name", RepoId("hf", "models", "org/name"), "main"),
        ("gpt2", RepoId("hf", "models", "gpt2"), "main"),
        ("org/name@v1", RepoId("hf", "models", "org/name"), "v1"),
        ("org/name@refs/pr/1", RepoId("hf", "models", "org/name"), "refs/pr/1"),
        ("datasets/org/name", RepoId("hf", "datasets", "org/name"), "main"),
        ("hf:spaces/org/name@x", RepoId("hf", "spaces", "org/name"), "x"),
        ("datasets/squad", RepoId("hf", "datasets", "squad"), "main"),
        ("ms:org/name", RepoId("ms", "models", "org/name"), "master"),
        ("ms:datasets/org/name@v1", RepoId("ms", "datasets", "org/name"), "v1"),
    ],
)
def test_reference_form_is_read(text: str, repo: RepoId, revision: str) -> None:
    """Each part of a reference lands where it belongs."""
    reference = ModelReference.parse(text)
    assert (reference.repo, reference.revision) == (repo, revision)
    assert ModelReference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "org/name@",
        ":org/name",
        "xx:org/name",
        "a/b/c",
        "org/name@../x",
        "org/",
        "ms:name",
        "ms:spaces/org/name",
    ],
)
def test_reference_malformed_text_is_refused(text: str) -> None:
    """Each part is checked."""
    with pytest.raises(InvalidNameError):
        ModelReference.parse(text)


def test_reference_revision_beside_must_agree() -> None:
    """A revision may be given inside, beside, or both if they are the same."""
    assert ModelReference.parse("a/b", revision="v1").revision == "v1"
    assert ModelReference.parse("a/b@v1", revision="v1").revision == "v1"
    with pytest.raises(InvalidNameError):
        ModelReference.parse("a/b@v1", revision="v2")


@given(st.text())
def test_reference_any_text_is_read_back_or_refused(text: str) -> None:
    """What is read prints in a form that reads the same."""
    try:
        reference = ModelReference.parse(text)
    except InvalidNameError:
        return
    assert ModelReference.parse(str(reference)) == reference


def test_reference_text_forms_name_kind_and_commit() -> None:
    """Snapshots and repositories print as they are typed."""
    repo = RepoId("hf", "datasets", "a/b")
    assert str(repo) == "datasets/a/b"
    assert str(SnapshotId(repo, COMMIT)) == f"datasets/a/b@{COMMIT}"
