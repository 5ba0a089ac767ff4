"""
Owns what a fetch's machine is told, and what it tells to do.

Knows nothing of what follows from either.
Invariants: immutable; a run has one id for all that is said of it.
Source: fetchmachine.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from p2pcache.core.transitions import Outcome
from p2pcache.core.views import UPSTREAM_FREE, PeerView, RunRequest
from p2pcache.errors import P2PCacheError


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request."""

    run_id: int
    request: RunRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a run: somebody else gives, or gave, what it was to bring."""

    run_id: int


@dataclass(frozen=True, slots=True)
class Accuse:
    """Hold something against a peer; ban it if that was proof."""

    peer_id: str
    fault: str
    is_ban: bool


Action = Ask | Cancel | Accuse


@dataclass(frozen=True, slots=True)
class Look:
    """
    Look at the world and decide.

    Attributes:
        peers: Those that may be asked about this blob.
        upstream_requests_inflight: Of all blobs.
        can_fetch_upstream: Whether the hub may be asked now.
        received: By run, the bytes that came off the wire so far.
        is_distrusted: Whether most members have banned us.
        upstream_free: How many requests to the hub may begin now.
        relays: Whether members pass on what they got from each other before all is proven.
        crowd: All daemons that are known, when they are too many to talk to all of them.
    """

    peers: Sequence[PeerView]
    upstream_requests_inflight: int = 0
    can_fetch_upstream: bool = True
    received: Mapping[int, int] = field(default_factory=dict)
    is_distrusted: bool = False
    relays: bool = True
    upstream_free: int = UPSTREAM_FREE
    crowd: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ChunkStored:
    """A verified chunk is written; `run_id` brought it, or None when it was here."""

    chunk_index: int
    run_id: int | None = None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run is over. `received_bytes` off the wire in all; `chunk_index` is the wrong one's."""

    run_id: int
    outcome: Outcome
    received_bytes: int = 0
    chunk_index: int | None = None
    error: P2PCacheError | None = None


@dataclass(frozen=True, slots=True)
class ChunksForgotten:
    """Chunks that were held are in doubt, and wanted again."""

    chunk_indexes: tuple[int, ...]


Event = Look | ChunkStored | RunEnded | ChunksForgotten
