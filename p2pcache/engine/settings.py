"""
Owns the settings that the engine works by, after configuration has been read.

Knows nothing of files, flags or environment variables: config.py makes one of these.
Invariants: immutable for the life of the daemon.
Source: design.md §8 (command line).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    # Where a branch points is asked again after this long; clients allow a minute.
    ref_ttl_s: float = 60.0
    # A hub that said "public" is asked again after a day; a refusal seen by anyone counts at once.
    public_ttl_s: float = 86_400.0
    # A token that the hub accepted for a repository is asked for again after this long.
    grant_ttl_s: float = 60.0
