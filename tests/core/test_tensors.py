"""
Owns the tests of core.tensors: what real libraries agree with, and heads that were made to harm.

Knows nothing of files but those that the real libraries read.
Invariants: no bytes make read_tensors() raise; what it asks for grows and is bounded; tensors that
it returns lie in the file, in order, without overlap.
Source: core/tensors.py; the safetensors and gguf libraries; the Trail of Bits audit of safetensors.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import gguf
import pytest
import safetensors
from hypothesis import example, given
from hypothesis import strategies as st

from bench.sample import CACHE, MODEL
from p2pcache.core import layout as layouts
from p2pcache.core import tensors as module
from p2pcache.core.layout import FIXED_LAYOUT, Layout
from p2pcache.core.tensors import (
    DIMENSIONS_MAX,
    FIRST_HEAD_BYTES,
    HEAD_BYTES_MAX,
    JSON_BYTES_MAX,
    JSON_MARKS_MAX,
    KEYS_MAX,
    TENSORS_MAX,
    TEXTS_MAX,
    MoreHead,
    TensorMap,
    may_have_tensors,
    read_tensors,
)
from tests.tensorfiles import make_gguf, make_safetensors, read_safetensors

REAL_MODEL = CACHE / "models" / MODEL / "model.safetensors"
STEP_BYTES, LARGE_BYTES = 1024, 256
# What a parse may add to this process, whatever the head; a quarter of it is the head's own text.
PARSE_BYTES_MAX = 400 * 1024 * 1024


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> Iterator[None]:
    """Cut every KiB, and call a quarter of one large, so that files of many tensors stay small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "CHUNK_SIZE_BYTES", STEP_BYTES)
        patch.setattr(module, "LARGE_TENSOR_BYTES_MIN", LARGE_BYTES)
        yield


def read_stepwise(raw: bytes, first_bytes: int = 0) -> TensorMap | None:
    """Read as callers do, from a start of the file; every wish for more must be a fair one."""
    given_bytes = first_bytes
    while True:
        found = read_tensors(raw[:given_bytes], len(raw))
        if not isinstance(found, MoreHead):
            return found
        assert given_bytes < found.head_bytes <= min(len(raw), HEAD_BYTES_MAX)
        given_bytes = found.head_bytes


def find_map(raw: bytes) -> TensorMap:
    """Read a file that must have tensors."""
    found = read_stepwise(raw, FIRST_HEAD_BYTES)
    assert found is not None
    return found


def assert_sound(found: TensorMap, size_bytes: int) -> None:
    """Tensors and segments lie in the file in order, and the layout covers it once."""
    assert found.size_bytes == size_bytes
    end = found.head_bytes
    assert end > 0
    for tensor in found.tensors:
        assert tensor.start >= end
        assert tensor.length > 0
        end = tensor.start + tensor.length
    assert end <= size_bytes
    segments = found.segments()
    end = found.head_bytes
    for segment in segments:
        assert segment.start == end
        assert segment.label
        is_joined = len(segment.label) > 1
        assert segment.length <= STEP_BYTES or not is_joined
        end += segment.length
    assert end == size_bytes
    layout = found.layout()
    assert layout.measure(range(layout.chunk_count)) == size_bytes
    if layout.name != FIXED_LAYOUT:
        starts = {layout.offset_of(index) for index in range(layout.chunk_count)}
        assert starts >= {segment.start for segment in segments}


def make_head(text: bytes, *, length: int | None = None, body: bytes = bytes(5000)) -> bytes:
    """Return a safetensors file with a head of these bytes."""
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def make_entries(entries: dict[str, object], body: bytes = bytes(5000)) -> bytes:
    """Return a safetensors file with a head that says this."""
    return make_head(json.dumps(entries).encode(), body=body)


def entry(begin: object, end: object, **change: object) -> dict[str, object]:
    """Return a tensor's entry."""
    return {"dtype": "U8", "shape": [1], "data_offsets": [begin, end], **change}


# --- files as they are written ---

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
lengths = st.sampled_from([0, 4, 8, 252, 256, 260, 1020, 1024, 1028, 2048, 5000])
files = st.dictionaries(names, lengths, max_size=12)


