"""
Owns the two kinds of name for bytes: the hub's digest of a blob, our BLAKE3 digest of a chunk.

Knows nothing of where bytes live; a path is only ever built from the hex that this module made.
Invariants: a digest object is always well formed; text becomes a digest only through parse().
Source: BLAKE3 specification; git-hash-object(1) for the blob header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from p2pcache.errors import InvalidDigestError

Algorithm = Literal["sha256", "gitsha1"]

_HEX_LENGTHS: dict[str, int] = {"sha256": 64, "gitsha1": 40}
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
_BLOB = re.compile(r"sha256:[0-9a-f]{64}|gitsha1:[0-9a-f]{40}", re.ASCII)
CHUNK_DIGEST_SIZE_BYTES = 32


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and _HEX.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class BlobDigest:
    """
    The hub's own name for the bytes of one file.

    `sha256` is the SHA-256 of the content (LFS); `gitsha1` the SHA-1 of git's blob object.
    """

    algorithm: Algorithm
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_LENGTHS.get(self.algorithm, 0)
        if not _is_hex(self.hex, length):
            raise InvalidDigestError(
                f"{self.algorithm}:{self.hex[:80]!r} is not a digest; "
                "write sha256: and 64, or gitsha1: and 40 lower-case hex digits."
            )

    @classmethod
    def parse(cls, text: str) -> BlobDigest:
        """
        Read `sha256:…` or `gitsha1:…`.

        Raises:
            InvalidDigestError: Anything else, upper case included.
        """
        algorithm, _, digits = text.partition(":")
        if algorithm == "sha256":
            return cls("sha256", digits)
        if algorithm == "gitsha1":
            return cls("gitsha1", digits)
        raise InvalidDigestError(
            f"{text[:80]!r} is not a blob digest; it starts with sha256: or gitsha1:."
        )

    @classmethod
    def from_etag(cls, etag: str) -> BlobDigest:
        """
        Read the bare hex that a hub uses as ETag: 64 digits are sha256, 40 are git's sha1.

        Raises:
            InvalidDigestError: Any other length or alphabet.
        """
        return cls("sha256" if len(etag) == 64 else "gitsha1", etag)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def check_blob_digests(texts: Iterable[str]) -> None:
    """
    See to it that BlobDigest.parse() takes each of some texts, without making an object of it.

    Raises:
        InvalidDigestError: One is not a digest.
    """
    for text in texts:
        if _BLOB.fullmatch(text) is None:
            # It says what is wrong.
            BlobDigest.parse(text)


@dataclass(frozen=True, slots=True, order=True)
class ChunkDigest:
    """BLAKE3-256 of one chunk, 32 bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != CHUNK_DIGEST_SIZE_BYTES:
            raise InvalidDigestError(f"A chunk digest has 32 bytes, not {len(self.raw)}.")

    @classmethod
    def parse(cls, text: str) -> ChunkDigest:
        """
        Read 64 lower-case hex digits.

        Raises:
            InvalidDigestError: Anything else.
        """
        if not _is_hex(text, 2 * CHUNK_DIGEST_SIZE_BYTES):
            raise InvalidDigestError(
                f"{text[:80]!r} is not a chunk digest; write 64 lower-case hex digits."
            )
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.raw.hex()
