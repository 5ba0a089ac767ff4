"""
Owns the tests of core.lfs: which digest a file has, and what git calls its pointer.

Knows nothing of caches.
Invariants: none.
Source: core/lfs.py.
"""

from __future__ import annotations

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.lfs import (
    GIT_FILE_SIZE_BYTES_MAX,
    choose_algorithm,
    make_pointer_oid,
    parse_attributes,
)
from tests.hub.content import git_sha1, pointer_text


@pytest.mark.parametrize(
    ("path", "size_bytes", "algorithm"),
    [
        ("config.json", 500, "gitsha1"),
        ("tokenizer.json", GIT_FILE_SIZE_BYTES_MAX, "gitsha1"),
        ("tokenizer.json", GIT_FILE_SIZE_BYTES_MAX + 1, "sha256"),
        ("model.safetensors", 8, "sha256"),
        ("deep/er/model.safetensors", 8, "sha256"),
        ("saved_model/variables/x", 8, "sha256"),
        ("saved_model/x", 8, "sha256"),
        ("not_saved_model/x", 8, "gitsha1"),
        ("a.tar.gz", 8, "sha256"),
        ("events.out.tfevents.123", 8, "sha256"),
        ("safetensors", 8, "gitsha1"),
    ],
)
def test_choose_algorithm_is_the_hubs_default(path: str, size_bytes: int, algorithm: str) -> None:
    """By suffix, by folder, by size."""
    assert choose_algorithm(path, size_bytes) == algorithm


def test_choose_algorithm_takes_the_repositorys_own_patterns() -> None:
    """A repository that keeps weights in git, and text by LFS."""
    patterns = parse_attributes(
        "# comment filter=lfs\n\n*.txt filter=lfs diff=lfs merge=lfs -text\n*.bin text\n"
        "/top.md filter=lfs\n"
    )
    assert patterns == ["*.txt", "/top.md"]
    assert choose_algorithm("a/b.txt", 1, patterns) == "sha256"
    assert choose_algorithm("model.bin", 1, patterns) == "gitsha1"
    assert choose_algorithm("top.md", 1, patterns) == "sha256"
    assert choose_algorithm("deep/top.md", 1, patterns) == "gitsha1"


def test_pointer_oid_is_gits_name_of_the_pointer() -> None:
    """What the tree entry of an LFS file says; for others the file itself."""
    digest = "ab" * 32
    blob = BlobDigest("sha256", digest)
    assert make_pointer_oid(blob, 1234) == git_sha1(pointer_text(digest, 1234))
    plain = BlobDigest("gitsha1", git_sha1(b"content"))
    assert make_pointer_oid(plain, 7) == plain.hex