@given(files, st.booleans(), st.integers(0, 40))
@example({"a": 2048}, True, 0)
def test_safetensors_any_file_is_read_as_it_was_written(
    wanted: dict[str, int], has_metadata: bool, first_bytes: int
) -> None:
    """Names, places and lengths are those of the file; empty tensors are left out."""
    tensors = {name: ("U8", [length], bytes(length)) for name, length in wanted.items()}
    raw = make_safetensors(tensors, {"format": "pt"} if has_metadata else None)
    found = read_stepwise(raw, first_bytes)
    if len(raw) <= STEP_BYTES or not any(wanted.values()):
        assert found is None
        return
    assert found is not None
    assert_sound(found, len(raw))
    start = len(raw) - sum(wanted.values())
    for tensor, (name, length) in zip(
        found.tensors, ((n, size) for n, size in wanted.items() if size), strict=True
    ):
        assert (tensor.name, tensor.start, tensor.length) == (name, start, length)
        start += length


@given(files, st.lists(names, max_size=5), st.integers(0, 60))
def test_gguf_any_file_is_read_as_it_was_written(
    wanted: dict[str, int], vocabulary: list[str], first_bytes: int
) -> None:
    """Names and places are those of the file; a tensor reaches up to the next one."""
    raw = make_gguf({name: b"\1" * length for name, length in wanted.items()}, vocabulary)
    found = read_stepwise(raw, first_bytes)
    if len(raw) <= STEP_BYTES or not any(wanted.values()):
        assert found is None
        return
    assert found is not None
    assert_sound(found, len(raw))
    kept = {name: length for name, length in wanted.items() if length}
    assert [tensor.name for tensor in found.tensors] == list(kept)
    for tensor in found.tensors:
        content = raw[tensor.start : tensor.start + tensor.length]
        assert content.rstrip(b"\0") == b"\1" * kept[tensor.name]


@given(files, st.integers(0, 3), st.data())
def test_tensors_keep_their_segments_at_any_offset(
    wanted: dict[str, int], extra_count: int, data: st.DataObject
) -> None:
    """A large tensor has the same chunks in another file, wherever it lies there."""
    tensors = {
        name: ("U8", [length], Random(name).randbytes(length)) for name, length in wanted.items()
    }
    extra = {f"\0{n}": ("U8", [500], bytes(500)) for n in range(extra_count)}
    shifted = {**extra, **tensors}
    metadata = {"note": "x" * data.draw(st.integers(0, 100))}
    raws = make_safetensors(tensors, metadata), make_safetensors(shifted)
    found = [read_stepwise(raw, FIRST_HEAD_BYTES) for raw in raws]
    if found[0] is None or found[1] is None:
        return
    parts = [
        {
            segment.label: raw[segment.start : segment.start + segment.length]
            for segment in one.segments()
            if segment.length >= LARGE_BYTES and len(segment.label) == 1
        }
        for one, raw in zip(found, raws, strict=True)
        if one is not None
    ]
    large = {((n, f"U8[{size}]"),) for n, size in wanted.items() if size >= LARGE_BYTES}
    assert {label: parts[0][label] for label in large} == {
        label: parts[1][label] for label in large
    }


def test_small_tensors_are_joined_up_to_a_chunk() -> None:
    """Norms and biases between large tensors become one segment, as long as it is one chunk."""
    tensors = {
        name: ("U8", [size], bytes(size))
        for name, size in [("a", 300), ("b", 4), ("c", 4), ("d", 256), ("e", 255)]
    }
    tensors |= {f"f{n}": ("U8", [200], bytes(200)) for n in range(6)}
    found = find_map(make_safetensors(tensors))
    assert ["".join(name for name, _ in s.label) for s in found.segments()] == [
        "a",
        "bc",
        "d",
        "ef0f1f2",
        "f3f4f5",
    ]
    layout = found.layout()
    assert layout.name != FIXED_LAYOUT
    assert layout.chunk_count == 6


def test_gap_between_head_and_first_tensor_belongs_to_the_head() -> None:
    """Padding is cut as the head is."""
    raw = make_gguf({"a": bytes(2000)})
    found = find_map(raw)
    assert found.head_bytes % 32 == 0
    assert found.layout().offset_of(1) == found.head_bytes


