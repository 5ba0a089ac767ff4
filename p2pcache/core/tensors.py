"""
Owns where the tensors of a model file lie, read from its first bytes: safetensors and GGUF.

Knows nothing of files or sources; is given bytes, and says when it needs more of them.
Invariants: a declared number is compared with what is there before anything is allocated; a head
that breaks a rule of its format is no error, the file is then cut as any other.
Source: the safetensors format (8-byte length, JSON, contiguous offsets); the GGUF specification,
versions 2 and 3; the Trail of Bits audit of safetensors (2023) on what to refuse.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import StrEnum

from p2pcache.core import layout as layouts
from p2pcache.core.layout import Layout
from p2pcache.errors import InputError

# The safetensors library's own limit, and far above what a GGUF vocabulary takes.
HEAD_BYTES_MAX = 100_000_000
# huggingface_hub reads no longer JSON head. Ours is parsed in one go, in memory that is a multiple
# of it, and nothing else runs meanwhile.
JSON_BYTES_MAX = 25_000_000
# The largest published models have some ten thousand; what is above is cut as any other file.
TENSORS_MAX = 100_000
# Brackets and commas in a JSON head: each may become an object in memory.
JSON_MARKS_MAX = 2_000_000
# GGUF's keys, of which models have fifty.
KEYS_MAX = 65_536
# Entries of GGUF's arrays of text, all together: each is a step of a loop. Vocabularies have some
# hundred thousand, with their merges a million.
TEXTS_MAX = 4_000_000
DIMENSIONS_MAX = 16
# Smaller tensors are joined with their neighbours: a boundary costs a digest and a request.
LARGE_TENSOR_BYTES_MIN = 256 * 1024
# What to ask for first: most heads of safetensors are smaller; the format says the rest.
FIRST_HEAD_BYTES = 16 * 1024
_GROWTH = 4

_SUFFIXES = (".safetensors", ".gguf")
_GGUF_MAGIC = b"GGUF"
_GGUF_VERSIONS = (2, 3)
_GGUF_ALIGNMENT_KEY = "general.alignment"
_GGUF_ALIGNMENT_DEFAULT = 32
_GGUF_KEY_BYTES_MAX = 65_535
# Type number → size in bytes; 8 is text, 9 an array.
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_TEXT, _GGUF_ARRAY, _GGUF_UINT32 = 8, 9, 4
_LENGTH = struct.Struct("<Q")


class Format(StrEnum):
    """A format whose head lists its tensors."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's place in its file; `kind` is its type and shape as the format writes them."""

    name: str
    kind: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class ListedTensor:
    """
    One tensor as a head lists it, empty ones included. `dtype` is the format's word for the type,
    in GGUF a number; `length` is up to the next tensor, with what pads it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorList:
    """What a file's head lists, in the order of the bytes; may be empty."""

    format: Format
    size_bytes: int
    tensors: tuple[ListedTensor, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A large tensor, or small ones in a row: what files may have in common, byte for byte."""

    label: tuple[tuple[str, str], ...]
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorMap:
    """The tensors of one file, in the order of their bytes; none is empty, none overlap."""

    size_bytes: int
    head_bytes: int
    tensors: tuple[Tensor, ...]

    def segments(self) -> list[Segment]:
        """Return the file's parts behind its head, in order, without gaps."""
        ends = [tensor.start for tensor in self.tensors[1:]] + [self.size_bytes]
        segments: list[Segment] = []
        small: list[Tensor] = []
        for tensor, end in zip(self.tensors, ends, strict=True):
            is_large = end - tensor.start >= LARGE_TENSOR_BYTES_MIN
            is_full = bool(small) and end - small[0].start > layouts.CHUNK_SIZE_BYTES
            if small and (is_large or is_full):
                segments.append(_join(small, tensor.start))
                small = []
            if is_large:
                segments.append(_join([tensor], end))
            else:
                small.append(tensor)
        if small:
            segments.append(_join(small, self.size_bytes))
        return segments

    def layout(self) -> Layout:
        """Return boundaries at the segments, and 4 MiB steps inside them and in the head."""
        step = layouts.CHUNK_SIZE_BYTES
        starts = list(range(0, self.head_bytes, step))
        for segment in self.segments():
            starts += range(segment.start, segment.start + segment.length, step)
        try:
            return Layout.of_starts(self.size_bytes, starts)
        except InputError:
            return Layout(self.size_bytes)  # more chunks than a layout may have


@dataclass(frozen=True, slots=True)
class MoreHead:
    """The head goes on: ask again with so many bytes of it."""

    head_bytes: int


def may_have_tensors(path: str, size_bytes: int) -> bool:
    """Return whether a file's name and size make its head worth reading."""
    return path.lower().endswith(_SUFFIXES) and size_bytes > layouts.CHUNK_SIZE_BYTES


def read_tensors(head: bytes | bytearray, size_bytes: int) -> TensorMap | MoreHead | None:
    """
    Find the tensors of a file.

    Args:
        head: Its first bytes.
        size_bytes: How many it has in all.

    Returns:
        The tensors; MoreHead when head ends too early; None for a file of another format, one
        that breaks the rules of its own, and one that is a single chunk anyway.
    """
    if size_bytes <= layouts.CHUNK_SIZE_BYTES:
        return None
    found = list_tensors(head, size_bytes)
    return map_tensors(found) if isinstance(found, TensorList) else found


def map_tensors(listed: TensorList) -> TensorMap | None:
    """Return where the tensors lie; None for a file without any, or of a single chunk anyway."""
    kept = tuple(
        Tensor(listed_one.name, _show_kind(listed_one), listed_one.start, listed_one.length)
        for listed_one in listed.tensors
        if listed_one.length > 0
    )
    if not kept or listed.size_bytes <= layouts.CHUNK_SIZE_BYTES:
        return None
    # What lies between the head and the first tensor belongs to the head.
    return TensorMap(listed.size_bytes, kept[0].start, kept)


def list_tensors(head: bytes | bytearray, size_bytes: int) -> TensorList | MoreHead | None:
    """
    Read what a file's head lists, of a file of any size.

    Args:
        head: Its first bytes.
        size_bytes: How many it has in all.

    Returns:
        The list; MoreHead when head ends too early; None for a file of another format, and one
        that breaks the rules of its own.
    """
    try:
        is_gguf = head.startswith(_GGUF_MAGIC)
        return _read_gguf(head, size_bytes) if is_gguf else _read_safetensors(head, size_bytes)
    except _MoreError as error:
        # Both are above what there is: whoever raises this has compared the end with size and cap.
        wanted = min(size_bytes, HEAD_BYTES_MAX, error.head_bytes)
        return MoreHead(wanted) if wanted > len(head) else None  # a file shorter than any head
    except (_RuleError, ValueError, RecursionError):
        return None


class _MoreError(Exception):
    """More bytes of the head are needed, so many at least."""

    def __init__(self, head_bytes: int) -> None:
        super().__init__(head_bytes)
        self.head_bytes = head_bytes


class _RuleError(Exception):
    """The head breaks a rule of its format."""


def _join(tensors: list[Tensor], end: int) -> Segment:
    label = tuple((tensor.name, tensor.kind) for tensor in tensors)
    return Segment(label, tensors[0].start, end - tensors[0].start)


def _show_kind(tensor: ListedTensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"


# --- safetensors ---


def _read_safetensors(head: bytes | bytearray, size_bytes: int) -> TensorList:
    if len(head) < _LENGTH.size:
        raise _MoreError(_LENGTH.size)
    (length,) = _LENGTH.unpack_from(head)
    end = _LENGTH.size + length
    if not 2 <= length <= JSON_BYTES_MAX or end > size_bytes:
        raise _RuleError("a head of impossible length")
    # The format wants the brace at once; other files with such a number do not have it.
    if len(head) > _LENGTH.size and head[_LENGTH.size : _LENGTH.size + 1] != b"{":
        raise _RuleError("no JSON object")
    if len(head) < end:
        raise _MoreError(end)
    if sum(head.count(mark, _LENGTH.size, end) for mark in b"[{,") > JSON_MARKS_MAX:
        raise _RuleError("a head with too many values")
    text = str(memoryview(head)[_LENGTH.size : end], "utf-8")
    entries = json.loads(text, object_pairs_hook=_refuse_duplicates)
    if not isinstance(entries, dict) or len(entries) > TENSORS_MAX:
        raise _RuleError("no JSON object, or too many tensors")
    tensors = [
        _read_entry(name, entry, end) for name, entry in entries.items() if name != "__metadata__"
    ]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.length))
    position = end
    for tensor in tensors:
        if tensor.start != position:
            raise _RuleError("tensors with a gap, or over one another")
        position += tensor.length
    if position != size_bytes:
        raise _RuleError("tensors that do not fill the file")
    return TensorList(Format.SAFETENSORS, size_bytes, tuple(tensors))


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _RuleError("a name twice")
    return made


