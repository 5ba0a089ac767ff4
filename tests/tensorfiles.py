"""
Owns making safetensors and GGUF files for tests.

Knows nothing of p2pcache; a test compares the real libraries' reading with what was asked for.
Invariants: equal arguments give equal bytes.
Source: the formats' specifications.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

# Name → (type, shape, bytes).
Tensors = Mapping[str, tuple[str, list[int], bytes]]
_GGUF_ALIGNMENT = 32
_GGUF_F32, _GGUF_TEXT, _GGUF_ARRAY, _GGUF_UINT32 = 0, 8, 9, 4


def make_safetensors(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a file with these tensors in this order."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, (kind, shape, content) in tensors.items():
        end = offset + len(content)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(content for _, _, content in tensors.values())
    return struct.pack("<Q", len(text)) + text + body


def read_safetensors(raw: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Return the tensors of a file, in the order of their bytes."""
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = (entry["dtype"], entry["shape"], raw[begin:end])
    return found


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def make_gguf(tensors: Mapping[str, bytes], vocabulary: list[str] | None = None) -> bytes:
    """Return a GGUF file, version 3, with one-dimensional F32 tensors and a vocabulary."""
    words = vocabulary or []
    pairs = _text("general.architecture") + struct.pack("<I", _GGUF_TEXT) + _text("llama")
    pairs += _text("general.alignment") + struct.pack("<II", _GGUF_UINT32, _GGUF_ALIGNMENT)
    pairs += _text("tokenizer.ggml.tokens")
    pairs += struct.pack("<IIQ", _GGUF_ARRAY, _GGUF_TEXT, len(words)) + b"".join(map(_text, words))
    places, offset, body = b"", 0, b""
    for name, content in tensors.items():
        places += _text(name) + struct.pack("<IQIQ", 1, len(content) // 4, _GGUF_F32, offset)
        body += content + bytes(-len(content) % _GGUF_ALIGNMENT)
        offset = len(body)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 3) + pairs + places
    return head + bytes(-len(head) % _GGUF_ALIGNMENT) + body