def test_layout_of_tensors_that_lie_at_every_step_is_the_fixed_one() -> None:
    """Two names for the same boundaries would keep peers apart."""
    fill = STEP_BYTES - 8 - len(make_safetensors({"a": ("U8", [4096], b"")}, {"x": ""})) + 8
    raw = make_safetensors({"a": ("U8", [4096], bytes(4096))}, {"x": "y" * (fill - 8)})
    while len(raw) % STEP_BYTES:
        fill += 1
        raw = make_safetensors({"a": ("U8", [4096], bytes(4096))}, {"x": "y" * (fill - 8)})
    found = find_map(raw)
    assert found.head_bytes == STEP_BYTES
    assert found.layout() == Layout(len(raw))


def test_file_with_more_chunks_than_a_layout_may_have_is_cut_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many boundaries cost every peer memory; no known file has so many."""
    raw = make_safetensors({f"t{n}": ("U8", [256], bytes(256)) for n in range(64)})
    assert find_map(raw).layout().name != FIXED_LAYOUT
    monkeypatch.setattr(layouts, "CHUNKS_PER_STEP_MAX", 2)
    assert find_map(raw).layout() == Layout(len(raw))


# --- what the real libraries say ---


def deserialize(raw: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Return what the safetensors library finds in a file."""
    return safetensors.deserialize(raw)  # type: ignore[no-any-return,no-untyped-call]


def assert_as_safetensors_reads(raw: bytes) -> None:
    """Compare names, shapes and bytes with what the safetensors library finds."""
    truth = {
        name: (info["dtype"], list(info["shape"]), bytes(info["data"]))
        for name, info in deserialize(raw)
        if len(info["data"])
    }
    found = find_map(raw)
    assert_sound(found, len(raw))
    assert {tensor.name for tensor in found.tensors} == set(truth)
    for tensor in found.tensors:
        kind, shape, content = truth[tensor.name]
        assert tensor.kind == f"{kind}{shape}"
        assert raw[tensor.start : tensor.start + tensor.length] == content
    assert {name: full for name, full in read_safetensors(raw).items() if full[2]} == truth


def test_safetensors_library_reads_the_same_of_our_files() -> None:
    """Types, several dimensions, scalars, empty tensors, names that are not ASCII."""
    tensors = {
        "scalar": ("F32", [], bytes(4)),
        "empty": ("I64", [0, 7], b""),
        "α.weight \u2028": ("F16", [16, 32], Random(1).randbytes(1024)),
        "bias": ("U8", [5], b"12345"),
        "last": ("BF16", [2, 3, 100], Random(2).randbytes(1200)),
    }
    assert_as_safetensors_reads(make_safetensors(tensors))
    assert_as_safetensors_reads(make_safetensors(tensors, {"format": "pt"}))


@pytest.mark.skipif(not REAL_MODEL.exists(), reason="the real model was not downloaded")
def test_safetensors_library_reads_the_same_of_a_real_model() -> None:
    """All of 103 tensors of a published model, with the true sizes of chunks."""
    raw = REAL_MODEL.read_bytes()
    assert_as_safetensors_reads(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "CHUNK_SIZE_BYTES", 4 * 1024 * 1024)
        patch.setattr(module, "LARGE_TENSOR_BYTES_MIN", 256 * 1024)
        found = find_map(raw)
        assert len(found.tensors) == len(deserialize(raw)) > 100
        layout = found.layout()
        assert layout.name != FIXED_LAYOUT
        assert layout.measure(range(layout.chunk_count)) == len(raw)


def test_gguf_library_reads_the_same_of_our_files(tmp_path: Path) -> None:
    """Names, places and sizes of every tensor."""
    wanted = {f"blk.{n}.weight": Random(n).randbytes(512 + 4 * n) for n in range(9)}
    path = tmp_path / "model.gguf"
    path.write_bytes(make_gguf(wanted, ["a", "bc", "é"]))
    assert_as_gguf_reads(path)


