"""
Owns `STORE/replicas.json`: which models this daemon sees to that others hold, and who does.

Knows nothing of orders.
Invariants: written whole; what cannot be understood costs that row, never the start.
Source: docs/reference/store-layout.md (replicas).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from p2pcache.core.messages import get_list, get_text, get_whole
from p2pcache.core.refs import ModelReference, parse_commit
from p2pcache.core.replicas import REPLICAS_MAX
from p2pcache.errors import InputError
from p2pcache.store.disk import store_error, sync_directory, try_read
from p2pcache.store.home import write_file_atomically

log = logging.getLogger(__name__)

REPLICAS_NAME = "replicas.json"
_FORMAT_VERSION = 1
_FILE_BYTES_MAX = 8 * 1024 * 1024
# As many as pins fit into a file of that length.
_ROWS_MAX = 40_000
_HOLDER_KEYS = ("id", "name", "url", "order")


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
        raw_rows = get_list(json.loads(content), "replicas", length_max=_ROWS_MAX)
    except (InputError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read (%s); pin with --replicas again", path, error)
        return []
    rows = []
    for raw in raw_rows:
        try:
            rows.append(_read_row(raw))
        except InputError as error:
            log.warning("a row of %s makes no sense (%s); pin with --replicas again", path, error)
    return rows


def _read_row(raw: object) -> ReplicaRow:
    reference = ModelReference.parse(get_text(raw, "model"), revision=get_text(raw, "revision"))
    count = get_whole(raw, "count", maximum=REPLICAS_MAX)
    if count == 0:
        raise InputError("No copies are no row.")
    row = ReplicaRow(reference, parse_commit(get_text(raw, "commit")), count)
    for held in get_list(raw, "holders", length_max=REPLICAS_MAX):
        peer_id, name, url, order_id = (get_text(held, key) for key in _HOLDER_KEYS)
        row.holders[peer_id] = Holder(peer_id, name, url, order_id)
    return row
