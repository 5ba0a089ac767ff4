"""
Owns the daemon's settings put together: what it runs with, and what cannot go together.

Knows nothing of click and of running daemons; the environment comes in as a mapping.
Invariants: what load_config() returns can be used without another check.
Source: design.md §8 (command line); docs/reference/config.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from p2pcache.config import values
from p2pcache.config.given import collect_settings, default_name, default_store
from p2pcache.config.settings import (
    HF_UPSTREAM_DEFAULT,
    LOCAL_DEFAULT,
    MS_UPSTREAM_DEFAULT,
    SETTINGS,
    Setting,
)
from p2pcache.errors import ConfigError

__all__ = [
    "HF_UPSTREAM_DEFAULT",
    "LOCAL_DEFAULT",
    "MS_UPSTREAM_DEFAULT",
    "SETTINGS",
    "DaemonConfig",
    "Setting",
    "collect_settings",
    "default_name",
    "default_store",
    "load_config",
]


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """What a daemon runs with. `discover` holds "mdns" or is empty; port 0 picks a free port."""

    name: str
    store: Path
    local: tuple[str, int]
    listen: tuple[str, int]
    peers: tuple[str, ...]
    discover: tuple[str, ...]
    hf_upstream: str
    trust_peers: bool
    quota_bytes: int | None
    free_floor_bytes: int
    upstream_limit_bps: int | None
    download_limit_bps: int | None
    upload_limit_bps: int | None
    peer_limit_bps: int | None
    log_format: str
    ms_upstream: str = MS_UPSTREAM_DEFAULT
    public_ttl_s: float = 60.0
    offline_grace_s: float = 0.0
    downloads_max: int = 8
    allow_paths: tuple[Path, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


def load_config(flags: Mapping[str, object], environment: Mapping[str, str]) -> DaemonConfig:
    """
    Put the settings together and check them.

    Args:
        flags: By Setting.name; None, False and empty sequences count as not given.
        environment: P2PCACHE_* of it; empty variables count as not given.

    Raises:
        ConfigError: A setting that cannot work; the sentence says where it was made.
    """
    given = collect_settings(flags, environment)
    local = given["local"].parse(values.parse_local)
    listen = given["listen"].parse(values.parse_endpoint)
    hf_upstream = given["hf_upstream"].parse(values.parse_hf_upstream)
    ms_upstream = given["ms_upstream"].parse(values.parse_ms_upstream)
    _check_distinct(local, listen, given["listen"].origin)
    _check_no_loop(local, hf_upstream, given["hf_upstream"].origin, HF_UPSTREAM_DEFAULT)
    _check_no_loop(local, ms_upstream, given["ms_upstream"].origin, MS_UPSTREAM_DEFAULT)
    return DaemonConfig(
        name=given["name"].parse(values.parse_name),
        store=given["store"].parse(values.parse_path),
        local=local,
        listen=listen,
        peers=given["peer"].parse(values.parse_peers),
        discover=given["discover"].parse(values.parse_discover),
        hf_upstream=hf_upstream,
        trust_peers=given["trust_peers"].parse(values.parse_switch),
        quota_bytes=given["quota"].parse(values.parse_quota),
        free_floor_bytes=given["free_floor"].parse(values.parse_size),
        upstream_limit_bps=given["upstream_limit"].parse(values.parse_rate),
        download_limit_bps=given["download_limit"].parse(values.parse_rate),
        upload_limit_bps=given["upload_limit"].parse(values.parse_rate),
        peer_limit_bps=given["peer_limit"].parse(values.parse_rate),
        log_format=given["log_format"].parse(values.parse_log_format),
        ms_upstream=ms_upstream,
        public_ttl_s=given["public_ttl"].parse(values.parse_public_ttl),
        offline_grace_s=given["offline_grace"].parse(values.parse_offline_grace),
        downloads_max=given["downloads_max"].parse(values.parse_downloads_max),
        allow_paths=given["allow_path"].parse(values.parse_paths),
        labels=given["label"].parse(values.parse_labels),
    )


def _check_distinct(local: tuple[str, int], listen: tuple[str, int], origin: str) -> None:
    """Refuse two endpoints that could not both be bound, before one of them fails to."""
    if local[1] == listen[1] != 0 and listen[0] in (local[0], "0.0.0.0", "::", "localhost"):  # noqa: S104
        raise ConfigError(
            f"{origin}: the local and the peer endpoint both use port {local[1]}; "
            "give one of them another port."
        )


def _check_no_loop(local: tuple[str, int], upstream: str, origin: str, example: str) -> None:
    """Refuse an upstream that is this daemon: every request would come back to it."""
    parts = urlsplit(upstream)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    names = {local[0], "localhost"} if local[0] in ("127.0.0.1", "::1") else {local[0]}
    if port == local[1] and parts.hostname in names:
        raise ConfigError(
            f"{origin}: {upstream} is this daemon's own local endpoint; "
            f"name the hub, for example {example}."
        )