def test_gguf_library_writes_what_we_read(tmp_path: Path) -> None:
    """A file of the real writer: every type of value, an alignment of its own."""
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    writer.add_uint8("x.u8", 1)
    writer.add_int8("x.i8", -1)
    writer.add_uint16("x.u16", 1)
    writer.add_int16("x.i16", -1)
    writer.add_int32("x.i32", -1)
    writer.add_uint64("x.u64", 1 << 60)
    writer.add_int64("x.i64", -1)
    writer.add_float32("x.f32", 1.5)
    writer.add_float64("x.f64", 1.5)
    writer.add_bool("x.bool", True)
    writer.add_array("x.numbers", [1, 2, 3])
    writer.add_token_list([f"token{n}" for n in range(300)])
    writer.add_token_scores([0.5] * 300)
    for number, shape in enumerate([(32, 10), (7,), (256, 2, 2), (1,)]):
        writer.add_tensor(f"t{number}", numpy.ones(shape, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_as_gguf_reads(path)


def assert_as_gguf_reads(path: Path) -> None:
    """Compare names, places and bytes with what the gguf library finds."""
    raw = path.read_bytes()
    truth = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    found = find_map(raw)
    assert_sound(found, len(raw))
    assert {tensor.name for tensor in found.tensors} == set(truth)
    for tensor in found.tensors:
        true = truth[tensor.name]
        assert tensor.start == true.data_offset
        assert 0 <= tensor.length - true.n_bytes < 128
        assert raw[tensor.start : tensor.start + true.n_bytes] == true.data.tobytes()


# --- a head that arrives in pieces ---

SAFETENSORS = make_safetensors(
    {"a": ("F32", [100], bytes(400)), "é": ("F32", [1], bytes(4)), "z": ("U8", [900], bytes(900))},
    {"format": "pt"},
)
GGUF = make_gguf({"a": bytes(400), "é": bytes(4), "z": bytes(900)}, ["x", "yz", ""])


@pytest.mark.parametrize("raw", [SAFETENSORS, GGUF], ids=["safetensors", "gguf"])
def test_head_cut_at_any_byte_asks_for_more_of_it(raw: bytes) -> None:
    """Every start of a file leads to the same tensors, by asking for more and never for less."""
    whole = find_map(raw)
    assert len(whole.tensors) == 3
    for kept in range(whole.head_bytes + 10):
        found = read_tensors(raw[:kept], len(raw))
        assert found == whole or isinstance(found, MoreHead)
        assert read_stepwise(raw, kept) == whole


@given(
    st.sampled_from([SAFETENSORS, GGUF]), st.integers(0, 400), st.integers(0, 255), st.booleans()
)
def test_head_with_one_changed_byte_is_read_or_left(
    raw: bytes, place: int, value: int, is_cut: bool
) -> None:
    """No change makes it fail, and what is found is sound."""
    changed = bytearray(raw)
    changed[place] = value
    found = read_stepwise(bytes(changed), place if is_cut else FIRST_HEAD_BYTES)
    if found is not None:
        assert_sound(found, len(raw))


@given(st.binary(max_size=300), st.integers(0, 1 << 62))
def test_any_bytes_are_read_or_left(raw: bytes, size_bytes: int) -> None:
    """Whatever a file holds, and whatever size it is said to have."""
    for head in (raw, b"GGUF\3\0\0\0" + raw, struct.pack("<Q", len(raw)) + b"{" + raw):
        found = read_tensors(head, size_bytes)
        if isinstance(found, MoreHead):
            assert len(head) < found.head_bytes <= min(size_bytes, HEAD_BYTES_MAX)
        elif found is not None:
            assert_sound(found, size_bytes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(json_values, json_values, json_values)
def test_any_json_is_read_or_left(kind: object, shape: object, offsets: object) -> None:
    """Every field may be anything."""
    for entries in (
        {"a": {"dtype": kind, "shape": shape, "data_offsets": offsets}},
        {"a": entry(0, 5000, dtype=kind), "__metadata__": shape},
        {"a": offsets},
        kind,
    ):
        raw = make_head(json.dumps(entries).encode())
        found = read_stepwise(raw, FIRST_HEAD_BYTES)
        if found is not None:
            assert_sound(found, len(raw))


# --- heads that were made to harm: safetensors ---


@pytest.mark.parametrize(
    "length",
    [0, 1, JSON_BYTES_MAX + 1, HEAD_BYTES_MAX, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63],
)
def test_safetensors_impossible_length_is_left_at_once(length: int) -> None:
    """Nothing is asked for, and nothing allocated, by a number that a file declares."""
    raw = make_head(b'{"a":1}', length=length)
    assert read_tensors(raw, 1 << 40) is None
    assert read_tensors(raw[:8], 1 << 40) is None


def test_safetensors_head_beyond_the_file_is_left() -> None:
    """The declared length is held against the real size."""
    text = json.dumps({"a": entry(0, 5000)}).encode()
    raw = make_head(text)
    assert read_tensors(raw[:8], len(raw)) == MoreHead(8 + len(text))
    assert read_tensors(make_head(text, length=len(raw))[:8], len(raw)) is None
    assert read_tensors(make_head(text, length=len(raw) - 7), len(raw)) is None


def test_safetensors_head_without_a_brace_is_left_before_it_is_fetched() -> None:
    """Any eight bytes may look like a length; what follows tells."""
    raw = struct.pack("<Q", JSON_BYTES_MAX) + b"x"
    assert read_tensors(raw, 1 << 40) is None
    assert read_tensors(raw[:8] + b"{", 1 << 40) == MoreHead(8 + JSON_BYTES_MAX)


GOOD = {"a": entry(0, 2000), "b": entry(2000, 5000)}
BOMBS: dict[str, object] = {
    "no tensor": {},
    "metadata only": {"__metadata__": {"a": "b"}},
    "all empty": {"a": entry(0, 0), "b": entry(0, 0)},
    "hole": {"a": entry(0, 2000), "b": entry(2001, 5000)},
    "hole, and beyond the file": {"a": entry(0, 2000), "b": entry(2001, 5001)},
    "there and back": {"a": entry(0, 6000), "b": entry(6000, 5000)},
    "hole at the start": {"a": entry(1, 5000)},
    "overlap": {"a": entry(0, 2001), "b": entry(2000, 5000)},
    "one over another": {"a": entry(0, 5000), "b": entry(0, 5000)},
    "an empty one inside another": {"a": entry(0, 5000), "b": entry(100, 100)},
    "too short": {"a": entry(0, 4999)},
    "too long": {"a": entry(0, 5001)},
    "backwards": {"a": entry(5000, 0)},
    "negative": {"a": entry(-8, 4992)},
    "far beyond": {"a": entry(0, 1 << 63)},
    "huge": {"a": entry(10**4000, 10**4001)},
    "float": {"a": entry(0.0, 5000.0)},
    "not a number": {"a": entry(0, float("nan"))},
    "infinite": {"a": entry(0, float("inf"))},
    "bool": {"a": entry(False, 5000)},
    "text": {"a": entry("0", "5000")},
    "null": {"a": entry(None, None)},
    "one offset": {"a": {"dtype": "U8", "shape": [], "data_offsets": [5000]}},
    "three offsets": {"a": {"dtype": "U8", "shape": [], "data_offsets": [0, 2, 5000]}},
    "offsets as an object": {"a": {"dtype": "U8", "shape": [], "data_offsets": {"0": 5000}}},
    "no offsets": {"a": {"dtype": "U8", "shape": []}},
    "no type": {"a": {"shape": [], "data_offsets": [0, 5000]}},
    "type that is no text": {"a": entry(0, 5000, dtype=7)},
    "shape that is no list": {"a": entry(0, 5000, shape=5000)},
    "shape of floats": {"a": entry(0, 5000, shape=[5000.0])},
    "shape of bools": {"a": entry(0, 5000, shape=[True])},
    "shape of lists": {"a": entry(0, 5000, shape=[[5000]])},
    "too many dimensions": {"a": entry(0, 5000, shape=[1] * (DIMENSIONS_MAX + 1))},
    "entry that is a list": {"a": [0, 5000]},
    "entry that is null": {"a": None},
    "list": [GOOD],
    "number": 7,
}


@pytest.mark.parametrize("entries", BOMBS.values(), ids=BOMBS)
def test_safetensors_head_that_breaks_a_rule_is_left(entries: object) -> None:
    """A file that is not what it says is cut as any other, without an error."""
    assert read_stepwise(make_head(json.dumps(GOOD).encode()), FIRST_HEAD_BYTES) is not None
    assert read_stepwise(make_head(json.dumps(entries).encode()), FIRST_HEAD_BYTES) is None


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,5000]},"a":'
        b'{"dtype":"U8","shape":[],"data_offsets":[0,5000]}}',
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,5000]}}',
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,5000]}}}',
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,5000]}',
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,0x1388]}}',
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,05000]}}',
        b'{"\xff":{"dtype":"U8","shape":[],"data_offsets":[0,5000]}}',
        b'{"\xed\xa0\x80":{"dtype":"U8","shape":[],"data_offsets":[0,5000]}}',
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,5000]}}\0\0\0',
        json.dumps({"a": entry(0, 5000)}).encode("utf-16-le"),
        b"{",
        b"{}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"a":' + b"[" * 200_000,
    ],
)
def test_safetensors_head_that_is_no_good_json_is_left(text: bytes) -> None:
    """Names twice, garbage behind, other encodings, and nesting that would end a parser."""
    assert read_stepwise(make_head(text), FIRST_HEAD_BYTES) is None


