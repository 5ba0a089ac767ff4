"""
Owns the rules of git-lfs: which files a hub keeps by SHA-256, and git's id of their pointers.

Knows nothing of where files lie.
Invariants: a file list of the hub decides; the rules here are for when there is none.
Source: git-lfs(1) and its pointer specification v1; gitattributes(5); the hub's default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from p2pcache.core.digest import Algorithm, BlobDigest

# The hub takes no larger file into git itself.
GIT_FILE_SIZE_BYTES_MAX = 10 * 1024 * 1024
# A .gitattributes of thousands of lines; more is read by nobody.
ATTRIBUTES_BYTES_MAX = 256 * 1024
# What the hub writes into every new repository.
DEFAULT_PATTERNS: tuple[str, ...] = (
    "*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gguf", "*.gz", "*.h5", "*.joblib",
    "*.lfs.*", "*.lz4", "*.mds", "*.mlmodel", "*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx",
    "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt", "*.pth", "*.rar", "*.safetensors",
    "saved_model/**/*", "*.tar", "*.tar.*", "*.tflite", "*.tgz", "*.wasm", "*.xz", "*.zip", "*.zst",
    "*tfevents*",
)  # fmt: skip


def choose_algorithm(
    path: str, size_bytes: int, patterns: Sequence[str] = DEFAULT_PATTERNS
) -> Algorithm:
    """
    Guess how a hub names a file's content, when no file list says it.

    Args:
        path: Inside the repository.
        size_bytes: Of the content.
        patterns: Those whose files git-lfs keeps, as parse_attributes() returns them.
    """
    if size_bytes > GIT_FILE_SIZE_BYTES_MAX or any(_matches(path, p) for p in patterns):
        return "sha256"
    return "gitsha1"


def parse_attributes(text: str) -> list[str]:
    """Return the patterns of a .gitattributes whose files git-lfs keeps."""
    lines = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [words[0] for words in lines if "filter=lfs" in words[1:]]


def make_pointer_oid(blob: BlobDigest, size_bytes: int) -> str:
    """Return git's id of a file's tree entry: for LFS files that of the pointer."""
    if blob.algorithm == "gitsha1":
        return blob.hex
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob.hex}\nsize {size_bytes}\n"
    ).encode()
    return hashlib.sha1(b"blob %d\x00" % len(pointer) + pointer, usedforsecurity=False).hexdigest()


def _matches(path: str, pattern: str) -> bool:
    """Match as gitattributes does, `*` crossing `/` in patterns that name a folder."""
    if "/" not in pattern.rstrip("/"):
        return fnmatchcase(path.rpartition("/")[2], pattern)
    bare = pattern.removeprefix("/")
    return fnmatchcase(path, bare) or fnmatchcase(path, bare.replace("**/", ""))
