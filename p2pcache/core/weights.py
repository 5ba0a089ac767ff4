"""
Owns what the heads of weight files say of a model: parameters by type, tensors, bytes in memory.

Knows nothing of where heads come from.
Invariants: counts are exact, as the formats' own libraries count; what a head gets wrong makes
the whole unknown, never a smaller number; equal inputs give equal facts.
Source: the safetensors format; the GGUF specification and ggml's table of types;
docs/decisions/0023-residency.md for the memory floor.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2pcache.core.snapshot import FileEntry
from p2pcache.core.tensors import Format, ListedTensor, TensorList

# Shapes that are told apart in one file: models have some dozens. What is above counts as tensors
# that every rank holds whole.
SHAPES_MAX = 1024
# Ranks of one model; the largest machines that share one have some hundred accelerators.
RANKS_MAX = 1024
# What a model takes beside its weights, as schedulers plan it: a fifth of the weights for
# activations and fragments, 2 GiB for context and cache (GPUStack's rule).
FLOOR_NUMERATOR, FLOOR_DENOMINATOR = 6, 5
FLOOR_FIXED_BYTES = 2 * 1024**3
# More elements than a file of the largest size can have, at one bit each: arithmetic stays small.
_ELEMENTS_MAX = 1 << 48

# Bits of one element, by the word that a safetensors head uses.
_SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
# ggml's types: number → (name, elements of a block, bytes of a block).
_GGUF_TYPES = {
    "0": ("F32", 1, 4), "1": ("F16", 1, 2), "2": ("Q4_0", 32, 18), "3": ("Q4_1", 32, 20),
    "6": ("Q5_0", 32, 22), "7": ("Q5_1", 32, 24), "8": ("Q8_0", 32, 34), "9": ("Q8_1", 32, 40),
    "10": ("Q2_K", 256, 84), "11": ("Q3_K", 256, 110), "12": ("Q4_K", 256, 144),
    "13": ("Q5_K", 256, 176), "14": ("Q6_K", 256, 210), "15": ("Q8_K", 256, 292),
    "16": ("IQ2_XXS", 256, 66), "17": ("IQ2_XS", 256, 74), "18": ("IQ3_XXS", 256, 98),
    "19": ("IQ1_S", 256, 50), "20": ("IQ4_NL", 32, 18), "21": ("IQ3_S", 256, 110),
    "22": ("IQ2_S", 256, 82), "23": ("IQ4_XS", 256, 136), "24": ("I8", 1, 1), "25": ("I16", 1, 2),
    "26": ("I32", 1, 4), "27": ("I64", 1, 8), "28": ("F64", 1, 8), "29": ("IQ1_M", 256, 56),
    "30": ("BF16", 1, 2), "34": ("TQ1_0", 256, 54), "35": ("TQ2_0", 256, 66),
    "39": ("MXFP4", 32, 17), "40": ("NVFP4", 64, 36), "41": ("Q1_0", 128, 18),
}  # fmt: skip
_SUFFIXES = {Format.SAFETENSORS: ".safetensors", Format.GGUF: ".gguf"}
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ShapeCount:
    """How many tensors of one file have the same dimensions and the same bytes each."""

    dimensions: tuple[int, ...]
    tensor_bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class FileWeights:
    """
    What one file's head lists. `params`: elements by type, in order of their names;
    `tensor_bytes`: all tensors together, without head and padding; `shapes` may be left out where
    nobody asks for ranks.
    """

    format: Format
    tensors: int
    tensor_bytes: int
    largest_tensor_bytes: int
    params: tuple[tuple[str, int], ...]
    shapes: tuple[ShapeCount, ...] = ()


@dataclass(frozen=True, slots=True)
class Weights:
    """The same for all weight files of a model together; `file_bytes`: their sizes."""

    format: Format
    files: int
    file_bytes: int
    tensors: int
    tensor_bytes: int
    largest_tensor_bytes: int
    params: dict[str, int] = field(default_factory=dict)
    shapes: tuple[ShapeCount, ...] = ()

    @property
    def memory_floor_bytes(self) -> int:
        """Return what to plan with on one accelerator; see plan_memory()."""
        return plan_memory(self.tensor_bytes)

    def rank_bytes(self, ranks: int) -> int:
        """
        Return the bytes of tensors that the fullest of some ranks holds.

        A tensor of two dimensions or more is split where one of them can be divided by the number
        of ranks; what cannot be divided, and what has one dimension, every rank holds whole.
        """
        assert 1 <= ranks <= RANKS_MAX, "ranks out of bounds"
        total = 0
        for shape in self.shapes:
            is_split = len(shape.dimensions) > 1 and any(n % ranks == 0 for n in shape.dimensions)
            each = -(-shape.tensor_bytes // ranks) if is_split else shape.tensor_bytes
            total += each * shape.count
        return total


def plan_memory(tensor_bytes: int) -> int:
    """Return a floor for an accelerator's memory: the weights and a fifth, and 2 GiB."""
    return tensor_bytes * FLOOR_NUMERATOR // FLOOR_DENOMINATOR + FLOOR_FIXED_BYTES


def is_weight_file(path: str) -> bool:
    """Return whether a file's name says that its head lists tensors."""
    return path.lower().endswith(tuple(_SUFFIXES.values()))


