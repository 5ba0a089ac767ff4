"""
Owns `STORE/pins.json`: the pins, where the loss of the index does not reach them.

Knows nothing of what they protect.
Invariants: written whole and durably before the index hears of a change; a file that holds
something else costs the pins in it, never the start; one that cannot be read now is not taken for
an empty one, or the next pin would write over it.
Source: docs/reference/store-layout.md (pins).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from p2pcache.core.refs import ModelReference, parse_commit
from p2pcache.errors import InputError
from p2pcache.store.catalogue import RefRow
from p2pcache.store.disk import store_error, sync_directory, try_read
from p2pcache.store.home import write_file_atomically
from p2pcache.store.index import Index

log = logging.getLogger(__name__)

PINS_NAME = "pins.json"
_FORMAT_VERSION = 1
# Not for others: it names what is hidden.
_MODE = 0o600
# About 40,000 pins; a larger file is not ours.
_FILE_BYTES_MAX = 8 * 1024 * 1024


def write_pins(root: Path, pins: Iterable[RefRow]) -> None:
    """
    Write all pins.

    Raises:
        StoreError: The disk failed or is full; the old file stands.
    """
    rows = [
        {
            "model": str(pin.repo),
            "revision": pin.revision,
            "commit": pin.commit,
            "added_wall_s": pin.wall_s,
        }
        for pin in pins
    ]
    content = json.dumps({"format_version": _FORMAT_VERSION, "pins": rows}, indent=1)
    path = root / PINS_NAME
    try:
        write_file_atomically(path, content.encode(), mode=_MODE)
        sync_directory(root)
    except OSError as error:
        raise store_error(error, path) from error


def read_pins(root: Path) -> list[RefRow]:
    """
    Return the pins of the file; those that make sense, none without a file.

    Raises:
        StoreError: It cannot be read now.
    """
    path = root / PINS_NAME
    content = try_read(path, _FILE_BYTES_MAX)
    if content is None:
        return []
    try:
        rows = json.loads(content)["pins"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("the pins in %s cannot be read (%s); pin again what is to stay", path, error)
        return []
    pins = []
    for row in rows if isinstance(rows, list) else []:
        with contextlib.suppress(InputError, KeyError, TypeError, ValueError):
            pins.append(_read_pin(row))
    return pins


def restore_pins(root: Path, index: Index) -> int:
    """
    Put the file's pins into an index that was made anew; returns how many.

    Raises:
        StoreError: The file cannot be read now.
    """
    known = {(pin.repo, pin.revision) for pin in index.roots.list_pins()}
    pins = [pin for pin in read_pins(root) if (pin.repo, pin.revision) not in known]
    for pin in pins:
        index.roots.put_pin(pin)
    return len(pins)


def _read_pin(row: dict[str, object]) -> RefRow:
    reference = ModelReference.parse(str(row["model"]), revision=str(row["revision"]))
    commit = parse_commit(str(row["commit"]))
    return RefRow(reference.repo, reference.revision, commit, float(str(row["added_wall_s"])))
