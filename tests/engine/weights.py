"""
Owns two small model files that share most of their tensors, for tests with chunks of 16 KiB.

Knows nothing of engines.
Invariants: the bytes are the same every time; what they share lies at other offsets.
Source: tests/tensorfiles.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from random import Random

import pytest

from p2pcache.core import layout as layouts
from p2pcache.core import tensors
from p2pcache.core.layout import Layout
from p2pcache.core.tensors import TensorMap, read_tensors
from tests.engine.conftest import CHUNK_BYTES
from tests.hub import Hub
from tests.tensorfiles import make_gguf, make_safetensors

NAME = "model.safetensors"
BASE_REPO, TUNED_REPO = "org/base", "org/tuned"
# Called large in these tests; three chunks each.
LARGE_BYTES = 4 * 1024
WEIGHT_BYTES = 40 * 1024
LAYERS = 12


def make_layers(*changed: int) -> dict[str, bytes]:
    """Return twelve layers, of a weight and two small tensors; some with other weights."""
    layers: dict[str, bytes] = {}
    for n in range(LAYERS):
        seed = 100 * (n in changed) + n
        layers[f"layers.{n}.weight"] = Random(seed).randbytes(WEIGHT_BYTES)
        layers[f"layers.{n}.bias"] = Random(1000 + n).randbytes(64)
        layers[f"layers.{n}.norm"] = Random(2000 + n).randbytes(64)
    return layers


def make_file(layers: dict[str, bytes], metadata: dict[str, str] | None = None) -> bytes:
    """Return a safetensors file with these tensors."""
    described = {name: ("F32", [len(content) // 4], content) for name, content in layers.items()}
    return make_safetensors(described, metadata)


EXTRA = {"extra.weight": Random(5000).randbytes(24 * 1024)}
BASE = make_file(make_layers())
# Two layers are trained on, one tensor is new and comes first, so that all offsets shift.
CHANGED = (3, 7)
TUNED = make_file({**EXTRA, **make_layers(*CHANGED)}, {"format": "pt"})
# What no file with the tensors of BASE has, but for the head.
NEW_BYTES = len(CHANGED) * WEIGHT_BYTES + len(EXTRA["extra.weight"])
# The same names, with nothing behind them that BASE has.
OTHER = make_file({name: bytes(byte ^ 1 for byte in raw) for name, raw in make_layers().items()})
# What BASE has, in another order: nothing but the head is new.
SHUFFLED = make_file(
    {
        name: raw
        for n in reversed(range(LAYERS))
        for name, raw in make_layers().items()
        if name.startswith(f"layers.{n}.")
    }
)
BASE_GGUF = make_gguf(make_layers(), ["word"] * 50)
TUNED_GGUF = make_gguf({**EXTRA, **make_layers(*CHANGED)}, ["word"] * 60)


@pytest.fixture(autouse=True)
def small_parts() -> Iterator[None]:
    """Cut every 16 KiB, and call a tensor of 4 KiB large."""
    with _small():
        yield


@contextlib.contextmanager
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "CHUNK_SIZE_BYTES", CHUNK_BYTES)
        patch.setattr(tensors, "LARGE_TENSOR_BYTES_MIN", LARGE_BYTES)
        yield


def map_of(content: bytes) -> TensorMap:
    """Return a file's tensors."""
    with _small():
        found = read_tensors(content, len(content))
    assert isinstance(found, TensorMap)
    return found


def layout_of(content: bytes) -> Layout:
    """Return how a file is cut at its tensors."""
    with _small():
        return map_of(content).layout()


def list_ranges(hub: Hub, repo: str, path: str = NAME) -> list[tuple[int, int]]:
    """Return (first byte, how many came) of every answer with bytes of a file, in order."""
    ranges = []
    for record in hub.stats.recorded:
        if record.key == f"{repo}/{path}" and record.body_bytes:
            wanted = record.headers.get("range", "bytes=0-")
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            ranges.append((start, record.body_bytes))
    return ranges
