"""
Owns `STORE/replicas.json`: which models this daemon sees to that others hold, and who does.

Knows nothing of orders.
Invariants: written whole; one that cannot be understood costs what it says, never the start.
Source: docs/reference/store-layout.md (replicas).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from p2pcache.core.refs import ModelReference, parse_commit
from p2pcache.errors import InputError
from p2pcache.store.disk import store_error, sync_directory, try_read
from p2pcache.store.home import write_file_atomically

log = logging.getLogger(__name__)

REPLICAS_NAME = "replicas.json"
_FORMAT_VERSION = 1
_FILE_BYTES_MAX = 8 * 1024 * 1024


@dataclass(slots=True)
class Holder:
    """A daemon that was given a copy. `order_id`: the order that gave it, on that daemon."""

    peer_id: str
    name: str
    url: str
    order_id: str


@dataclass(slots=True)
class ReplicaRow:
    """A model of which `count` copies are kept."""

    reference: ModelReference
    commit: str
    count: int
    holders: dict[str, Holder] = field(default_factory=dict)


def write_replicas(root: Path, rows: Iterable[ReplicaRow]) -> None:
    """
    Write all rows.

    Raises:
        StoreError: The disk failed or is full; the old file stands.
    """
    content = {
        "format_version": _FORMAT_VERSION,
        "replicas": [
            {
                "model": str(row.reference.repo),
                "revision": row.reference.revision,
                "commit": row.commit,
                "count": row.count,
                "holders": [
                    {"id": h.peer_id, "name": h.name, "url": h.url, "order": h.order_id}
                    for h in row.holders.values()
                ],
            }
            for row in rows
        ],
    }
    path = root / REPLICAS_NAME
    try:
        write_file_atomically(path, json.dumps(content, indent=1).encode(), mode=0o600)
        sync_directory(root)
    except OSError as error:
        raise store_error(error, path) from error


def read_replicas(root: Path) -> list[ReplicaRow]:
    """
    Return the rows of the file, none without one.

    Raises:
        StoreError: It cannot be read now.
    """
    path = root / REPLICAS_NAME
    content = try_read(path, _FILE_BYTES_MAX)
    if content is None:
        return []
    try:
        return [_read_row(raw) for raw in json.loads(content)["replicas"]]
    except (InputError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s cannot be read (%s); pin with --replicas again", path, error)
        return []


def _read_row(raw: dict[str, object]) -> ReplicaRow:
    reference = ModelReference.parse(str(raw["model"]), revision=str(raw["revision"]))
    row = ReplicaRow(reference, parse_commit(str(raw["commit"])), int(str(raw["count"])))
    holders = raw["holders"]
    for held in holders if isinstance(holders, list) else []:
        holder = Holder(str(held["id"]), str(held["name"]), str(held["url"]), str(held["order"]))
        row.holders[holder.peer_id] = holder
    return row
