"""
Owns the settings that the engine works by, after configuration has been read.

Knows nothing of files, flags or environment variables: daemon/assembly.py makes one of these.
Invariants: immutable for the life of the daemon.
Source: design.md §8 (command line).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Two or three fill a line; more of them keep it full while others resolve, hash and link.
DOWNLOADS_MAX_DEFAULT = 8
FREE_FLOOR_BYTES_DEFAULT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine needs to know."""

    store: Path
    name: str
    peer_id: str
    hf_upstream: str
    trust_peers: bool = False
    # What the store may take of the disk; None for as much as there is.
    quota_bytes: int | None = None
    # Left free for everybody else on the file system: SQLite, logs, the workers' own files.
    free_floor_bytes: int = FREE_FLOOR_BYTES_DEFAULT
    # What bulk bytes may take, in bytes per second; None for no limit. A peer's counts each way.
    upstream_limit_bps: int | None = None
    download_limit_bps: int | None = None
    upload_limit_bps: int | None = None
    peer_limit_bps: int | None = None
    # Models that download jobs fetch at once; the others wait for their turn.
    downloads_max: int = DOWNLOADS_MAX_DEFAULT
    # The folders that a download's files may be put into as well, and all below them.
    allow_paths: tuple[Path, ...] = ()
    # What orders can choose this daemon by, besides its name.
    labels: tuple[tuple[str, str], ...] = ()
    # Where a branch points is asked again after this long; clients allow a minute.
    ref_ttl_s: float = 60.0
    # A yes of the hub to anybody is asked for again after this long when a local program asks; what
    # is shared without asking (with peers, by the hub tree) rests on one that is so old at most.
    public_ttl_s: float = 60.0
    shared_ttl_s: float = 3600.0
    # A yes to a token stands in for the hub for so long, where the hub is not asked each time.
    grant_ttl_s: float = 60.0
    # For so long after its yes to a token a hub may be away; 0 for not at all.
    offline_grace_s: float = 0.0
