"""
Owns a model to measure with: safetensors files of random bytes with real headers.

Knows nothing of who fetches it.
Invariants: equal sizes give equal bytes; the files together have exactly the size asked for.
Source: the shapes of a 1B model's layers, in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

MODEL = "bench/swarm"
FILE_COUNT = 4
_PIECE_BYTES = 4 * 1024 * 1024
# Name → shape; a layer has 24.5 MiB: attention 4 × 2 MiB, the feed-forward net 3 × 5.5 MiB.
_LAYER: dict[str, list[int]] = {
    "input_layernorm.weight": [1024],
    "self_attn.q_proj.weight": [1024, 1024],
    "self_attn.k_proj.weight": [1024, 1024],
    "self_attn.v_proj.weight": [1024, 1024],
    "self_attn.o_proj.weight": [1024, 1024],
    "post_attention_layernorm.weight": [1024],
    "mlp.gate_proj.weight": [2816, 1024],
    "mlp.up_proj.weight": [2816, 1024],
    "mlp.down_proj.weight": [1024, 2816],
}


@dataclass(frozen=True, slots=True)
class BenchModel:
    """
    A repository on disk.

    Attributes:
        root: The folder that a hub serves; the repository is in `root/bench/swarm`.
        digests: The sha256 of every file, by its path in the repository.
    """

    root: Path
    size_bytes: int
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Return where its files are."""
        return self.root / MODEL


def make_model(root: Path, size_bytes: int) -> BenchModel:
    """Write FILE_COUNT files that have `size_bytes` together."""
    model = BenchModel(root, size_bytes)
    model.folder.mkdir(parents=True)
    for number in range(FILE_COUNT):
        size = size_bytes * (number + 1) // FILE_COUNT - size_bytes * number // FILE_COUNT
        name = f"model-{number + 1:05d}-of-{FILE_COUNT:05d}.safetensors"
        model.digests[name] = _write_file(model.folder / name, size, number)
    return model


def plan_header(size_bytes: int, number: int) -> bytes:
    """
    Return the head of a safetensors file of a size: as many layers as fit, then one tensor that
    takes what is left.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    # The head's own length is fixed beforehand: the last tensor's size depends on it.
    head_bytes = 64 * 1024
    content_bytes = size_bytes - head_bytes
    assert content_bytes > 0, "a file is larger than its head"
    offset = layer = 0
    layer_bytes = sum(_tensor_bytes(shape) for shape in _LAYER.values())
    while offset + layer_bytes <= content_bytes:
        for name, shape in _LAYER.items():
            end = offset + _tensor_bytes(shape)
            entry = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            header[f"model.layers.{number}{layer:02d}.{name}"] = entry
            offset = end
        layer += 1
    if offset < content_bytes:
        left = content_bytes - offset
        entry = {"dtype": "U8", "shape": [left], "data_offsets": [offset, content_bytes]}
        header[f"model.rest.{number}"] = entry
    text = json.dumps(header).encode()
    text += b" " * (head_bytes - 8 - len(text))
    return struct.pack("<Q", len(text)) + text


def _tensor_bytes(shape: list[int]) -> int:
    count = 2  # bytes of a bfloat16
    for length in shape:
        count *= length
    return count


def _write_file(path: Path, size_bytes: int, number: int) -> str:
    chance = random.Random(number)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        head = plan_header(size_bytes, number)
        left = size_bytes
        piece = head
        while piece:
            file.write(piece)
            digest.update(piece)
            left -= len(piece)
            piece = chance.randbytes(min(left, _PIECE_BYTES))
    return digest.hexdigest()


def find_wrong_files(model: BenchModel, folder: Path) -> list[str]:
    """Return the files of a snapshot that are missing or differ from the model's."""
    wrong = []
    for name, digest in model.digests.items():
        path = folder / name
        if not path.is_file() or digest_of_file(path) != digest:
            wrong.append(name)
    return wrong


def digest_of_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
