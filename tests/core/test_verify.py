"""
Owns the tests of core.verify.

Knows nothing of sources.
Invariants: no VerifiedChunk of wrong length or digest exists; a proof covers every byte.
Source: core/verify.py.
"""

from __future__ import annotations

import hashlib

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import BlobProof, digest_of, verify_chunk
from p2pcache.errors import BlobCorruptError, ChunkMismatchError
from tests.samples import PEER_ID, make_chunks_sample, make_sample
from tests.sizes import INTERESTING_SIZES_BYTES

SAMPLE = make_chunks_sample(2)


def git_blob(content: bytes) -> BlobDigest:
    """Name bytes as git does."""
    header = b"blob %d\x00" % len(content)
    return BlobDigest("gitsha1", hashlib.sha1(header + content).hexdigest())


def test_verify_right_chunk_is_passed_with_its_place() -> None:
    """A chunk that matches carries blob, index, offset and digest, and borrows the bytes."""
    content = bytearray(SAMPLE.bytes_of(1))
    chunk = verify_chunk(
        SAMPLE.blob,
        SAMPLE.layout,
        1,
        memoryview(content),
        expected=SAMPLE.digest_of(1),
        source_id=PEER_ID,
    )
    assert (chunk.blob, chunk.chunk_index) == (SAMPLE.blob, 1)
    assert chunk.offset == SAMPLE.layout.offset_of(1)
    assert chunk.digest == ChunkDigest(blake3(SAMPLE.bytes_of(1)).digest())
    assert chunk.view.obj is content


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_verify_one_wrong_bit_is_blamed_on_its_sender(place: int) -> None:
    """A single flipped bit is found, and the error says who sent which chunk."""
    content = bytearray(SAMPLE.bytes_of(1))
    content[place] ^= 1
    with pytest.raises(ChunkMismatchError) as caught:
        verify_chunk(
            SAMPLE.blob,
            SAMPLE.layout,
            1,
            memoryview(content),
            expected=SAMPLE.digest_of(1),
            source_id=PEER_ID,
        )
    assert (caught.value.chunk_index, caught.value.peer_id) == (1, PEER_ID)


@pytest.mark.parametrize("extra", [-1, 1])
def test_verify_wrong_length_is_refused_even_without_a_promise(extra: int) -> None:
    """Bytes from the hub come without digests, but their length is known."""
    length = SAMPLE.layout.length_of(1) + extra
    with pytest.raises(ChunkMismatchError):
        verify_chunk(
            SAMPLE.blob,
            SAMPLE.layout,
            1,
            memoryview(bytes(length)),
            expected=None,
            source_id="upstream",
        )


def test_verify_without_a_promise_names_what_came() -> None:
    """Without an expected digest the chunk carries the digest of what was sent."""
    layout = Layout(3)
    chunk = verify_chunk(
        SAMPLE.blob, layout, 0, memoryview(b"abc"), expected=None, source_id="upstream"
    )
    assert chunk.digest == digest_of(b"abc")


@pytest.mark.parametrize("size_bytes", INTERESTING_SIZES_BYTES)
def test_proof_interesting_size_is_right_for_both_names(size_bytes: int) -> None:
    """SHA-256 and git's SHA-1 are proven whatever the size."""
    content = make_sample(size_bytes).content
    for blob in (make_sample(size_bytes).blob, git_blob(content)):
        proof = BlobProof(blob, size_bytes)
        for start in range(0, size_bytes, 1_000_003):
            proof.update(memoryview(content)[start : start + 1_000_003])
        assert proof.is_right()
        proof.check("/here")


def test_proof_known_git_name_is_gits_own() -> None:
    """The empty blob and "hello" have the names that `git hash-object` prints."""
    names = {
        b"": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
        b"hello\n": "ce013625030ba8dba906f756967f9e9ca394464a",
    }
    for content, name in names.items():
        proof = BlobProof(BlobDigest("gitsha1", name), len(content))
        proof.update(content)
        assert proof.is_right()


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_proof_other_bytes_are_not_right(content: bytes, other: bytes) -> None:
    """Only the very bytes prove a blob."""
    blob = BlobDigest("sha256", hashlib.sha256(content).hexdigest())
    proof = BlobProof(blob, len(content))
    proof.update(other)
    assert proof.is_right() is (content == other)


def test_proof_of_wrong_or_missing_bytes_names_the_file() -> None:
    """check() raises an error that carries the path."""
    content = b"some bytes"
    for sent in (content[:-1], content[:-1] + b"S"):
        proof = BlobProof(git_blob(content), len(content))
        proof.update(sent)
        with pytest.raises(BlobCorruptError) as caught:
            proof.check("/store/partial/x")
        assert caught.value.path == "/store/partial/x"
