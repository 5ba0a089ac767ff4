"""
Owns the truth: the repositories of the test hub, with every byte of them.

Knows nothing of stores.
Invariants: equal bytes in every run; chunks are small, so that fetches of many chunks are short.
Source: none.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from tests.hub.repository import Repository

CHUNK_BYTES = 16 * 1024
# Tensors of half a chunk count as large, as 256 KiB do beside chunks of 4 MiB.
LARGE_TENSOR_BYTES = 4 * 1024
MODEL, TUNED, OLD, WANTED = "org/model", "org/tuned", "org/old", "org/wanted"


def make_safetensors(tensors: Mapping[str, bytes], *, padding: int = 0) -> bytes:
    """Return a safetensors file; padding in its head moves every tensor."""
    head: dict[str, object] = {"__metadata__": {"padding": "x" * padding}} if padding else {}
    offset = 0
    for name, content in tensors.items():
        end = offset + len(content)
        head[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


def _make_files() -> dict[str, dict[str, bytes]]:
    random = Random(20240601)
    tensors = {f"layer.{n}": random.randbytes(2 * CHUNK_BYTES + 4096) for n in range(4)}
    tuned = {**tensors, "layer.1": random.randbytes(2 * CHUNK_BYTES + 4096)}
    config = b'{"model_type": "bert"}\n'
    return {
        MODEL: {
            "config.json": config,
            "empty.txt": b"",
            "model.safetensors": make_safetensors(tensors),
            "vocabulary/words.bin": random.randbytes(3 * CHUNK_BYTES - 100),
        },
        TUNED: {
            "config.json": config,
            "model.safetensors": make_safetensors(tuned, padding=3000),
        },
        OLD: {"README.md": b"# old\n", "old.bin": random.randbytes(4 * CHUNK_BYTES)},
        WANTED: {"config.json": b"{}\n", "wanted.bin": random.randbytes(2 * CHUNK_BYTES + 5)},
    }


@dataclass(frozen=True)
class World:
    """Repositories by name, and what follows from them."""

    files: Mapping[str, Mapping[str, bytes]]

    @cached_property
    def repositories(self) -> dict[str, Repository]:
        """The same, as the hub sees them."""
        return {name: Repository(name, files) for name, files in self.files.items()}

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """Every blob's bytes, by the name that the store gives it: `sha256:…`, `gitsha1:…`."""
        named = {}
        for repository in self.repositories.values():
            for path, file in repository.get_commit("main").files.items():
                algorithm = "gitsha1" if file.sha256 is None else "sha256"
                named[f"{algorithm}:{file.etag}"] = self.files[repository.repo_id][path]
        return named

    def commit_of(self, repo: str) -> str:
        """Return what `main` is."""
        return self.repositories[repo].get_commit("main").sha

    def names_of(self, repo: str) -> dict[str, str]:
        """Return path → blob name of a repository's files."""
        files = self.repositories[repo].get_commit("main").files
        return {
            path: f"{'gitsha1' if file.sha256 is None else 'sha256'}:{file.etag}"
            for path, file in files.items()
        }

    def write_to(self, folder: Path) -> None:
        """Lay the repositories out as the hub's command line wants them."""
        for repo, files in self.files.items():
            for path, content in files.items():
                target = folder / repo / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


WORLD = World(_make_files())


def name_content(content: bytes, algorithm: str) -> str:
    """Return what the store has to call these bytes."""
    if algorithm == "sha256":
        return f"sha256:{hashlib.sha256(content).hexdigest()}"
    head = b"blob %d\0" % len(content)
    return f"gitsha1:{hashlib.sha1(head + content, usedforsecurity=False).hexdigest()}"
