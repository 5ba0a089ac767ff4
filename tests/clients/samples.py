"""
Owns the repositories that the clients download.

Knows nothing of hubs or daemons beyond the routes that put a repository there.
Invariants: the same seed is the same bytes, another seed shares no large file with it; every shape
that has broken a client is in each: an empty file, odd names, five folders, no ASCII.
Source: acceptance cases of the hub protocols.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

from tests.hub import HubProcess
from tests.hub.content import git_sha1

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
ODD = "a+b c%20#?.txt"
DEEP = "one/two/three/four/né.txt"
TENSOR_FLOATS = 75_000
TAG = "v1"
PULL_REQUEST = "refs/pr/1"


def make_safetensors(chance: random.Random, floats: int) -> bytes:
    """Return a small file of one tensor, as its format wants it."""
    body = chance.randbytes(floats * 4)
    tensor = {"dtype": "F32", "shape": [floats], "data_offsets": [0, len(body)]}
    header = json.dumps({"weight": tensor, "__metadata__": {"format": "pt"}}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def make_tokenizer(seed: int) -> bytes:
    """Return the smallest tokenizer that loads; it knows one word of its seed."""
    words = {"[UNK]": 0, "hello": 1, f"word{seed}": 2}
    unused = ("truncation", "padding", "normalizer", "post_processor", "decoder")
    described: dict[str, object] = {
        "version": "1.0",
        **dict.fromkeys(unused),
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }
    return json.dumps(described).encode()


def make_files(seed: int, *, floats: int = TENSOR_FLOATS) -> dict[str, bytes]:
    """Return the files of a model."""
    chance = random.Random(seed)
    return {
        CONFIG: json.dumps({"model_type": "bert", "seed": seed}).encode(),
        WEIGHTS: make_safetensors(chance, floats),
        "tokenizer.json": make_tokenizer(seed),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
        "empty.txt": b"",
        ODD: b"odd %d\n" % seed,
        DEEP: b"deep %d\n" % seed,
    }


@dataclass(frozen=True)
class Sample:
    """
    A repository at the hub.

    Attributes:
        commits: By revision: `main`, the tag, the pull request.
        trees: What each revision holds.
    """

    repo: str
    kind: str
    commits: Mapping[str, str]
    trees: Mapping[str, Mapping[str, bytes]]

    @property
    def files(self) -> Mapping[str, bytes]:
        """Return the files of main."""
        return self.trees["main"]

    @property
    def commit(self) -> str:
        """Return the commit of main."""
        return self.commits["main"]

    def truth(self, revision: str = "main") -> dict[str, str]:
        """Return the sha256 of every file of a revision."""
        tree = self.trees[revision]
        return {path: hashlib.sha256(content).hexdigest() for path, content in tree.items()}

    def etag(self, path: str) -> str:
        """Return the name that a client's cache gives to a file of main."""
        content = self.files[path]
        return hashlib.sha256(content).hexdigest() if path == WEIGHTS else git_sha1(content)

    def resolve(self, path: str, revision: str = "main") -> str:
        """Return where a file of a plain name is."""
        prefix = "" if self.kind == "models" else f"/{self.kind}"
        return f"{prefix}/{self.repo}/resolve/{revision}/{path}"


def put_sample(
    hub: HubProcess, repo: str, seed: int, *, kind: str = "models", floats: int = TENSOR_FLOATS
) -> Sample:
    """Put a repository on the hub: two commits, a tag at the first, a pull request beside."""
    files = make_files(seed, floats=floats)
    former = {**files, CONFIG: b'{"model_type": "bert"}\n'}
    proposed = {"proposed.txt": b"from a pull request %d\n" % seed}
    first = hub.commit(repo, former, kind=kind)
    hub.set_ref(repo, f"refs/tags/{TAG}", first, kind=kind)
    second = hub.commit(repo, {CONFIG: files[CONFIG]}, kind=kind, title="Configure")
    third = hub.commit(repo, proposed, kind=kind, branch=PULL_REQUEST, base="main")
    return Sample(
        repo,
        kind,
        {"main": second, TAG: first, PULL_REQUEST: third},
        {"main": files, TAG: former, PULL_REQUEST: {**files, **proposed}},
    )
