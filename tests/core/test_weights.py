"""
Owns the tests of core.weights: what heads say, compared with what the formats' libraries say.

Knows nothing of where heads come from.
Invariants: the libraries read whole files, we read heads alone.
Source: core/weights.py; safetensors; gguf.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from p2pcache.core.digest import BlobDigest
from p2pcache.core.snapshot import FileEntry
from p2pcache.core.tensors import MoreHead, TensorList, list_tensors
from p2pcache.core.weights import (
    SHAPES_MAX,
    FileWeights,
    ShapeCount,
    choose_weight_files,
    count_variants,
    is_weight_file,
    measure_weights,
    params_from_texts,
    params_to_text,
    plan_memory,
    shapes_from_text,
    shapes_to_text,
    sum_weights,
)
from tests.samples import COMMIT
from tests.tensorfiles import Tensors, make_gguf, make_safetensors

GIB = 1024**3
# Every type that the safetensors library knows: its word, and the bits of one element.
SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


def weigh(raw: bytes) -> tuple[FileWeights | None, int]:
    """Read a file as callers do, from its start; returns the facts and how much was read."""
    wanted = 16
    while True:
        found = list_tensors(raw[:wanted], len(raw))
        if not isinstance(found, MoreHead):
            break
        wanted = found.head_bytes
    return (measure_weights(found) if isinstance(found, TensorList) else None), wanted


def get_weights(raw: bytes) -> FileWeights:
    """Read a file that must be right."""
    found, _ = weigh(raw)
    assert found is not None
    return found


def make_tensors(chance: Random) -> Tensors:
    """Return one tensor of every type, a scalar, and two without elements."""
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for n, (dtype, bits) in enumerate(SAFETENSORS_BITS.items()):
        shape = [8, 3 + n]
        tensors[f"t.{dtype}"] = (dtype, shape, chance.randbytes(shape[0] * shape[1] * bits // 8))
    tensors["scalar"] = ("F32", [], chance.randbytes(4))
    tensors["empty"] = ("BF16", [0, 64], b"")
    tensors["also.empty"] = ("I64", [7, 0], b"")
    return tensors


def test_safetensors_of_every_type_count_as_the_library_counts(tmp_path: Path) -> None:
    """Parameters, types and tensors from the head are those of the whole file."""
    raw = make_safetensors(make_tensors(Random(1)), {"format": "pt"})
    (tmp_path / "m.safetensors").write_bytes(raw)
    params: Counter[str] = Counter()
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        names = list(file.keys())
        for name in names:
            part = file.get_slice(name)
            params[part.get_dtype()] += int(np.prod(part.get_shape(), dtype=np.int64))
    found, read_bytes = weigh(raw)
    assert found is not None
    assert dict(found.params) == dict(params)
    assert found.tensors == len(names)
    assert read_bytes < len(raw)
    assert found.tensor_bytes == len(raw) - read_bytes
    assert found.largest_tensor_bytes == max(
        len(content) for _, _, content in make_tensors(Random(1)).values()
    )


def test_sharded_safetensors_add_up_to_the_whole(tmp_path: Path) -> None:
    """The sum over shards is the count over all tensors, whichever shard they are in."""
    tensors = make_tensors(Random(2))
    names = list(tensors)
    shards = [{name: tensors[name] for name in names[start::3]} for start in range(3)]
    files = [get_weights(make_safetensors(shard)) for shard in shards]
    whole = get_weights(make_safetensors(tensors))
    summed = sum_weights(files, 1000)
    assert summed.params == dict(whole.params)
    assert (summed.files, summed.file_bytes, summed.tensors) == (3, 1000, whole.tensors)
    assert summed.tensor_bytes == whole.tensor_bytes
    assert summed.largest_tensor_bytes == whole.largest_tensor_bytes
    assert summed.rank_bytes(1) == whole.tensor_bytes


def write_gguf(path: Path, split_max: int = 0) -> list[Path]:
    """Write a GGUF file with every quantisation that the library can write, perhaps in parts."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split_max, small_first_shard=False)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token-{n}" for n in range(3000)])
    chance = np.random.default_rng(3)
    for kind in gguf.GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = chance.integers(0, 255, (4, 2 * size), dtype=np.uint8)
        shape = (4, 2 * block)
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            dtype = np.float32 if kind is gguf.GGMLQuantizationType.F32 else np.float16
            writer.add_tensor(f"t.{kind.name}", np.zeros(shape, dtype))
        else:
            writer.add_tensor(f"t.{kind.name}", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob("*.gguf"))


@pytest.mark.parametrize("split_max", [0, 7])
def test_gguf_of_every_type_counts_as_the_library_counts(tmp_path: Path, split_max: int) -> None:
    """Quantised types too, in one file and in a series of them."""
    paths = write_gguf(tmp_path / "model.gguf", split_max)
    assert len(paths) == (1 if not split_max else -(-len(gguf.GGMLQuantizationType) // 7))
    params: Counter[str] = Counter()
    sizes = []
    for path in paths:
        for tensor in gguf.GGUFReader(path).tensors:
            params[tensor.tensor_type.name] += int(tensor.n_elements)
            sizes.append(int(tensor.n_bytes))
    found = sum_weights([get_weights(path.read_bytes()) for path in paths], 0)
    assert found.params == dict(params)
    assert len(found.params) == len(gguf.GGMLQuantizationType)
    assert (found.tensors, found.tensor_bytes) == (len(sizes), sum(sizes))
    assert found.largest_tensor_bytes == max(sizes)


def test_gguf_without_tensors_and_safetensors_without_tensors_have_facts() -> None:
    """The first file of a series may hold nothing but metadata; that is no broken file."""
    for raw in (make_gguf({}, ["a"]), make_safetensors({}, {"a": "b"})):
        found = get_weights(raw)
        assert (found.tensors, found.tensor_bytes, found.params) == (0, 0, ())


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ("F32", [3], bytes(8))},
        {"a": ("F32", [-1, -3], bytes(12))},
        {"a": ("F4", [3], bytes(1))},
        {"a": ("BF16", [1 << 40, 1 << 40], b"")},
    ],
)
def test_head_that_contradicts_itself_has_no_facts(
    tensors: dict[str, tuple[str, list[int], bytes]],
) -> None:
    """A wrong count is worse than none."""
    assert weigh(make_safetensors(tensors))[0] is None