def test_safetensors_strange_but_right_heads_are_read() -> None:
    """Spaces, other fields, a scalar, tensors out of order, more metadata than tensors."""
    entries: dict[str, object] = {
        "b": entry(2000, 5000, more="x"),
        "__metadata__": {"a": "[" * 1000},
        "a": entry(0, 2000, shape=[]),
        "empty": entry(2000, 2000, shape=[0]),
    }
    text = b"{ \n" + json.dumps(entries).encode()[1:] + b"   \n"
    found = find_map(make_head(text))
    assert [tensor.name for tensor in found.tensors] == ["a", "b"]


def test_files_whose_tensors_are_all_empty_are_left() -> None:
    """Right by their formats, with nothing to cut at."""
    head = json.dumps({"a": entry(0, 0), "b": entry(0, 0)}).encode() + b" " * 2000
    assert read_stepwise(make_head(head, body=b""), FIRST_HEAD_BYTES) is None
    note = pair(8, text(bytes(2000)))
    size_bytes = len(make_raw_gguf([note], ONE, body=0))
    raw = make_raw_gguf([note], ONE, body=-size_bytes % 32)
    assert read_stepwise(raw, FIRST_HEAD_BYTES) is None


def test_safetensors_with_the_most_tensors_is_read_and_one_more_is_left() -> None:
    """The limit is inclusive; above it the file is cut as any other."""
    entries: dict[str, object] = {f"{n}": entry(n, n + 1) for n in range(TENSORS_MAX)}
    found = read_stepwise(make_entries(entries, bytes(TENSORS_MAX)), FIRST_HEAD_BYTES)
    assert found is not None
    assert len(found.tensors) == TENSORS_MAX
    entries["more"] = entry(TENSORS_MAX, TENSORS_MAX + 1)
    assert read_stepwise(make_entries(entries, bytes(TENSORS_MAX + 1)), FIRST_HEAD_BYTES) is None


