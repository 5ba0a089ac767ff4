"""
Owns what a daemon asks a peer about a list of blobs, and what the peer answers: how much it has.

Knows nothing of who asks or of where the bytes are. Every reader takes decoded JSON of any shape
and either returns a value within its limits or raises InputError.
Invariants: blobs are named by digest alone, so that nothing can be listed; to_json and from_json
are inverse.
Source: docs/reference/peer-protocol.md (holdings).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX
from p2pcache.core.messages import Json, get_list, get_text, get_whole
from p2pcache.errors import InputError

# Blobs in one question: the largest models have some hundred files. What is above is not asked.
BLOBS_PER_QUESTION_MAX = 10_000
# Longer than anybody waits; what is above is as good as never.
ETA_S_MAX = 1e9


@dataclass(frozen=True, slots=True)
class Eta:
    """In how many seconds something will be here: probably, and if it goes slowly."""

    p50_s: float
    p95_s: float

    def to_json(self) -> Json:
        """Return it as programs read it."""
        return {"p50": round(self.p50_s, 1), "p95": round(self.p95_s, 1)}


def eta_to_json(eta: Eta | None) -> Json:
    """Return an estimate for programs; nothing is known where it is None."""
    return {"p50": None, "p95": None} if eta is None else eta.to_json()


@dataclass(frozen=True, slots=True)
class HoldingsQuestion:
    """Blobs, with the size that the asker's file list gives them."""

    blobs: tuple[tuple[BlobDigest, int], ...]

    def to_json(self) -> Json:
        """Return the message of POST /v1/holdings."""
        return {"blobs": [{"blob": str(blob), "size": size} for blob, size in self.blobs]}

    @classmethod
    def from_json(cls, message: object) -> HoldingsQuestion:
        """
        Read the message of POST /v1/holdings.

        Raises:
            InputError: Malformed, or too long.
        """
        entries = get_list(message, "blobs", length_max=BLOBS_PER_QUESTION_MAX)
        return cls(
            tuple(
                (
                    BlobDigest.parse(get_text(entry, "blob", chars_max=80)),
                    get_whole(entry, "size", maximum=BLOB_SIZE_BYTES_MAX),
                )
                for entry in entries
            )
        )


@dataclass(frozen=True, slots=True)
class HoldingsAnswer:
    """The bytes that the peer would give of each blob, in the question's order; and its own ETA."""

    held_bytes: tuple[int, ...]
    eta: Eta | None = None

    def to_json(self) -> Json:
        """Return the answer of POST /v1/holdings."""
        return {"held": list(self.held_bytes), "eta_s": eta_to_json(self.eta)}

    @classmethod
    def from_json(cls, message: object, sizes: Sequence[int]) -> HoldingsAnswer:
        """
        Read the answer of POST /v1/holdings.

        Args:
            message: Decoded JSON of any shape.
            sizes: Of the blobs that were asked about.

        Raises:
            InputError: Malformed, or it speaks of more bytes than the blobs have.
        """
        held = get_list(message, "held", length_max=len(sizes))
        if len(held) != len(sizes):
            raise InputError("A peer answered about other blobs than it was asked about.")
        counted = []
        for number, size_bytes in zip(held, sizes, strict=True):
            if type(number) is not int or not 0 <= number <= size_bytes:
                raise InputError("A peer says that it holds more bytes of a blob than it has.")
            counted.append(number)
        return cls(tuple(counted), _read_eta(message))


def _read_eta(message: object) -> Eta | None:
    raw = message.get("eta_s") if isinstance(message, dict) else None
    if not isinstance(raw, dict):
        return None
    p50, p95 = _read_seconds(raw.get("p50")), _read_seconds(raw.get("p95"))
    return None if p50 is None or p95 is None else Eta(p50, p95)


def _read_seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Whole numbers of JSON have no end: one that no float holds is compared before it is made one.
    return float(min(value, ETA_S_MAX)) if 0 <= value < math.inf else None
