"""
Owns the small repositories that the hub's own tests serve.

Knows nothing of how they are served.
Invariants: the same bytes every time.
Source: none; names and sizes that have broken clients before.
"""

from __future__ import annotations

import hashlib
import random

from tests.hub.repository import Repository

TOKEN = "hf_allowed"
OTHER_TOKEN = "hf_other"
LARGE = random.Random(7).randbytes(3_000_000)
CONFIG = b'{"model_type": "bert"}\n'
FILES: dict[str, bytes] = {
    "config.json": CONFIG,
    "model.safetensors": LARGE,
    "empty.txt": b"",
    "deep/er/a+b c%20#?.txt": b"odd name\n",
    "deep/né.txt": b"not ascii\n",
}


def make_model() -> Repository:
    """Make org/model: two commits on main, tag v1 at the first, refs/pr/1 beside."""
    repository = Repository("org/model", {**FILES, "config.json": b"{}\n"}, former_ids=["old"])
    repository.add_tag("v1")
    repository.add_commit({"config.json": CONFIG}, title="Change the configuration")
    repository.add_commit({"extra.txt": b"from a pull request\n"}, branch="refs/pr/1", base="main")
    return repository


def make_repositories() -> list[Repository]:
    """Make one repository of each kind that matters."""
    return [
        make_model(),
        Repository(
            "org/set", {"rows.bin": LARGE[:200_000], "README.md": b"# set\n"}, kind="datasets"
        ),
        Repository("org/secret", {"config.json": CONFIG}, private=True, tokens=[TOKEN]),
        Repository("org/gated", FILES, gated="auto", tokens=[TOKEN]),
    ]


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """Return the sha256 of each file."""
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