# --- heads that were made to harm: GGUF ---


def text(value: bytes) -> bytes:
    """Return a GGUF text."""
    return struct.pack("<Q", len(value)) + value


def pair(kind: int, value: bytes, key: bytes = b"k") -> bytes:
    """Return a key with a value."""
    return text(key) + struct.pack("<I", kind) + value


def place(name: bytes, offset: int, shape: tuple[int, ...] = (1,)) -> bytes:
    """Return where a tensor is."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", 0, offset)


def make_raw_gguf(
    pairs: list[bytes],
    places: list[bytes],
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    body: int = 8192,
) -> bytes:
    """Return a GGUF file of these parts, whether they fit or not."""
    tensor_count, pair_count = counts or (len(places), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, pair_count)
    return head + b"".join([*pairs, *places]) + bytes(body)


ONE = [place(b"a", 0)]
ALIGNMENT = b"general.alignment"
HUGE = (1 << 64) - 1


def make_array(kind: int, count: int, items: bytes = b"") -> bytes:
    """Return a key with an array."""
    return pair(9, struct.pack("<IQ", kind, count) + items)


GGUF_BOMBS: dict[str, bytes] = {
    "version 0": make_raw_gguf([], ONE, version=0),
    "version 1": make_raw_gguf([], ONE, version=1),
    "version 4": make_raw_gguf([], ONE, version=4),
    "big-endian": make_raw_gguf([], ONE, version=3 << 24),
    "no tensor": make_raw_gguf([], []),
    "tensors without end": make_raw_gguf([], ONE, counts=(HUGE, 0)),
    "one tensor too many": make_raw_gguf([], ONE, counts=(TENSORS_MAX + 1, 0)),
    "keys without end": make_raw_gguf([], ONE, counts=(1, HUGE)),
    "one key too many": make_raw_gguf([], ONE, counts=(1, KEYS_MAX + 1)),
    "key without end": make_raw_gguf([struct.pack("<Q", HUGE)], ONE),
    "long key": make_raw_gguf([pair(0, b"\0", b"k" * 65_536)], ONE),
    "key that is no text": make_raw_gguf([pair(0, b"\0", b"\xff")], ONE),
    "text without end": make_raw_gguf([pair(8, struct.pack("<Q", HUGE))], ONE),
    "text beyond the file": make_raw_gguf([pair(8, struct.pack("<Q", 20_000))], ONE),
    "numbers without end": make_raw_gguf([make_array(0, HUGE)], ONE),
    "long numbers without end": make_raw_gguf([make_array(12, 1 << 62)], ONE),
    "numbers beyond the file": make_raw_gguf([make_array(12, 2000)], ONE),
    "texts without end": make_raw_gguf([make_array(8, HUGE)], ONE),
    "one text too many": make_raw_gguf([make_array(8, TEXTS_MAX + 1)], ONE),
    "texts beyond the file": make_raw_gguf([make_array(8, 2000)], ONE),
    "text in an array without end": make_raw_gguf([make_array(8, 1, b"\xff" * 8)], ONE),
    "array of arrays": make_raw_gguf([make_array(9, 1, struct.pack("<IQ", 0, 1) + b"\0")], ONE),
    "array of what": make_raw_gguf([make_array(13, 1)], ONE),
    "type of value": make_raw_gguf([pair(13, b"\0")], ONE),
    "alignment 0": make_raw_gguf([pair(4, bytes(4), ALIGNMENT)], ONE),
    "alignment of 4 GiB": make_raw_gguf([pair(4, b"\xff" * 4, ALIGNMENT)], ONE),
    "offset off its alignment": make_raw_gguf([], [place(b"a", 0), place(b"b", 33)]),
    "offset beyond the file": make_raw_gguf([], [place(b"a", 0), place(b"b", 1 << 20)]),
    "offset beyond all": make_raw_gguf([], [place(b"a", HUGE - 31)]),
    "dimensions": make_raw_gguf([], [place(b"a", 0, (1,) * (DIMENSIONS_MAX + 1))]),
    "name without end": make_raw_gguf([], [struct.pack("<Q", HUGE)]),
    "name that is no text": make_raw_gguf([], [place(b"\xff", 0)]),
    "no room for data": make_raw_gguf([pair(8, text(bytes(2000)))], ONE, body=0),
}


@pytest.mark.parametrize("raw", GGUF_BOMBS.values(), ids=GGUF_BOMBS)
def test_gguf_head_that_breaks_a_rule_is_left(raw: bytes) -> None:
    """A declared number is held against what is there; nothing grows with it."""
    assert read_stepwise(make_raw_gguf([], ONE), FIRST_HEAD_BYTES) is not None
    assert read_stepwise(raw, FIRST_HEAD_BYTES) is None
    assert read_stepwise(raw) is None


def test_gguf_hole_before_the_first_tensor_is_part_of_the_head() -> None:
    """Allowed by the format, so it must not make boundaries overlap."""
    raw = make_raw_gguf([], [place(b"b", 4096), place(b"a", 2048), place(b"c", 4096)])
    found = find_map(raw)
    assert_sound(found, len(raw))
    assert [tensor.name for tensor in found.tensors] == ["a", "c"]


def test_gguf_head_longer_than_the_limit_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would lie behind the limit is never asked for, what lies before it is."""
    raw = make_raw_gguf([pair(8, text(bytes(3000)))], ONE)
    whole = find_map(raw)
    needed = len(raw) - 8192
    monkeypatch.setattr(module, "HEAD_BYTES_MAX", needed)
    assert read_tensors(raw[: needed - 1], len(raw)) == MoreHead(needed)
    assert read_tensors(raw[:needed], len(raw)) == whole
    monkeypatch.setattr(module, "HEAD_BYTES_MAX", needed - 1)
    assert read_tensors(raw[: needed - 1], len(raw)) is None