def _read_entry(name: str, entry: object, data_start: int) -> ListedTensor:
    if not isinstance(entry, dict):
        raise _RuleError("a tensor that is no object")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise _RuleError("a tensor without type, shape or place")
    if len(offsets) != 2 or len(shape) > DIMENSIONS_MAX:
        raise _RuleError("a tensor with an impossible place or shape")
    if not all(type(n) is int for n in (*offsets, *shape)):
        raise _RuleError("a tensor whose place or shape has other values than whole numbers")
    begin, end = offsets
    if not 0 <= begin <= end <= layouts.BLOB_SIZE_BYTES_MAX:
        raise _RuleError("a tensor outside the file")
    return ListedTensor(name, kind, tuple(shape), data_start + begin, end - begin)


# --- GGUF ---


class _Cursor:
    """Reads GGUF's little-endian values one after the other."""

    def __init__(self, head: bytes | bytearray, size_bytes: int) -> None:
        self._head = head
        self._end_max = min(size_bytes, HEAD_BYTES_MAX)
        self._texts_left = TEXTS_MAX
        self.position = len(_GGUF_MAGIC)

    def skip(self, length: int) -> None:
        end = self.position + length
        if end > self._end_max:
            raise _RuleError("a head without end")
        if end > len(self._head):
            raise _MoreError(max(end, len(self._head) * _GROWTH))
        self.position = end

    def skip_texts(self, count: int) -> None:
        self._texts_left -= count
        if self._texts_left < 0:
            raise _RuleError("too many texts")
        head, position, unpack = self._head, self.position, _LENGTH.unpack_from
        last_start = len(head) - _LENGTH.size
        for _ in range(count):
            if position > last_start:
                position += _LENGTH.size
                break
            position += _LENGTH.size + unpack(head, position)[0]
        self.skip(position - self.position)

    def whole(self, size_bytes: int) -> int:
        start = self.position
        self.skip(size_bytes)
        return int.from_bytes(self._head[start : self.position], "little")

    def wholes(self, count: int) -> list[int]:
        start = self.position
        self.skip(_LENGTH.size * count)
        return list(struct.unpack_from(f"<{count}Q", self._head, start))

    def text(self) -> str:
        length = self.whole(8)
        if length > _GGUF_KEY_BYTES_MAX:
            raise _RuleError("a name that is too long")
        start = self.position
        self.skip(length)
        return self._head[start : self.position].decode()