def test_type_that_is_newer_than_this_release_counts_by_its_bytes() -> None:
    """Tomorrow's types must not hide today's numbers."""
    found = get_weights(make_safetensors({"a": ("F3_NEW", [5], bytes(2))}))
    assert (dict(found.params), found.tensor_bytes) == ({"F3_NEW": 5}, 2)


GOOD_FILES = [
    make_safetensors({"a": ("F32", [2, 3], bytes(24)), "b": ("BF16", [5], bytes(10))}),
    make_gguf({"a": bytes(32), "b": bytes(16)}),
]


@given(st.sampled_from(GOOD_FILES), st.integers(0, 300), st.binary(max_size=40))
def test_no_bytes_make_the_count_fail_or_exceed_the_file(
    good: bytes, offset: int, hostile: bytes
) -> None:
    """What a file holds is somebody else's doing: it is unknown, or no more than there is."""
    for raw in (
        good[:offset] + hostile + good[offset + len(hostile) :],
        hostile,
        b"GGUF" + hostile,
    ):
        found, _ = weigh(raw)
        assert found is None or found.largest_tensor_bytes <= found.tensor_bytes <= len(raw)
    assert weigh(good)[0] is not None


# --- ranks and memory ---


def test_rank_holds_its_part_of_what_can_be_divided_and_the_rest_whole() -> None:
    """Matrices are split where a dimension allows it; vectors and odd ones are on every rank."""
    shapes = {
        "even": ("F32", [8, 5], bytes(160)),
        "odd": ("F32", [3, 5], bytes(60)),
        "vector": ("F32", [8], bytes(32)),
    }
    summed = sum_weights([get_weights(make_safetensors(shapes))], 0)
    assert summed.rank_bytes(1) == 252
    assert summed.rank_bytes(4) == 160 // 4 + 60 + 32
    assert summed.rank_bytes(5) == 160 // 5 + 60 // 5 + 32
    assert summed.rank_bytes(7) == 252


def test_more_shapes_than_are_told_apart_are_on_every_rank() -> None:
    """Bounded, and on the safe side."""
    tensors = {f"t{n}": ("U8", [2, n], bytes(2 * n)) for n in range(1, SHAPES_MAX + 3)}
    found = get_weights(make_safetensors(tensors))
    assert len(found.shapes) == SHAPES_MAX + 1
    summed = sum_weights([found], 0)
    assert summed.rank_bytes(1) == found.tensor_bytes
    assert summed.rank_bytes(2) == (found.tensor_bytes - 6) // 2 + 6


def test_memory_floor_is_weights_a_fifth_more_and_two_gib() -> None:
    """The formula of the decision, in whole bytes."""
    assert plan_memory(0) == 2 * GIB
    assert plan_memory(10) == 12 + 2 * GIB
    assert plan_memory(141_107_412_992) == 171_476_379_238


# --- which files ---


def make_entries(*paths: str) -> list[FileEntry]:
    """Return files of ten bytes, each with content of its own."""
    return [
        FileEntry(path, 10, BlobDigest("sha256", f"{n:064x}"), COMMIT)
        for n, path in enumerate(paths)
    ]


@pytest.mark.parametrize(
    ("paths", "chosen", "variants"),
    [
        (["a.safetensors", "b.gguf", "c.bin"], ["a.safetensors"], 1),
        (["m-Q4_K_M.gguf", "m-Q8_0.gguf"], ["m-Q4_K_M.gguf", "m-Q8_0.gguf"], 2),
        (
            ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"],
            ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"],
            1,
        ),
        (["pytorch_model.bin"], [], 0),
    ],
)
def test_weight_files_are_of_one_format(paths: list[str], chosen: list[str], variants: int) -> None:
    """Safetensors before GGUF; each quantisation of a repository of GGUF files is a model."""
    found = choose_weight_files(make_entries(*paths))
    assert [entry.path for entry in found] == chosen
    assert count_variants(entry.path for entry in found) == variants
    assert all(is_weight_file(path) for path in chosen)


def test_same_content_under_two_names_counts_once() -> None:
    """A blob is loaded once, whatever it is called."""
    one, other = make_entries("a.safetensors", "b.safetensors")
    same = FileEntry("c.safetensors", 10, one.digest, COMMIT)
    assert len(choose_weight_files([one, other, same])) == 2


def test_record_of_facts_is_read_as_it_was_written() -> None:
    """What the index keeps comes back."""
    params = (("BF16", 3), ("F32", 1 << 40))
    shapes = (ShapeCount((2, 3), 12, 5), ShapeCount((), 4, 1))
    assert params_from_texts(params_to_text(params)) == list(params)
    assert shapes_from_text(shapes_to_text(shapes)) == shapes