@pytest.mark.parametrize("limit", ["KEYS_MAX", "TENSORS_MAX"])
def test_gguf_with_more_keys_or_tensors_than_allowed_is_left(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """The limits are inclusive."""
    keys = [pair(0, b"\0", b"a"), pair(0, b"\0", b"b")]
    raw = make_raw_gguf(keys, [place(b"a", 0), place(b"b", 32)])
    monkeypatch.setattr(module, limit, 2)
    assert find_map(raw)
    monkeypatch.setattr(module, limit, 1)
    assert read_tensors(raw, len(raw)) is None


def test_gguf_texts_of_all_arrays_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many arrays are no way around the limit."""
    arrays = [make_array(8, 3, text(b"x") * 3), make_array(8, 2, text(b"") * 2)]
    raw = make_raw_gguf(arrays, ONE)
    monkeypatch.setattr(module, "TEXTS_MAX", 5)
    assert find_map(raw)
    monkeypatch.setattr(module, "TEXTS_MAX", 4)
    assert read_stepwise(raw, FIRST_HEAD_BYTES) is None


# --- memory and time ---

MEASURE = """
import resource, struct, sys
from p2pcache.core.tensors import *

def fill(prefix, unit, suffix):
    body = prefix + unit * ((JSON_BYTES_MAX - len(prefix) - len(suffix)) // len(unit)) + suffix
    return struct.pack("<Q", len(body)) + body

def lots(unit):
    body = b"{" + b",".join(unit % n for n in range(JSON_MARKS_MAX // 2 - 10)) + b"}"
    return struct.pack("<Q", len(body)) + body

gguf = lambda tensors, pairs: b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)
texts = struct.pack("<QcIIQ", 1, b"a", 9, 8, TEXTS_MAX)
heads = {
    "long text": lambda: fill(b'{"a":"', b"x", '\\U0001f600"}'.encode()),
    "escaped": lambda: fill(b'{"a":"', b"x", b'\\\\ud83d\\\\ude00"}'),
    "number": lambda: fill(b'{"a":', b"1", b"}"),
    "nested": lambda: fill(b"{", b'"a":{', b"}"),
    "objects": lambda: lots(b'"%d":{}'),
    "texts": lambda: gguf(1, 1) + texts + bytes(8 * TEXTS_MAX),
    "declared": lambda: gguf(TENSORS_MAX, KEYS_MAX) + bytes(50_000_000),
}
raw = heads[sys.argv[1]]()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# More than the parse may take is refused here, not only counted.
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
found = read_tensors(raw, 1 << 40)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.parametrize(
    "kind", ["long text", "escaped", "number", "nested", "objects", "texts", "declared"]
)
def test_parse_of_the_worst_heads_stays_within_its_memory(kind: str) -> None:
    """In a process that may not take more, no head fails for want of memory."""
    command = [sys.executable, "-c", MEASURE, kind, str(PARSE_BYTES_MAX)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= PARSE_BYTES_MAX


def test_json_with_too_many_marks_is_left_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting brackets costs nothing; making an object of each would."""
    raw = make_entries({"a": entry(0, 5000), "__metadata__": {"x": [1, 2, 3]}})
    marks = sum(raw.count(mark) for mark in b"[{,")
    monkeypatch.setattr(module, "JSON_MARKS_MAX", marks)
    assert read_stepwise(raw, FIRST_HEAD_BYTES) is not None
    monkeypatch.setattr(module, "JSON_MARKS_MAX", marks - 1)
    assert read_stepwise(raw, FIRST_HEAD_BYTES) is None
    assert JSON_MARKS_MAX == 2_000_000


# --- which files are worth a look ---


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.safetensors", True),
        ("a/b/MODEL.SafeTensors", True),
        ("q4.gguf", True),
        ("model.safetensors.index.json", False),
        ("pytorch_model.bin", False),
        ("gguf", False),
    ],
)
def test_only_names_of_the_two_formats_are_worth_a_look(path: str, expected: bool) -> None:
    """Every other file is never asked for its head."""
    assert may_have_tensors(path, STEP_BYTES + 1) is expected
    assert not may_have_tensors(path, STEP_BYTES)


def test_file_of_one_chunk_has_no_tensors_worth_a_boundary() -> None:
    """A blob of at most a chunk is one chunk, whatever it holds."""
    raw = make_safetensors({"a": ("U8", [100], bytes(100))})
    assert len(raw) <= STEP_BYTES
    assert read_tensors(raw, len(raw)) is None
