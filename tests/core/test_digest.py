"""
Owns the tests of core.digest.

Knows nothing of hashing.
Invariants: only well-formed text becomes a digest.
Source: core/digest.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.digest import BlobDigest, ChunkDigest, check_blob_digests
from p2pcache.errors import InvalidDigestError

SHA256 = "a1" * 32
SHA1 = "b2" * 20


@given(st.binary(min_size=32, max_size=32))
def test_digest_text_form_is_read_back(raw: bytes) -> None:
    """parse is the inverse of str for chunks and both kinds of blob."""
    chunk = ChunkDigest(raw)
    assert ChunkDigest.parse(str(chunk)) == chunk
    for blob in (BlobDigest("sha256", raw.hex()), BlobDigest("gitsha1", raw[:20].hex())):
        assert BlobDigest.parse(str(blob)) == blob
        assert BlobDigest.from_etag(blob.hex) == blob


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256:",
        SHA256,
        f"sha256:{SHA256[:-1]}",
        f"sha256:{SHA256}0",
        f"sha256:{SHA256.upper()}",
        f"SHA256:{SHA256}",
        f"sha256:{SHA256}\n",
        f" sha256:{SHA256}",
        f"sha256: {SHA256[1:]}",
        f"sha256:{SHA1}",
        f"gitsha1:{SHA256}",
        f"md5:{'0' * 32}",
        "sha256:" + "../" * 21 + "a",
        "sha256:" + "\x00" * 64,
        "sha256:" + "\ud800" * 64,
        "sha256:" + "١" * 64,
        "sha256:" + "ａ" * 64,
        "x" * 100_000,
    ],
)
def test_digest_hostile_blob_text_is_refused(text: str) -> None:
    """Anything but the exact form is an error whose message stays short."""
    with pytest.raises(InvalidDigestError) as caught:
        BlobDigest.parse(text)
    assert len(str(caught.value)) < 600
    with pytest.raises(InvalidDigestError):
        check_blob_digests([f"sha256:{SHA256}", text, f"gitsha1:{SHA1}"])


def test_digest_texts_that_are_well_formed_are_let_through() -> None:
    """Both kinds, and none at all."""
    check_blob_digests([f"sha256:{SHA256}", f"gitsha1:{SHA1}"])
    check_blob_digests(())


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 63 + "\n"])
def test_digest_hostile_chunk_text_is_refused(text: str) -> None:
    """A chunk digest is 64 lower-case hex digits."""
    with pytest.raises(InvalidDigestError):
        ChunkDigest.parse(text)


@pytest.mark.parametrize("etag", ["", '"abc"', SHA256[:-1], SHA1.upper(), "W/" + SHA1])
def test_digest_hostile_etag_is_refused(etag: str) -> None:
    """An ETag of another length or alphabet names no blob."""
    with pytest.raises(InvalidDigestError):
        BlobDigest.from_etag(etag)


def test_digest_unknown_algorithm_is_refused() -> None:
    """The constructor checks too: no digest object is malformed."""
    with pytest.raises(InvalidDigestError):
        BlobDigest("md5", "0" * 32)  # type: ignore[arg-type]
    with pytest.raises(InvalidDigestError):
        ChunkDigest(b"short")


@given(st.text())
def test_digest_any_text_is_read_exactly_or_refused(text: str) -> None:
    """What is read prints as it was written."""
    for parse in (BlobDigest.parse, ChunkDigest.parse):
        try:
            assert str(parse(text)) == text
        except InvalidDigestError:
            continue
