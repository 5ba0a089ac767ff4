"""
Owns the injection of byte errors at rest into the store of a daemon, and the truth about them.

Knows nothing of how they are found or healed.
Invariants: equal seeds give equal errors; every error changes its byte; half of the files show no
trace of it in their metadata.
Source: reliability.md D8 (bit rot); G6.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random

from p2pcache.store.filelayout import find_file_layout
from tests.tensorfiles import make_safetensors

MODEL = "org/rotten"
# Some hundreds of chunks in some tens of MiB: many files of one chunk, a few of several, one with
# tensors, whose chunks have boundaries of their own.
SMALL_FILES = 220
LARGE_FILES = 3
LARGE_BYTES = 9 * 1024 * 1024 + 77
TENSORS = 24
TENSOR_BYTES = 300 * 1024 + 13


def make_model(root: Path) -> Path:
    """Write a model of many files; returns its folder."""
    random = Random("bit rot")
    folder = root / MODEL
    folder.mkdir(parents=True)
    for number in range(SMALL_FILES):
        content = random.randbytes(random.randrange(1, 64 * 1024))
        (folder / f"part-{number:03}.bin").write_bytes(content)
    for number in range(LARGE_FILES):
        (folder / f"large-{number}.bin").write_bytes(random.randbytes(LARGE_BYTES))
    tensors = {
        f"layer.{number}": ("U8", [TENSOR_BYTES], random.randbytes(TENSOR_BYTES))
        for number in range(TENSORS)
    }
    (folder / "model.safetensors").write_bytes(make_safetensors(tensors))
    return folder


@dataclass(frozen=True)
class Truth:
    """The files of a model as they were published, by the hex of their digests."""

    contents: dict[str, bytes]

    @classmethod
    def of(cls, store: Path, folder: Path) -> Truth:
        """Learn which blobs of a store are the files of a model."""
        by_name: dict[str, bytes] = {}
        for path in folder.iterdir():
            content = path.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
            by_name[hashlib.sha256(content).hexdigest()] = content
            by_name[git.hexdigest()] = content
        paths = [path for path in (store / "blobs").glob("*/*/*") if path.name in by_name]
        return cls({path.name: by_name[path.name] for path in paths})

    def find_wrong(self, store: Path) -> list[str]:
        """Return the blobs that are not here, or not what they should be."""
        wrong = []
        for name, content in self.contents.items():
            paths = list((store / "blobs").glob(f"*/{name[:2]}/{name}"))
            if [path.read_bytes() for path in paths] != [content]:
                wrong.append(name)
        return wrong


@dataclass(frozen=True)
class Rot:
    """What was done: how many bytes, and which chunks of which blobs are wrong by that."""

    errors: int
    chunks: dict[str, set[int]]

    @property
    def chunk_count(self) -> int:
        """How many chunks are wrong."""
        return sum(map(len, self.chunks.values()))


def rot(store: Path, truth: Truth, errors: int, random: Random) -> Rot:
    """
    Change bytes at random places of random blobs.

    Args:
        store: A store whose daemon runs.
        truth: Its blobs.
        errors: How many distinct bytes to change.
        random: Which.
    """
    names = sorted(truth.contents)
    sizes = [len(truth.contents[name]) for name in names]
    places: set[tuple[str, int]] = set()
    while len(places) < errors:
        # Half of them anywhere, half in any file: else the large ones would get nearly all.
        is_anywhere = random.random() < 0.5
        (name,) = random.choices(names, sizes) if is_anywhere else [random.choice(names)]
        places.add((name, random.randrange(len(truth.contents[name]))))
    chunks: dict[str, set[int]] = {}
    for name in sorted({name for name, _ in places}):
        offsets = sorted(offset for other, offset in places if other == name)
        chunks[name] = _damage(store, name, offsets, random)
    return Rot(len(places), chunks)


def _damage(store: Path, name: str, offsets: list[int], random: Random) -> set[int]:
    (path,) = (store / "blobs").glob(f"*/{name[:2]}/{name}")
    status = path.stat()
    fd = os.open(path, os.O_RDWR)
    try:
        layout = find_file_layout(fd, status.st_size)
        for offset in offsets:
            byte = os.pread(fd, 1, offset)[0]
            os.pwrite(fd, bytes([byte ^ random.randrange(1, 256)]), offset)
    finally:
        os.close(fd)
    if random.random() < 0.5:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return {layout.index_at(offset) for offset in offsets}
