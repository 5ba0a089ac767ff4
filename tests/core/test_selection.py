"""
Owns the tests of core.selection: which files a pull brings, and which hold the same weights again.

Knows nothing of stores.
Invariants: nothing is left out unless the same weights stay, whole, as safetensors.
Source: core/selection.py; docs/decisions/0021-downloads.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.selection import find_duplicates, plan_selection, select_default
from p2pcache.core.snapshot import FileEntry, Snapshot

ID = SnapshotId(RepoId("hf", "models", "org/name"), "a" * 40)


def make_files(files: Mapping[str, int]) -> list[FileEntry]:
    """Make files of these sizes, each of another content."""
    return [
        FileEntry(
            path, size, BlobDigest("sha256", hashlib.sha256(path.encode()).hexdigest()), "b" * 40
        )
        for path, size in files.items()
    ]


@pytest.mark.parametrize(
    ("kept", "left_out"),
    [
        ({"config.json": 1, "model.safetensors": 100}, {"pytorch_model.bin": 100}),
        (
            {"model-00001-of-00002.safetensors": 60, "model-00002-of-00002.safetensors": 40},
            {"pytorch_model-00001-of-00003.bin": 60, "pytorch_model-00002-of-00003.bin": 80},
        ),
        (
            {"model.safetensors": 100, "1_Pooling/config.json": 1, "onnx/config.json": 1},
            {
                "tf_model.h5": 100,
                "rust_model.ot": 100,
                "flax_model.msgpack": 100,
                "onnx/model.onnx": 100,
                "onnx/model_O4.onnx": 50,
                "openvino/openvino_model.bin": 100,
            },
        ),
        (
            {"model.safetensors": 100, "tokenizer.model": 2, "original/params.json": 1},
            {"original/consolidated.00.pth": 100, "model-q4.gguf": 30, "metal/model.bin": 100},
        ),
        (
            {
                "unet/diffusion_pytorch_model.safetensors": 90,
                "unet/diffusion_pytorch_model.fp16.safetensors": 45,
                "vae/diffusion_pytorch_model.bin": 9,
                "v1-5-pruned.safetensors": 80,
            },
            {
                "unet/diffusion_pytorch_model.bin": 90,
                "unet/diffusion_pytorch_model.fp16.bin": 45,
                "v1-5-pruned.ckpt": 80,
            },
        ),
        ({"adapter_model.safetensors": 5}, {"adapter_model.bin": 5}),
        (
            {"model.safetensors": 100, "vae/model.safetensors": 9},
            {"original/model.safetensors": 100, "vae/original/part.safetensors": 9},
        ),
    ],
)
def test_selection_leaves_out_the_same_weights_in_another_format(
    kept: dict[str, int], left_out: dict[str, int]
) -> None:
    """What people publish beside safetensors is spared; everything else is brought."""
    snapshot = Snapshot.of(ID, make_files({**left_out, **kept}))
    selection = plan_selection(snapshot)
    assert {entry.path for entry in selection.chosen} == kept.keys()
    assert {entry.path for entry in selection.left_out} == left_out.keys()
    assert selection.left_out_bytes == sum(left_out.values())
    assert select_default(snapshot.files) == selection.chosen


@pytest.mark.parametrize(
    "files",
    [
        {"pytorch_model.bin": 100, "config.json": 1},
        {"pytorch_model.bin": 100, "other.safetensors": 100},
        {"pytorch_model.bin": 100, "model.safetensors": 30},
        {"pytorch_model.bin": 100, "model-00001-of-00002.safetensors": 60},
        {"pytorch_model.bin": 100, "sub/model.safetensors": 100},
        {"model.safetensors": 100, "training_args.bin": 3, "optimizer.pt": 200},
        {"model.safetensors": 100, "consolidated.safetensors": 100},
        {"model.safetensors": 100, "model.fp16.safetensors": 50},
        {"q4.gguf": 40, "q8.gguf": 80},
        {"pytorch_model.fp16.bin": 50, "model.safetensors": 100},
        {"onnx/model.onnx": 100, "config.json": 1},
        {".bin": 1, "model.safetensors": 5},
        {".safetensors": 5, ".bin": 5, ".h5": 5},
        {},
    ],
)
def test_selection_without_a_whole_twin_leaves_nothing_out(files: dict[str, int]) -> None:
    """A missing shard, another name, far fewer bytes, another folder: all is brought."""
    assert find_duplicates(make_files(files)) == frozenset()
    assert len(select_default(make_files(files))) == len(files)


def test_selection_with_a_pattern_is_what_the_caller_says() -> None:
    """An include wins over the defaults; what an exclude takes away is no twin of anything."""
    files = {"model.safetensors": 100, "pytorch_model.bin": 100, "config.json": 1}
    snapshot = Snapshot.of(ID, make_files(files))

    def choose(include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> set[str]:
        return {entry.path for entry in plan_selection(snapshot, include, exclude).chosen}

    assert choose(("*",)) == files.keys()
    assert choose(("*.bin",)) == {"pytorch_model.bin"}
    assert choose((), ("*.safetensors",)) == {"pytorch_model.bin", "config.json"}
    assert choose((), ("*.json",)) == {"model.safetensors"}