def _read_gguf(head: bytes | bytearray, size_bytes: int) -> TensorList:
    cursor = _Cursor(head, size_bytes)
    version = cursor.whole(4)
    tensor_count, pair_count = cursor.whole(8), cursor.whole(8)
    if version not in _GGUF_VERSIONS:
        raise _RuleError("another version, or another byte order")
    if tensor_count > TENSORS_MAX or pair_count > KEYS_MAX:
        raise _RuleError("too many tensors or keys")
    alignment = _GGUF_ALIGNMENT_DEFAULT
    for _ in range(pair_count):
        key, kind = cursor.text(), cursor.whole(4)
        if key == _GGUF_ALIGNMENT_KEY and kind == _GGUF_UINT32:
            alignment = cursor.whole(4)
        else:
            _skip_value(cursor, kind)
    if alignment == 0:
        raise _RuleError("an impossible alignment")
    places = []
    for _ in range(tensor_count):
        name, dimension_count = cursor.text(), cursor.whole(4)
        if dimension_count > DIMENSIONS_MAX:
            raise _RuleError("too many dimensions")
        shape = tuple(cursor.wholes(dimension_count))
        places.append((name, str(cursor.whole(4)), shape, cursor.whole(8)))
    data_start = -(-cursor.position // alignment) * alignment
    places.sort(key=lambda place: place[3])
    ends = [place[3] for place in places[1:]] + [size_bytes - data_start] * bool(places)
    tensors = []
    for (name, dtype, shape, offset), end in zip(places, ends, strict=True):
        if end < offset or offset % alignment:
            raise _RuleError("tensors over one another, or beyond the file")
        tensors.append(ListedTensor(name, dtype, shape, data_start + offset, end - offset))
    return TensorList(Format.GGUF, size_bytes, tuple(tensors))


def _skip_value(cursor: _Cursor, kind: int) -> None:
    if kind in _GGUF_SIZES:
        cursor.skip(_GGUF_SIZES[kind])
    elif kind == _GGUF_TEXT:
        cursor.skip(cursor.whole(8))
    elif kind == _GGUF_ARRAY:
        item_kind, count = cursor.whole(4), cursor.whole(8)
        if item_kind in _GGUF_SIZES:
            cursor.skip(_GGUF_SIZES[item_kind] * count)
        elif item_kind == _GGUF_TEXT:
            cursor.skip_texts(count)
        else:
            raise _RuleError("an array of arrays")
    else:
        raise _RuleError("an unknown type of value")
