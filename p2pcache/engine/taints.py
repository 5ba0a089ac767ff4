"""
Owns which blobs readers were given wrong bytes of, before the proof showed it.

Knows nothing of how that happened.
Invariants: bounded; forgotten after TAINT_S.
Source: clients resume a broken body by range, under the same ETag, without checking what they
already have: the only safe resume is none (docs/explanation/trust-and-threats.md).
"""

from __future__ import annotations

from collections import OrderedDict

from p2pcache.core.digest import BlobDigest

# Longer than any client goes on retrying one call.
TAINT_S = 3600.0
TAINTS_MAX = 1024


class Taints:
    """Blobs whose early bytes may be wrong at some reader. Event loop only."""

    def __init__(self) -> None:
        self._until_s: OrderedDict[BlobDigest, float] = OrderedDict()

    def note(self, blob: BlobDigest, *, now_s: float) -> None:
        """Record that wrong bytes of a blob may have been given out just now."""
        self._until_s[blob] = now_s + TAINT_S
        self._until_s.move_to_end(blob)
        while len(self._until_s) > TAINTS_MAX:
            self._until_s.popitem(last=False)

    def has(self, blob: BlobDigest, *, now_s: float) -> bool:
        """Return whether a reader may still hold wrong bytes of a blob."""
        return self._until_s.get(blob, 0.0) > now_s
