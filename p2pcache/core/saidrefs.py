"""
Owns what peers say of a branch beside its file list: which commit, since when the hub said so.

Knows nothing of who is believed.
Invariants: numbers are bounded; an age never shrinks on its way from peer to peer.
Source: docs/reference/peer-protocol.md (GET /v1/snapshots).
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pcache.core.messages import get_whole

# Older than this nobody needs to know how old: a day in milliseconds.
AGE_MS_MAX = 86_400_000


@dataclass(frozen=True, slots=True)
class SaidRef:
    """The hub told the sender `age_s` ago what the revision is, or the list of a commit."""

    age_s: float

    def to_json(self) -> dict[str, object]:
        """Return the fields that go beside a file list."""
        return {"age_ms": min(AGE_MS_MAX, max(0, round(self.age_s * 1000)))}

    @classmethod
    def find_in(cls, message: object) -> SaidRef | None:
        """
        Read the fields; None where the sender cannot say, so that its word is only a last resort.

        Raises:
            InputError: Malformed.
        """
        if not isinstance(message, dict) or "age_ms" not in message:
            return None
        return cls(get_whole(message, "age_ms", maximum=AGE_MS_MAX) / 1000)