def choose_weight_files(files: Iterable[FileEntry]) -> list[FileEntry]:
    """Return the weight files of a model: its safetensors, else its GGUF files; each blob once."""
    entries = list(files)
    chosen = find_weight_files([entry.path for entry in entries])
    return list({entries[n].digest: entries[n] for n in chosen}.values())


def find_weight_files(paths: Iterable[str]) -> list[int]:
    """Return where, in a list of paths, a model's weight files are, as choose_weight_files()."""
    lowered = [path.lower() for path in paths]
    for suffix in _SUFFIXES.values():
        chosen = [n for n, path in enumerate(lowered) if path.endswith(suffix)]
        if chosen:
            return chosen
    return []


def count_variants(paths: Iterable[str]) -> int:
    """
    Return how many models some weight files are: a repository of GGUF files holds the same model
    in several quantisations, each a file or a series of numbered ones; others hold one.
    """
    names = set()
    for path in paths:
        if not path.lower().endswith(_SUFFIXES[Format.GGUF]):
            return 1
        split = _SPLIT.fullmatch(path)
        names.add(split[1] if split else path)
    return len(names)


def measure_weights(listed: TensorList) -> FileWeights | None:
    """Count what a head lists; None when a tensor has other bytes than its type and shape say."""
    params: Counter[str] = Counter()
    shapes: Counter[tuple[tuple[int, ...], int]] = Counter()
    total = largest = 0
    for tensor in listed.tensors:
        elements = math.prod(tensor.shape) if all(n >= 0 for n in tensor.shape) else -1
        if not 0 <= elements <= _ELEMENTS_MAX:
            return None
        measured = _measure_tensor(listed.format, tensor, elements)
        if measured is None:
            return None
        dtype, size_bytes = measured
        params[dtype] += elements
        shapes[tensor.shape, size_bytes] += 1
        total += size_bytes
        largest = max(largest, size_bytes)
    return FileWeights(
        listed.format,
        len(listed.tensors),
        total,
        largest,
        tuple(sorted(params.items())),
        _count_shapes(shapes),
    )


def _measure_tensor(format: Format, tensor: ListedTensor, elements: int) -> tuple[str, int] | None:
    """Return (type's name, bytes); a type that is newer than this table has what lies there."""
    if format is Format.SAFETENSORS:
        bits = _SAFETENSORS_BITS.get(tensor.dtype)
        if bits is not None and elements * bits != tensor.length * 8:
            return None
        return tensor.dtype, tensor.length
    known = _GGUF_TYPES.get(tensor.dtype)
    if known is None:
        return f"type {tensor.dtype}", tensor.length
    name, block_elements, block_bytes = known
    size_bytes = elements * block_bytes // block_elements
    return (name, size_bytes) if size_bytes <= tensor.length else None


def _count_shapes(shapes: Counter[tuple[tuple[int, ...], int]]) -> tuple[ShapeCount, ...]:
    ordered = sorted(shapes.items(), key=lambda item: (-item[0][1] * item[1], item[0]))
    kept = [ShapeCount(dims, size, count) for (dims, size), count in ordered[:SHAPES_MAX]]
    rest_bytes = sum(size * count for (_, size), count in ordered[SHAPES_MAX:])
    return (*kept, ShapeCount((), rest_bytes, 1)) if rest_bytes else tuple(kept)


def sum_weights(
    files: Sequence[FileWeights],
    file_bytes: int,
    file_count: int | None = None,
    shapes: tuple[ShapeCount, ...] = (),
) -> Weights:
    """
    Add up the files of one model.

    Args:
        files: At least one, all of one format; one may stand for several that were added up.
        file_bytes: Of all files together.
        file_count: How many they are, where one stands for several.
        shapes: The shapes of files that were added up without theirs.
    """
    params: dict[str, int] = {}
    for entry in files:
        for dtype, count in entry.params:
            params[dtype] = params.get(dtype, 0) + count
    return Weights(
        files[0].format,
        len(files) if file_count is None else file_count,
        file_bytes,
        sum(entry.tensors for entry in files),
        sum(entry.tensor_bytes for entry in files),
        max(entry.largest_tensor_bytes for entry in files),
        dict(sorted(params.items())),
        (*(shape for entry in files for shape in entry.shapes), *shapes),
    )


# --- their record ---


def params_to_text(params: Iterable[tuple[str, int]]) -> str:
    """Return parameters by type as the index keeps them."""
    return json.dumps(dict(params), separators=(",", ":"))


def params_from_texts(texts: str) -> list[tuple[str, int]]:
    """Read what params_to_text() wrote for several files, with commas between them."""
    return [pair for params in json.loads(f"[{texts}]") for pair in params.items()]


def shapes_to_text(shapes: Iterable[ShapeCount]) -> str:
    """Return shapes as the index keeps them."""
    rows = [[list(s.dimensions), s.tensor_bytes, s.count] for s in shapes]
    return json.dumps(rows, separators=(",", ":"))


def shapes_from_text(text: str) -> tuple[ShapeCount, ...]:
    """Read what shapes_to_text() wrote."""
    return tuple(ShapeCount(tuple(dims), size, count) for dims, size, count in json.loads(text))
